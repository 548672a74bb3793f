"""What a trained network says of single images: names, confidences and a picture of them."""

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
from PIL import Image

from vggdist.artifacts.names import printable
from vggdist.artifacts.paths import quote
from vggdist.artifacts.posteriors import require_finite
from vggdist.artifacts.weights import Description, Weights
from vggdist.config import DataConfig, Device, PrecisionSetting
from vggdist.data.examine import decoders_lines, examine_image, tells_of_damage
from vggdist.data.folders import IMAGE_SUFFIXES, list_images
from vggdist.data.loader import EvaluationLoader
from vggdist.data.manifest import Manifest, Names, Place
from vggdist.distributed.device import choose_device, require_kernels
from vggdist.distributed.precision import DTYPES, choose_precision, use_precision
from vggdist.errors import ConfigError, DataError
from vggdist.evaluation.contact_sheet import PICTURE, Ranking, draw_ranking_sheet
from vggdist.model.class_names import class_names
from vggdist.model.loading import build_network
from vggdist.terminal import Progress

logger = logging.getLogger("vggdist")

BATCH_SIZE = 16


@dataclass(frozen=True)
class Choice:
    """A class that the network considers."""

    label: int
    name: str
    confidence: float
    """Its posterior, 0 to 1."""


@dataclass(frozen=True)
class Prediction:
    """What the network says of one image: the most probable classes, the first one first."""

    file: Path
    choices: tuple[Choice, ...]


def expand(paths: Sequence[Path]) -> list[Path]:
    """Files as they are given; a folder becomes the images in it and below it, sorted.

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
    """The images that can be used, and of the others why not; each is decoded once for this."""
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
) -> list[Prediction]:
    """The most probable classes of the centre crop of each image.

    Args:
        weights: of the network.
        files: images that can be used.
        top: how many classes of each.
        scale: Q, the rescaled shorter side, pixels; none: `default_scale`.
        precision: of the arithmetic.
        device: that computes.

    Raises:
        ConfigError: the scale is below the crop size, or the device lacks something.
        DataError: an image cannot be used.
        WeightsError: they are not weights of a whole network, or of one that has exploded.
    """
    description = weights.description
    where = choose_device(device, 0)
    require_kernels(where)
    chosen, why = choose_precision(precision, where)
    use_precision(chosen)
    logger.info(why)
    scale = scale or default_scale(description)
    if scale < description.crop_size:
        raise ConfigError(
            f"--scale {scale} is below the network's crop size {description.crop_size}, so a crop "
            f"would not fit into the rescaled image; use at least {description.crop_size}."
        )
    network = build_network(weights).to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    names = class_names(description)
    top = min(top, len(names))
    predictions: list[Prediction] = []
    loader = EvaluationLoader(
        _manifest(files),
        DataConfig(
            crop_size=description.crop_size,
            train_scale_min=scale,
            train_scale_max=scale,
            mean=description.mean,
            std=description.std,
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
            for index, row, said in zip(
                batch.index.tolist(), confidences.tolist(), labels.tolist(), strict=True
            ):
                choices = (Choice(k, names[k], p) for k, p in zip(said, row, strict=True))
                predictions.append(Prediction(files[index], tuple(choices)))
            advance(len(batch))
    return predictions


def default_scale(description: Description) -> int:
    """Q as in the network's own evaluations: the middle of its training scales (section 4.1);
    where they are not known 256 for a crop size of 224, and in proportion for others.
    """
    if description.train_scale is not None:
        return sum(description.train_scale) // 2
    return round(description.crop_size * 256 / 224)


def draw_sheet(predictions: Sequence[Prediction], path: Path) -> None:
    """Writes a picture of the images and what the network says of them.

    Raises:
        DataError: it cannot be written.
    """
    rankings = [
        Ranking(
            _picture(one.file),
            printable(one.file.name),
            tuple((choice.name, choice.confidence) for choice in one.choices),
        )
        for one in predictions
    ]
    try:
        draw_ranking_sheet(rankings, path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"--out {quote(path)} cannot be written: {error}. Name a file such as sheet.png."
        ) from error


def render_predictions(predictions: Sequence[Prediction]) -> str:
    """A table, one image after the other."""
    if not predictions:
        return "None of the images can be used."
    files = max(len("image"), *(len(quote(one.file)) for one in predictions))
    names = max(len("class"), *(len(printable(c.name)) for one in predictions for c in one.choices))
    lines = [f"{'image':<{files}}  {'class':<{names}}  confidence", "-" * (files + names + 14)]
    for one in predictions:
        file = quote(one.file)
        for choice in one.choices:
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
            {"file": str(one.file), "predictions": [vars(choice) for choice in one.choices]}
            for one in predictions
        ],
        "unusable": [{"file": str(file), "reason": why} for file, why in problems.items()],
    }


def report_problems(problems: dict[Path, str]) -> None:
    """A sentence for each image that cannot be used, to stderr."""
    for file, reason in problems.items():
        sys.stderr.write(f"error: {quote(file)} cannot be used: {reason}.\n")


def _manifest(files: Sequence[Path]) -> Manifest:
    """The files as if each lay in the class folder that it lies in, in the order given."""
    absolute = [file.absolute() for file in files]
    folders = sorted({str(file.parent).lstrip("/") for file in absolute})
    labels = [folders.index(str(file.parent).lstrip("/")) for file in absolute]
    names = Names.pack(file.name for file in absolute)
    return Manifest(Path("/"), "", tuple(folders), np.asarray(labels, dtype=np.int64), names)


def _picture(file: Path) -> Image.Image:
    """An image that can be used, not turned by EXIF: as the network sees it."""
    try:
        with warnings.catch_warnings(), Image.open(file) as image:
            warnings.simplefilter("ignore")  # of metadata and transparency; the image is usable
            picture = image.convert("RGB")
    except Exception:  # Pillow raises anything for a damaged image that DALI decodes
        return Image.new("RGB", (PICTURE, PICTURE), "gray")
    picture.thumbnail((PICTURE, PICTURE))  # now: many images are in memory at once
    return picture


@contextlib.contextmanager
def _without_known_damage() -> Iterator[None]:
    """Holds back what decoders write to stderr of damage: `split_usable` has named the files."""
    with decoders_lines() as lines:
        yield
    sys.stderr.writelines(f"{line}\n" for line in lines if not tells_of_damage(line))


@contextlib.contextmanager
def _progress(num_images: int) -> Iterator[Callable[[int], None]]:
    """How far it is, unless it will be over at once; what is yielded takes what has been done."""
    if num_images <= BATCH_SIZE:
        yield lambda count: None
        return
    # Another way to the terminal: what goes to stderr meanwhile may be held back.
    with (
        open(os.dup(2), "w") as terminal,
        contextlib.closing(Progress(num_images, stream=terminal)) as progress,
    ):
        yield progress.advance
