"""Pictures of a report on other classes than ImageNet's: who is taken for whom, worst mistakes."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vggdist.artifacts.paths import quote
from vggdist.artifacts.run_files import read_config
from vggdist.data.dataset import open_split
from vggdist.data.manifest import Manifest
from vggdist.data.manifest_file import SPLITS
from vggdist.data.read import read_encoded
from vggdist.errors import DataError, WeightsError
from vggdist.evaluation.confusion_picture import draw_class_errors, picture_name
from vggdist.evaluation.contact_sheet import CELL, Prediction, contact_sheet
from vggdist.reports.report import Report


def draw_pictures(report: Report, root: str | None) -> dict[str, Image.Image]:
    """Name -> picture; none of ImageNet's classes.

    Args:
        root: the data set; None: the one of the run folder in which the files are.

    Raises:
        WeightsError: `root` is given and does not hold the images.
    """
    if not report.class_errors.num_images:
        return {}
    errors = draw_class_errors(report.class_errors, report.classes)
    pictures = {picture_name(report.num_classes): errors}
    manifest = _find_images(report, root) if report.mistakes else None
    if manifest is not None:
        pictures["mistakes"] = contact_sheet(list(_predictions(report, manifest)))
    return pictures


def _find_images(report: Report, root: str | None) -> Manifest | None:
    """The images that the files are of, if their data set can be found."""
    for folder in [root] if root is not None else _trained_on(report.paths):
        for split in SPLITS:
            try:
                manifest = open_split(folder, split)
            except DataError:
                continue
            if set(manifest.classes) == set(report.classes):
                manifest = manifest.with_classes(report.classes)
            if manifest.digest == report.sources[0].images:
                return manifest
    if root is not None:
        raise WeightsError(
            f"--data {quote(root)} does not hold the images of these posteriors files; give the "
            "data set on which they were evaluated."
        )
    return None


def _trained_on(paths: Iterable[Path]) -> Iterator[str]:
    """The data sets of the run folders in which the files are."""
    folders = {folder for path in paths for folder in (path.parent, path.parent.parent)}
    for folder in sorted(folders):
        config = read_config(folder)
        if config is not None and config.data.root is not None:
            yield config.data.root


def _predictions(report: Report, manifest: Manifest) -> Iterator[Prediction]:
    names = [mistake.image for mistake in report.mistakes]
    for mistake, (_, number) in zip(report.mistakes, manifest.numbers(names), strict=True):
        picture = _thumbnail(manifest, number)
        yield Prediction(picture, mistake.truth, mistake.prediction, mistake.confidence)


def _thumbnail(manifest: Manifest, number: int | None) -> NDArray[np.uint8]:
    """The middle of an image; grey where it has gone since it was evaluated."""
    try:
        assert number is not None
        encoded = read_encoded(manifest.place(number))
        with Image.open(io.BytesIO(encoded.data)) as image:
            picture = image.convert("RGB")
    except Exception:  # Pillow raises anything for a damaged image that DALI decodes
        picture = Image.new("RGB", (CELL, CELL), "gray")
    return np.asarray(ImageOps.fit(picture, (CELL, CELL)))
