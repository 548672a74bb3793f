"""Looks at every image of a data set before a training does; nothing is moved or changed.

Images are examined in processes that may crash. What training could not use goes to the quarantine
list beside the images, and sizes and hashes into their manifest.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from PIL import Image

from vggdist.data.dataset import find_manifest, open_dataset, open_images
from vggdist.data.folders import IMAGE_SUFFIXES, existing_folder, list_images, names_in
from vggdist.data.manifest import Dataset, Manifest, Place, from_classes
from vggdist.data.manifest_file import (
    MANIFEST_NAME,
    SPLITS,
    Unusable,
    load_contents,
    save_manifest,
    save_quarantine,
)
from vggdist.data.progress import Progress
from vggdist.data.verification.examine import (
    DALI_FORMATS,
    Examined,
    examine_image,
    lacks_decoder,
    prepare_process,
)
from vggdist.data.verification.findings import CheckResult, SplitFindings, put_together
from vggdist.data.verification.isolated import Isolated
from vggdist.errors import DataError
from vggdist.paths import quote

logger = logging.getLogger(__name__)

LONGEST_SECONDS = 60.0
"""An image that takes longer is given up."""

# What Pillow opens but nobody trains on: documents, videos, and formats it knows only by name.
_NO_PICTURES = frozenset({"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"})


def check(
    data: str | Path,
    jobs: int | None = None,
    *,
    examine: Callable[[Place], Examined] = examine_image,
    longest_seconds: float = LONGEST_SECONDS,
) -> CheckResult:
    """Examines every image of a folder, and the set as a whole.

    After a check of a data set its manifest holds sizes, byte lengths and hashes, and its
    quarantine list names the images that training will not show.

    Args:
        data: a data set, a folder of class folders, or a folder of images.
        jobs: processes; none: one for each CPU that this process may use.
        examine: what is done to an image; importable by name.
        longest_seconds: an image that takes longer is given up.

    Raises:
        DataError: there are no images, or not those that the manifest lists.
    """
    root = existing_folder(data)
    dataset = _dataset(root)
    manifests = [dataset.train, dataset.val] if dataset else [_images(root)]
    stored = find_manifest(root)
    before = (load_contents(stored, root) if stored else None) or {}
    found = [SplitFindings(one, root, before.get(one.split)) for one in manifests]
    _examine_all(found, jobs or len(os.sched_getaffinity(0)), examine, longest_seconds)
    if dataset:
        _save(dataset, found)
    return put_together(root, found, *_other_files(root, manifests))


def _dataset(root: Path) -> Dataset | None:
    stored = find_manifest(root) is not None
    if stored or all((root / split).is_dir() for split in SPLITS):
        return open_dataset(root, write=stored)  # with a manifest this only compares
    return None


def _images(root: Path) -> Manifest:
    """The images of a folder that is no data set; folders without images are no classes."""
    if (root / "train").is_dir() or any("/" not in name for name in list_images(root)):
        return open_images(root)
    folders = [name for name in names_in(root) if (root / name).is_dir()]
    tree = {name: images for name in folders if (images := list_images(root / name))}
    if not tree:
        raise DataError(
            f"{quote(root)} holds no images: no file in it ends in {', '.join(IMAGE_SUFFIXES)}. "
            "Name a folder with train/ and val/, with class folders, or with images."
        )
    return from_classes(root, "", tree.items())


def _examine_all(
    found: Sequence[SplitFindings],
    jobs: int,
    examine: Callable[[Place], Examined],
    longest_seconds: float,
) -> None:
    places = (split.manifest.place(image) for split, image in _numbered(found))
    total = sum(split.manifest.num_images for split in found)
    with (
        Isolated(examine, jobs, longest_seconds, prepare_process) as processes,
        contextlib.closing(Progress(total)) as progress,
    ):
        for (split, image), examined in zip(_numbered(found), processes.map(places), strict=True):
            split.add(image, examined)
            progress.advance()


def _numbered(found: Sequence[SplitFindings]) -> Iterator[tuple[SplitFindings, int]]:
    return ((split, image) for split in found for image in range(split.manifest.num_images))


def _save(dataset: Dataset, found: Sequence[SplitFindings]) -> None:
    """Writes manifest and quarantine list beside the images, if the folder lets us."""
    root = dataset.root
    train, val = (
        # A shard's lengths say where its images are, so even those of damaged ones stay.
        split.manifest
        if split.manifest.shards
        else replace(split.manifest, num_bytes=split.num_bytes)
        for split in found
    )
    unusable = sorted(chain(*(split.unusable() for split in found)), key=lambda one: one.file)
    contents = {split.manifest.split: split.contents for split in found}
    try:
        save_manifest(Dataset(train, val), [root / MANIFEST_NAME], contents)
        save_quarantine(root, unusable)
    except (DataError, OSError) as error:
        logger.warning(
            "What was found cannot be written beside the images, so a training will not know of "
            "it: %s",
            error,
        )


def _other_files(root: Path, manifests: Sequence[Manifest]) -> tuple[list[Unusable], Counter[str]]:
    """Files that training does not list: images that its suffixes exclude, and what is no image."""
    Image.init()
    refused, left_out = [], Counter[str]()
    # Shards hold what was packed into them, and nothing else.
    folders = [one.folder for one in manifests if one.split and not one.shards]
    for path in _files(folders if manifests[0].split else [root]):
        file = os.path.relpath(path, root)
        if file.lower().endswith(IMAGE_SUFFIXES):
            continue
        suffix = os.path.splitext(file)[1].lower()
        kind = Image.registered_extensions().get(suffix)
        if kind in DALI_FORMATS:
            reason = (
                f"training does not look at files that end in {suffix}; convert it to JPEG or PNG"
            )
            refused.append(Unusable(file, reason))
        elif kind in Image.OPEN and kind not in _NO_PICTURES:
            refused.append(Unusable(file, lacks_decoder(kind)))
        else:
            left_out[suffix] += 1
    return refused, left_out


def _files(folders: Sequence[Path]) -> Iterator[str]:
    """Paths of the files in folders and below them that are not hidden."""
    for start in (folder / name for folder in folders for name in names_in(folder)):
        # As in training, links to class folders are followed, but none below.
        if not start.is_dir():
            yield str(start)
        for folder, below, files in os.walk(start):
            below[:] = [name for name in below if not name.startswith(".")]
            yield from (os.path.join(folder, name) for name in files if not name.startswith("."))
