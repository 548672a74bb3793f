"""A trained network's predictions for single images: names, confidences and a picture."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from vggdist.artifacts.names import printable
from vggdist.artifacts.paths import quote
from vggdist.artifacts.posteriors import require_finite
from vggdist.artifacts.weights import Weights
from vggdist.config import DataConfig, Device, Orientation, Precision, PrecisionSetting
from vggdist.data.examine import decoders_lines, examine_image, tells_of_damage
from vggdist.data.folders import IMAGE_SUFFIXES, list_images
from vggdist.data.geometry import require_scales
from vggdist.data.loader import EvaluationLoader
from vggdist.data.manifest import Manifest, Names, Place
from vggdist.data.turned import count_turned
from vggdist.distributed.device import choose_device, require_kernels
from vggdist.distributed.precision import DTYPES, choose_precision, use_precision
from vggdist.errors import DataError
from vggdist.evaluation.contact_sheet import PICTURE, Ranking, draw_ranking_sheet
from vggdist.model.class_names import class_names
from vggdist.model.loading import build_network
from vggdist.terminal import Progress

logger = logging.getLogger("vggdist")

BATCH_SIZE = 16


@dataclass(frozen=True)
class Choice:
    """A predicted class."""

    label: int
    name: str
    confidence: float
    """Its posterior, 0 to 1."""


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image: its most probable classes, in descending order."""

    file: Path
    choices: tuple[Choice, ...]


def expand(paths: Sequence[Path]) -> list[Path]:
    """Expands folders to the images in and below them, sorted; files are kept as given.

    Raises:
        DataError: a folder has no images.
    """
    files = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        found = list_images(path)
        if not found:
            raise DataError(
                f"{quote(path)} has no images, files that end in {', '.join(IMAGE_SUFFIXES)}; give "
                "images or a folder of them."
            )
        files += [path / name for name in found]
    return files


def split_usable(files: Sequence[Path]) -> tuple[list[Path], dict[Path, str]]:
    """The usable images, and the reasons for the others; decodes each once to find out."""
    usable, problems = [], {}
    with _progress(len(files)) as advance:
        for file in files:
            examined = examine_image(Place(os.fsencode(file), 0, -1))
            if examined.reason:
                problems[file] = examined.reason
            else:
                usable.append(file)
            if examined.damage:
                logger.warning(
                    "%s is damaged, but readable: %s. Its prediction may be wrong.",
                    quote(file),
                    examined.damage,
                )
            advance(1)
    return usable, problems


@torch.inference_mode()
def predict(
    weights: Weights,
    files: Sequence[Path],
    *,
    top: int = 5,
    scale: int | None = None,
    precision: PrecisionSetting = "auto",
    device: Device = "auto",
    trained: Precision | None = None,
    orientation: Orientation | None = None,
) -> list[Prediction]:
    """The most probable classes of the centre crop of each image.

    Args:
        weights: of the network.
        files: usable images.
        top: number of classes per image.
        scale: Q, the rescaled shorter side, pixels; None: as in the network's own evaluations.
        precision: of the arithmetic.
        device: that computes.
        trained: the precision in which the network was trained, which `auto` prefers.
        orientation: what is done about the EXIF orientation; None: as in training, and apply where
            the weights file does not say.

    Raises:
        ConfigError: the scale is below the crop size, or the device or precision is unavailable.
        DataError: an image is bad.
        WeightsError: the weights are not those of a whole network, or are not finite.
    """
    description = weights.description
    where = choose_device(device, 0)
    require_kernels(where)
    chosen, why = choose_precision(precision, where, trained)
    use_precision(chosen)
    logger.info(why)
    (scale,) = require_scales(
        [scale or description.default_scale], description.crop_size, "--scale"
    )
    network = build_network(weights).to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    names = class_names(description)
    top = min(top, len(names))
    predictions: list[Prediction] = []
    images, orientation = _manifest(files), orientation or description.photo_orientation
    if orientation == "ignore":
        _tell_of_turned(images)
    loader = EvaluationLoader(
        images,
        DataConfig(
            crop_size=description.crop_size,
            train_scale_min=scale,
            train_scale_max=scale,
            mean=description.mean,
            std=description.std,
            orientation=orientation,
        ),
        scale=scale,
        batch_size=min(BATCH_SIZE, len(files)),
        device=where,
        num_threads=len(os.sched_getaffinity(0)),
    )
    casting = torch.autocast(where.type, DTYPES[chosen], enabled=DTYPES[chosen] != torch.float32)
    with _progress(len(files)) as advance, _without_known_damage(), loader:
        for batch in loader:
            with casting:
                logits = network(batch.images)
            confidences, labels = logits.float().softmax(dim=1).topk(top)
            of_batch = [quote(files[index]) for index in batch.index.tolist()]
            require_finite(confidences.numpy(force=True), "posteriors", of_batch.__getitem__)
            for index, row, classes in zip(
                batch.index.tolist(), confidences.tolist(), labels.tolist(), strict=True
            ):
                choices = (Choice(k, names[k], p) for k, p in zip(classes, row, strict=True))
                predictions.append(Prediction(files[index], tuple(choices)))
            advance(len(batch))
    return predictions


def draw_sheet(predictions: Sequence[Prediction], path: Path, upright: bool = True) -> None:
    """Writes a picture of the images and their predictions.

    Args:
        predictions: of images that are still there.
        path: of the picture.
        upright: whether the images are turned by their EXIF orientation.

    Raises:
        DataError: it cannot be written.
    """
    rankings = [
        Ranking(
            _picture(prediction.file, upright),
            printable(prediction.file.name),
            tuple((choice.name, choice.confidence) for choice in prediction.choices),
        )
        for prediction in predictions
    ]
    try:
        draw_ranking_sheet(rankings, path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"--out {quote(path)} cannot be written: {error}. Name a file such as sheet.png."
        ) from error


def render_predictions(predictions: Sequence[Prediction]) -> str:
    """A table, one image after another."""
    if not predictions:
        return "None of the images can be used."
    files = max(len("image"), *(len(quote(p.file)) for p in predictions))
    names = max(len("class"), *(len(printable(c.name)) for p in predictions for c in p.choices))
    lines = [f"{'image':<{files}}  {'class':<{names}}  confidence", "-" * (files + names + 14)]
    for prediction in predictions:
        file = quote(prediction.file)
        for choice in prediction.choices:
            lines.append(
                f"{file:<{files}}  {printable(choice.name):<{names}}  "
                f"{100 * choice.confidence:8.2f} %"
            )
            file = ""
    return "\n".join(lines)


def to_dict(predictions: Sequence[Prediction], problems: dict[Path, str]) -> dict[str, Any]:
    """Ready for JSON."""
    return {
        "images": [
            {"file": str(p.file), "predictions": [vars(choice) for choice in p.choices]}
            for p in predictions
        ],
        "unusable": [{"file": str(file), "reason": why} for file, why in problems.items()],
    }


def report_problems(problems: dict[Path, str]) -> None:
    """Writes a sentence for each bad image to stderr."""
    for file, reason in problems.items():
        sys.stderr.write(f"error: {quote(file)} cannot be used: {reason}.\n")


def _manifest(files: Sequence[Path]) -> Manifest:
    """A manifest of the files in the given order, with their folders as class folders."""
    absolute = [file.absolute() for file in files]
    folders = sorted({str(file.parent).lstrip("/") for file in absolute})
    labels = [folders.index(str(file.parent).lstrip("/")) for file in absolute]
    names = Names.pack(file.name for file in absolute)
    return Manifest(Path("/"), "", tuple(folders), np.asarray(labels, dtype=np.int64), names)


def _tell_of_turned(images: Manifest) -> None:
    """Says how many photos a viewer would turn, and the network sees as they are stored."""
    turned = count_turned(images, None)
    if turned.num_turned:
        logger.info(
            "%s: the network sees them as they are stored, as in its training; --orientation apply "
            "turns them.",
            turned,
        )


def _picture(file: Path, upright: bool) -> Image.Image:
    """A usable image as the network sees it."""
    try:
        with warnings.catch_warnings(), Image.open(file) as image:
            warnings.simplefilter("ignore")  # about metadata and transparency; the image is usable
            picture = (ImageOps.exif_transpose(image) if upright else image).convert("RGB")
    except Exception:  # Pillow raises anything for a damaged image that DALI decodes
        return Image.new("RGB", (PICTURE, PICTURE), "gray")
    picture.thumbnail((PICTURE, PICTURE))  # here, since many images are in memory at once
    return picture


@contextlib.contextmanager
def _without_known_damage() -> Iterator[None]:
    """Suppresses decoders' messages about damage: `split_usable` has reported the files."""
    with decoders_lines() as lines:
        yield
    sys.stderr.writelines(f"{line}\n" for line in lines if not tells_of_damage(line))


@contextlib.contextmanager
def _progress(num_images: int) -> Iterator[Callable[[int], None]]:
    """Shows progress, unless the work is short; yields a function that takes the images done."""
    if num_images <= BATCH_SIZE:
        yield lambda count: None
        return
    # Not stderr, which may be suppressed meanwhile.
    with (
        open(os.dup(2), "w") as terminal,
        contextlib.closing(Progress(num_images, stream=terminal)) as progress,
    ):
        yield progress.advance
