"""Weights files that say of themselves what network they are for and what it is fed.

A weights file is a .safetensors file: tensors by the names of `VGG.state_dict()`, fp32, and in its
metadata a `Description` as JSON. Checkpoints hold one, `vggdist import` writes one from the files
of others, and every command that uses a trained network reads one. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vggdist.artifacts.files import replacing
from vggdist.artifacts.formats import find_format
from vggdist.artifacts.paths import quote
from vggdist.config import Config, DataConfig, ModelConfig, Orientation, Triple
from vggdist.config_file import load_config
from vggdist.errors import WeightsError
from vggdist.model.configurations import configuration_name

METADATA_KEY = "vggdist"
FORMAT = 1
_SAVED_BY = {"torch": "a file of torch.save", "numpy": "an .npz file of NumPy"}


@dataclass(frozen=True)
class Description:
    """What one must know of a network to use its weights."""

    model: ModelConfig
    """The network."""
    crop_size: int
    """Side of the images that it was trained on, pixels."""
    mean: Triple
    """Subtracted from R, G and B, in grey levels from 0 to 255."""
    std: Triple = (1.0, 1.0, 1.0)
    """What R, G and B are divided by then, in grey levels; the paper does not divide."""
    train_scale: tuple[int, int] | None = None
    """Smallest and largest training scale S, pixels; none: not known."""
    classes: tuple[str, ...] = ()
    """Names of the classes in the order of labels; empty: not known."""
    origin: str = ""
    """Where the weights come from, for people."""
    orientation: Orientation | None = None
    """What was done about the EXIF orientation of its training images; none: not known."""

    @property
    def name(self) -> str:
        """What to call the network: its column of Table 1, or custom."""
        name = configuration_name(self.model.configuration)
        return f"{name}-BN" if self.model.batch_norm else name

    @property
    def default_scale(self) -> int:
        """Q of the network's own evaluations: the middle of its training scales (section 4.1); if
        they are unknown, 256 for a crop size of 224, and in proportion for others.
        """
        if self.train_scale is not None:
            return sum(self.train_scale) // 2
        return round(self.crop_size * 256 / 224)

    @property
    def photo_orientation(self) -> Orientation:
        """What is done about the orientation of single photos: as in training; if that is not
        known they are turned, since they are meant as a viewer shows them."""
        return self.orientation or "apply"

    def configure(self, root: str, overrides: Sequence[str]) -> Config:
        """The network's training configuration, with `section.key=value` overrides.

        Args:
            root: the data set.

        Raises:
            ConfigError: lists every problem of the overrides.
        """
        low, high = self.train_scale or (self.crop_size,) * 2
        base = {
            "model": self.model.model_dump(mode="json", exclude={"initialize_from"}),
            "data": {
                "root": root,
                "crop_size": self.crop_size,
                "train_scale_min": low,
                "train_scale_max": high,
                "mean": list(self.mean),
                "std": list(self.std),
                "orientation": self.orientation or "ignore",
            },
        }
        return load_config(None, overrides, base)

    def preprocessing(self, *, whole: bool = False) -> dict[str, Any]:
        """What becomes of an image before the network, and of its output, for other programs.

        docs/conversion.md says what the keys mean.

        Args:
            whole: for a network that is applied to whole images.
        """
        return {
            "orientation": self.photo_orientation,
            "shorter_side": self.default_scale,
            "filter": "bilinear",
            "antialias": True,
            "crop": None if whole else "center",
            "crop_size": None if whole else self.crop_size,
            "channels": "RGB",
            "mean": self.mean,
            "std": self.std,
            "output": "logits",
            "posteriors": "softmax",
            "classes": self.classes,
        }

    def to_metadata(self, preprocessing: Mapping[str, Any] | None = None) -> dict[str, str]:
        """As the metadata of a .safetensors file.

        Args:
            preprocessing: in place of what `preprocessing` returns.
        """
        values = {
            "format": FORMAT,
            "model": self.model.model_dump(mode="json", exclude={"initialize_from"}),
            "crop_size": self.crop_size,
            "mean": self.mean,
            "std": self.std,
            "train_scale": self.train_scale,
            "classes": self.classes,
            "origin": self.origin,
            "preprocessing": preprocessing or self.preprocessing(),
            "orientation": self.orientation,
        }
        # One key alone: safetensors writes several in any order, and equal files have equal hashes.
        return {METADATA_KEY: json.dumps(values)}


@dataclass(frozen=True)
class Weights:
    """A weights file in memory."""

    path: Path
    description: Description
    tensors: Mapping[str, Tensor] = field(repr=False)
    """By the names of `VGG.state_dict()`, on the CPU."""
    sha256: str
    """Of the file: equal ones are the same network."""


def save_weights(path: Path, tensors: Mapping[str, Tensor], description: Description) -> None:
    """Writes a weights file; an old one is replaced at once or not at all.

    Raises:
        WeightsError: it cannot be written.
    """
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        with replacing(path) as temporary:
            save_file(contiguous, temporary, description.to_metadata())
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{quote(path)} cannot be written: {error}.") from error


def load_weights(path: Path) -> Weights:
    """Reads a weights file.

    Raises:
        WeightsError: there is no such file, it is damaged, or it does not describe its network.
    """
    if (found := find_format(path)) != "safetensors":
        raise WeightsError(
            f"{quote(path)} is {_SAVED_BY[found]} and no weights file of vggdist; `vggdist import "
            f"{quote(path)} --configuration D --out {quote(path.with_suffix('.safetensors'))}` "
            "makes one of it."
        )
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            # Copies: where a mapped file's tensors begin depends on the length of its header, and
            # without AVX-512 the last bit of a product on where its matrices begin.
            tensors = {n: opened.get_tensor(n).clone() for n in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{quote(path)} cannot be read as a weights file: {error}. It is cut off or damaged; "
            "fetch it again."
        ) from error
    if METADATA_KEY not in metadata:
        raise WeightsError(
            f"{quote(path)} does not say which network it belongs to; `vggdist import "
            f"{quote(path)} --configuration D --out FILE` writes a file that does."
        )
    return Weights(path, _parse(metadata[METADATA_KEY], path), tensors, sha256)


def read_description(path: Path) -> Description | None:
    """What a .safetensors file says of its network; None: nothing.

    Raises:
        WeightsError: it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{quote(path)} cannot be read as a .safetensors file: {error}."
        ) from error
    return _parse(metadata[METADATA_KEY], path) if METADATA_KEY in metadata else None


def _parse(text: str, path: Path) -> Description:
    try:
        values = json.loads(text)
        if values["format"] != FORMAT:
            raise WeightsError(
                f"{quote(path)} describes its network in format {values['format']}, and this "
                f"version of vggdist reads format {FORMAT}; use the version that wrote it."
            )
        scale, told = values["train_scale"], values.get("orientation")
        return Description(
            model=ModelConfig.model_validate(values["model"]),
            crop_size=int(values["crop_size"]),
            mean=_triple(values["mean"]),
            std=_triple(values["std"]),
            train_scale=None if scale is None else (int(scale[0]), int(scale[1])),
            classes=tuple(map(str, values["classes"])),
            origin=str(values["origin"]),
            orientation=DataConfig(orientation=told).orientation if told else None,
        )
    except (ValueError, KeyError, TypeError, IndexError, ValidationError) as error:
        raise WeightsError(
            f"{quote(path)} describes its network in a way that is damaged: {error}."
        ) from error


def _triple(values: object) -> Triple:
    red, green, blue = (float(value) for value in values)  # type: ignore[attr-defined]
    return red, green, blue
