"""Examines every image of a data set before a training; nothing is moved or changed.

Images that training could not use go to the quarantine list next to the images, and sizes and
hashes into their manifest.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

from PIL import Image

from vggdist.artifacts.paths import quote
from vggdist.data.dataset import open_images
from vggdist.data.examine import examine_image
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
    BadFile,
    find_manifest,
    load_contents,
    save_manifest,
    save_quarantine,
)
from vggdist.data.pillow import DALI_FORMATS, lacks_decoder
from vggdist.data.survey import Survey, survey_dataset
from vggdist.errors import DataError
from vggdist.prepare.findings import CheckResult, Findings
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
    findings = Findings(root, manifests, before)
    places = (split.place(image) for split in manifests for image in range(split.num_images))
    with (
        closing(
            examine_all(examine, places, jobs or len(os.sched_getaffinity(0)), longest_seconds)
        ) as results,
        closing(Progress(sum(split.num_images for split in manifests))) as progress,
    ):
        for image, examined in enumerate(results):
            findings.add(image, examined)
            progress.advance()
    if survey:
        _save(survey, findings)
    return findings.result(*_other_files(root, manifests))


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


def _save(survey: Survey, findings: Findings) -> None:
    """Writes the manifest and the quarantine list next to the images, if the folder is writable."""
    root = survey.dataset.root
    manifests, contents = [], {}
    for number, manifest in enumerate(survey.splits):
        found = findings.contents(number)
        known = replace(
            survey.contents[manifest.split],
            sizes=found.sizes,
            sha256=found.sha256,
            orientations=found.orientations,
        )
        contents[manifest.split] = known
        manifests.append(replace(manifest, contents=digest(manifest, known)))
    try:
        save_manifest(Dataset(*manifests), [root / MANIFEST_NAME], contents)
        save_quarantine(root, sorted(findings.bad, key=attrgetter("file")))
    except (DataError, OSError) as error:
        logger.warning(
            "What was found cannot be written beside the images, so a training will not know of "
            "it: %s",
            error,
        )


def _other_files(
    root: Path, manifests: Sequence[Manifest]
) -> tuple[list[BadFile], dict[str, Counter[str]]]:
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
            refused.append(BadFile(entry.name, reason))
        elif entry.reason == OTHER_SUFFIX and kind in Image.OPEN and kind not in _NO_PICTURES:
            refused.append(BadFile(entry.name, lacks_decoder(kind)))
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
