"""What `import vggdist` offers: networks with their preprocessing, trainings, evaluations."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn.functional import interpolate

from vggdist.artifacts.paths import quote
from vggdist.artifacts.run_files import read_result
from vggdist.artifacts.run_folder import open_weights
from vggdist.config import Config, Orientation, split_batch
from vggdist.config_file import load_config, to_yaml
from vggdist.data.bad_image import reading_problem
from vggdist.data.dataset import open_images
from vggdist.data.geometry import CENTER, require_scales, source_windows
from vggdist.data.loader import TrainingLoader, open_training_loader
from vggdist.distributed.device import choose_device
from vggdist.distributed.precision import choose_precision
from vggdist.distributed.process import Process
from vggdist.errors import ConfigError, DataError, VggdistError
from vggdist.evaluate import Request, evaluate
from vggdist.evaluation.report import summarize
from vggdist.model.class_names import class_names
from vggdist.model.initialization import build_initialized
from vggdist.model.loading import build_network
from vggdist.model.vgg import VGG

ImageLike = str | Path | Image.Image | NDArray[np.uint8] | Tensor
"""A file, a Pillow image, or grey levels (height, width, 3) uint8."""
Images = ImageLike | list[ImageLike] | tuple[ImageLike, ...]


class Classifier(nn.Module):
    """A trained network, together with what its images go through and what its classes are called.

    Attributes:
        network: (n, 3, crop_size, crop_size), preprocessed -> logits (n, num_classes).
        classes: names, in the order of labels.
        crop_size: side of what the network is shown, pixels.
        scale: Q, the shorter side to which images are rescaled first, pixels.
        orientation: apply, if photos are turned by their EXIF orientation first; or ignore.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: VGG,
        classes: Sequence[str],
        crop_size: int,
        scale: int,
        mean: Sequence[float],
        std: Sequence[float],
        orientation: Orientation = "apply",
    ) -> None:
        super().__init__()
        self.network, self.classes = network, tuple(classes)
        self.crop_size, self.scale, self.orientation = crop_size, scale, orientation
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).reshape(1, 3, 1, 1), persistent=False)

    def preprocess(self, images: Images) -> Tensor:
        """The centre crop of each image at the scale Q, less the mean and divided by the deviation.

        Returns:
            (n, 3, crop_size, crop_size) fp32 on the network's device.

        Raises:
            DataError: a file cannot be read as an image, or an array has another shape or type.
        """
        several = images if isinstance(images, list | tuple) else [images]
        crops = torch.cat([self._crop(_pixels(image, self.orientation)) for image in several])
        return (crops.to(self.mean.device, torch.float32) - self.mean) / self.std

    def forward(self, images: Images) -> Tensor:
        """Class posteriors of images, (n, num_classes) fp32; an image alone is a batch of one."""
        posteriors: Tensor = self.network(self.preprocess(images)).float().softmax(dim=1)
        return posteriors

    @torch.inference_mode()
    def classify(self, images: Images, top: int = 1) -> list[list[tuple[str, float]]]:
        """For each image its most probable classes, with their posteriors, the first one first."""
        values, labels = self(images).topk(min(top, len(self.classes)))
        return [
            [(self.classes[label], value) for label, value in zip(*row, strict=True)]
            for row in zip(labels.tolist(), values.tolist(), strict=True)
        ]

    def _crop(self, pixels: Tensor) -> Tensor:
        """(1, 3, crop_size, crop_size) uint8 of (height, width, 3)."""
        place = [[CENTER, CENTER]]
        sides, starts = source_windows([pixels.shape[:2]], [self.scale], place, self.crop_size)
        (side,), ((y, x),) = sides.tolist(), starts.tolist()
        window = pixels[y : y + side, x : x + side].permute(2, 0, 1).unsqueeze(0)
        return interpolate(window, (self.crop_size,) * 2, mode="bilinear", antialias=True)


def load(
    network: str | Path,
    device: str | torch.device | None = None,
    scale: int | None = None,
) -> Classifier:
    """A trained network of a run folder, RUN@best, a checkpoint or a weights file, to evaluate.

        posteriors = vggdist.load("runs/photos")(["a.jpg", "b.jpg"])

    Args:
        network: where it is.
        device: where it computes; none: the first GPU, or the CPU where there is none.
        scale: Q, pixels; none: as in the network's own evaluations.

    Raises:
        VggdistError: there is no network, or its weights are damaged.
        ConfigError: the scale is below the network's crop size.
    """
    weights = open_weights(str(network))
    told = weights.description
    (scale,) = require_scales([scale or told.default_scale], told.crop_size, "scale")
    vgg, names = build_network(weights), class_names(told)
    how = told.mean, told.std, told.photo_orientation
    classifier = Classifier(vgg, names, told.crop_size, scale, *how)
    where = choose_device("auto", 0) if device is None else torch.device(device)
    return classifier.to(where).eval()


def build(configuration: str = "D", seed: int = 0, **model: Any) -> VGG:
    """A network with its first weights, as a training begins.

    Args:
        configuration: A, A-LRN, B, C, D or E, a column of the paper's Table 1.
        seed: of the weights.
        model: other keys of the section `model`, such as num_classes=5 or batch_norm=True.

    Raises:
        ConfigError: what is wrong with them.
    """
    config = load_config(None, (), {"model": {"configuration": configuration, **model}})
    return build_initialized(config.model, config.data.crop_size, seed)


def open_loader(config: Config) -> TrainingLoader:
    """The batches of a training of one rank, from its first step on: `with` closes it.

    `config.data.root` is a data set, a folder of class folders, or a folder of images.

    Raises:
        ConfigError: data.root is not set.
        DataError: there are no images.
    """
    if config.data.root is None:
        raise ConfigError("data.root is not set; it names the images: data.root=/path/to/images.")
    device = choose_device(config.device, 0)
    precision, _ = choose_precision(config.precision, device)
    process = Process(0, 0, 1, device, len(os.sched_getaffinity(0)))
    return open_training_loader(
        config.model_copy(update={"precision": precision}),
        open_images(config.data.root),
        split_batch(config.batch, 1),
        process,
    )


def train(config: Config, num_ranks: int = 1) -> Mapping[str, Any]:
    """Trains, or continues a training, in processes of its own.

    Args:
        config: of the training; its `run.folder` keeps everything.
        num_ranks: processes on this machine.

    Returns:
        What `result.json` in the run folder says: errors, steps, seconds.

    Raises:
        VggdistError: it did not come to its end; what it printed says why.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        file.write(to_yaml(config))
        file.flush()
        command = [sys.executable, "-m", "vggdist", "train", "--config", file.name]
        code = subprocess.run([*command, "--ranks", str(num_ranks)], check=False).returncode
    if code != 0:
        raise VggdistError(f"the training ended with exit code {code}; what it printed says why.")
    return read_result(Path(config.run_folder)) or {}


def compute_errors(
    network: str | Path,
    data: str | Path,
    protocols: Sequence[Literal["center-crop", "dense", "multi-crop"]] = ("dense",),
    scales: Sequence[int] = (),
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> Mapping[str, Any]:
    """Errors of a trained network on the validation images of a data set; posteriors are kept.

    Args:
        network: a run folder, a checkpoint or a weights file.
        data: the data set.
        protocols: of the paper.
        scales: Q, pixels; empty: the middle of the training scales (section 4.1).
        out: folder for the posteriors files; none: `posteriors` beside the weights.
        overrides: `section.key=value`, such as device=cpu.

    Returns:
        As `vggdist evaluate --json` writes it; errors are fractions.

    Raises:
        VggdistError: something that the user can solve.
    """
    request = Request(
        str(network),
        str(data),
        protocols=tuple(protocols),
        scales=tuple(scales),
        out=None if out is None else Path(out),
        overrides=tuple(overrides),
    )
    evaluated = evaluate(request)
    assert evaluated is not None  # one rank is the main one
    return summarize(evaluated)


def _pixels(image: ImageLike, orientation: Orientation) -> Tensor:
    """(height, width, 3) uint8."""
    if isinstance(image, str | Path):
        try:
            with Image.open(image) as opened:
                return _pixels(opened, orientation)
        except (OSError, ValueError, SyntaxError) as error:
            reason = reading_problem(error)
            raise DataError(f"The image {quote(image)} cannot be used: {reason}.") from error
    if isinstance(image, Image.Image):
        turned = ImageOps.exif_transpose(image) if orientation == "apply" else image
        image = np.array(turned.convert("RGB"))
    pixels = torch.as_tensor(image)
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise DataError(
            f"An image has shape {tuple(pixels.shape)} and type {pixels.dtype}; it must be (height,"
            " width, 3) and uint8, or a file, or a Pillow image."
        )
    return pixels.cpu()
