"""Looks at every image of a data set before a training does; nothing is moved or changed.

Images are examined in processes that may crash. What training could not use goes to the quarantine
list beside the images, and sizes and hashes into their manifest.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from PIL import Image

from vggdist.artifacts.paths import quote
from vggdist.data.dataset import open_images
from vggdist.data.examine import DALI_FORMATS, examine_image, lacks_decoder
from vggdist.data.folders import (
    IMAGE_SUFFIXES,
    OTHER_SUFFIX,
    Skipped,
    class_folders,
    existing_folder,
    list_folder,
    list_images,
)
from vggdist.data.known_contents import digest
from vggdist.data.manifest import Dataset, Manifest, from_classes
from vggdist.data.manifest_file import (
    MANIFEST_NAME,
    SPLITS,
    Unusable,
    find_manifest,
    load_contents,
    save_manifest,
    save_quarantine,
)
from vggdist.data.survey import Survey, survey_dataset
from vggdist.errors import DataError
from vggdist.prepare.findings import CheckResult, SplitFindings, by_file, put_together
from vggdist.prepare.processes import Examine, examine_all
from vggdist.terminal import Progress

logger = logging.getLogger(__name__)

LONGEST_SECONDS = 60.0
"""An image that takes longer is given up."""

# What Pillow opens but nobody trains on: documents, videos, and formats it knows only by name.
_NO_PICTURES = frozenset({"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"})


def check(
    data: str | Path,
    jobs: int | None = None,
    *,
    examine: Examine = examine_image,
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
    stored = find_manifest(root)
    before = (load_contents(stored, root) if stored else None) or {}
    survey = None
    if stored or all((root / split).is_dir() for split in SPLITS):
        survey = survey_dataset(root)
    manifests = survey.splits if survey else (_images(root),)
    found = [SplitFindings(split, root, before.get(split.split)) for split in manifests]
    _examine_all(found, examine, jobs or len(os.sched_getaffinity(0)), longest_seconds)
    if survey:
        _save(survey, found)
    return put_together(root, found, *_other_files(root, manifests))


def _images(root: Path) -> Manifest:
    """The images of a folder that is no data set; folders without images are no classes."""
    if (root / "train").is_dir() or any("/" not in name for name in list_images(root)):
        return open_images(root)
    folders, _ = class_folders(root)
    tree = {name: images for name in folders if (images := list_images(root / name))}
    if not tree:
        raise DataError(
            f"{quote(root)} holds no images: no file in it ends in {', '.join(IMAGE_SUFFIXES)}. "
            "Name a folder with train/ and val/, with class folders, or with images."
        )
    return from_classes(root, "", tree.items())


def _examine_all(
    found: Sequence[SplitFindings], examine: Examine, jobs: int, longest_seconds: float
) -> None:
    places = (split.manifest.place(image) for split, image in _numbered(found))
    total = sum(split.manifest.num_images for split in found)
    with (
        contextlib.closing(examine_all(examine, places, jobs, longest_seconds)) as results,
        contextlib.closing(Progress(total)) as progress,
    ):
        for (split, image), examined in zip(_numbered(found), results, strict=True):
            split.add(image, examined)
            progress.advance()


def _numbered(found: Sequence[SplitFindings]) -> Iterator[tuple[SplitFindings, int]]:
    return ((split, image) for split in found for image in range(split.manifest.num_images))


def _save(survey: Survey, found: Sequence[SplitFindings]) -> None:
    """Writes manifest and quarantine list beside the images, if the folder lets us."""
    root = survey.dataset.root
    manifests, contents = [], {}
    for split in found:
        manifest = split.manifest
        noted = survey.contents[manifest.split]
        known = replace(noted, sizes=split.contents.sizes, sha256=split.contents.sha256)
        contents[manifest.split] = known
        manifests.append(replace(manifest, contents=digest(manifest, known)))
    unusable = by_file(chain(*(split.unusable for split in found)))
    try:
        save_manifest(Dataset(*manifests), [root / MANIFEST_NAME], contents)
        save_quarantine(root, unusable)
    except (DataError, OSError) as error:
        logger.warning(
            "What was found cannot be written beside the images, so a training will not know of "
            "it: %s",
            error,
        )


def _other_files(
    root: Path, manifests: Sequence[Manifest]
) -> tuple[list[Unusable], dict[str, Counter[str]]]:
    """Files that training does not list: images that its suffixes exclude, and the others."""
    Image.init()
    refused, left_out = [], defaultdict[str, Counter[str]](Counter)
    for entry in _skipped(root, manifests):
        suffix = os.path.splitext(entry.name)[1].lower()
        kind = Image.registered_extensions().get(suffix)
        if entry.reason == OTHER_SUFFIX and kind in DALI_FORMATS:
            reason = (
                f"training does not look at files that end in {suffix}; convert it to JPEG or PNG"
            )
            refused.append(Unusable(entry.name, reason))
        elif entry.reason == OTHER_SUFFIX and kind in Image.OPEN and kind not in _NO_PICTURES:
            refused.append(Unusable(entry.name, lacks_decoder(kind)))
        else:
            left_out[entry.reason][entry.kind] += 1
    return refused, left_out


def _skipped(root: Path, manifests: Sequence[Manifest]) -> Iterator[Skipped]:
    """What is not listed of the folders, with names relative to `root`."""
    for manifest in manifests:
        if manifest.shards:
            continue  # they hold what was packed into them, and nothing else
        if not manifest.split:
            yield from list_folder(root).skipped
            continue
        classes, loose = class_folders(manifest.folder)
        for entry in loose:
            yield entry._replace(name=f"{manifest.split}/{entry.name}")
        for name in classes:
            for entry in list_folder(manifest.folder / name).skipped:
                yield entry._replace(name=f"{manifest.split}/{name}/{entry.name}")
