"""Examines every image of a data set before a training; nothing is moved or changed.

Images that training could not use go to the quarantine list next to the images, and sizes and
hashes into their manifest.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
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
from vggdist.data.manifest import Contents, Dataset, Manifest, Names, from_classes
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
    accept_changes: bool = False,
    move_broken: Path | None = None,
    examine: Examine = examine_image,
    longest_seconds: float = LONGEST_SECONDS,
) -> CheckResult:
    """Examines every image of a folder, and the set as a whole.

    After a check of a data set its manifest holds sizes, byte lengths and hashes, and its
    quarantine list names the images that training will not show.

    Args:
        data: a data set, a folder of class folders, or a folder of images.
        jobs: processes; none: one for each CPU that this process may use.
        accept_changes: whether images may have come or gone since the manifest was written.
        move_broken: folder to which images that cannot be used are moved, with their class folders;
            none: they stay.
        examine: what is done to an image; importable by name.
        longest_seconds: an image that takes longer is given up.

    Raises:
        DataError: there are no images, or not those that the manifest lists; or broken ones cannot
            be moved.
    """
    root = existing_folder(data)
    stored = find_manifest(root)
    before = (load_contents(stored, root) if stored else None) or {}
    survey = None
    if stored or all((root / split).is_dir() for split in SPLITS):
        survey = survey_dataset(root, accept_changes=accept_changes)
        if survey.added or survey.removed:
            before = {}
    manifests = survey.splits if survey else (_images(root),)
    if move_broken is not None and any(manifest.shards for manifest in manifests):
        raise DataError(
            f"{quote(root)} holds shards, out of which no image can be moved. Leave --move-broken "
            "out, mend the source, and prepare the shards again."
        )
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
    moved, kept = _move(findings.bad, root, move_broken)
    if survey:
        _save(survey, findings, moved)
    return replace(
        findings.result(*_other_files(root, manifests)),
        added=list(survey.added) if survey else [],
        removed=list(survey.removed) if survey else [],
        moved=moved,
        not_moved=kept,
    )


def _move(bad: Sequence[BadFile], root: Path, folder: Path | None) -> tuple[list[str], list[str]]:
    """Moves files, with their folders, if there is a folder to move them to; returns those that
    were moved, and those that were not since there is such a file already.

    Raises:
        DataError: one cannot be moved.
    """
    moved: list[str] = []
    kept: list[str] = []
    if folder is None:
        return moved, kept
    for image in sorted(bad, key=attrgetter("file")):
        source, target = root / image.file, folder / image.file
        if os.path.lexists(target):
            kept.append(image.file)
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(source, target)
        except OSError as error:
            raise DataError(
                f"{quote(source)} cannot be moved to {quote(target)}: {error.strerror}. "
                f"{len(moved)} files were moved before. Once this is solved, the same command with "
                "--accept-changes goes on."
            ) from error
        moved.append(image.file)
    return moved, kept


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


def _save(survey: Survey, findings: Findings, moved: Sequence[str]) -> None:
    """Writes the manifest and the quarantine list next to the images, if the folder is writable.

    Args:
        moved: images that are not there any more.
    """
    gone = frozenset(moved)
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
        names = [f"{manifest.split}/{manifest.name(i)}" for i in range(manifest.num_images)]
        stay = np.array([name not in gone for name in names])
        left, known = _of(manifest, known, stay) if gone else (manifest, known)
        contents[manifest.split] = known
        manifests.append(replace(left, contents=digest(left, known)))
    try:
        save_manifest(Dataset(*manifests), [root / MANIFEST_NAME], contents)
        bad = [image for image in findings.bad if image.file not in gone]
        save_quarantine(root, sorted(bad, key=attrgetter("file")))
    except (DataError, OSError) as error:
        logger.warning(
            "What was found cannot be written beside the images, so a training will not know of "
            "it: %s",
            error,
        )


def _of(
    manifest: Manifest, contents: Contents, stay: NDArray[np.bool_]
) -> tuple[Manifest, Contents]:
    """Those images of class folders that stay."""
    assert manifest.num_bytes is not None
    names = manifest.names.unpack()
    columns: dict[str, Any] = {
        name: None if column is None else column[stay] for name, column in vars(contents).items()
    }
    return replace(
        manifest,
        labels=manifest.labels[stay],
        names=Names.pack(names[image] for image in np.flatnonzero(stay)),
        num_bytes=manifest.num_bytes[stay],
        quarantine=frozenset(),
    ), Contents(**columns)


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
