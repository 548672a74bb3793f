"""Features files: one descriptor for each image, for classifiers that are trained on them.

A file is a NumPy .npz archive without pickled objects: `X` float32 (n, d), `y` labels (n,), `files`
names (n,), `classes` names in the order of labels, and, in those of `vggdist features`, `header`:
JSON that says what was computed. Others may write and read them as well.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vggdist.artifacts.contents import UNKNOWN, ContentsDigest
from vggdist.artifacts.files import ARCHIVE_ERRORS, temporary_path, write_arrays
from vggdist.artifacts.paths import quote
from vggdist.artifacts.posteriors import format_train_scale
from vggdist.errors import WeightsError

FORMAT = 1
FeatureLayer = Literal["fc7", "pool5"]
Aggregate = Literal["average", "stack"]


@dataclass(frozen=True)
class Recipe:
    """How descriptors were computed."""

    network: str
    """The network's name: its column of Table 1, with -BN where it has batch normalization."""
    train_scale: tuple[int, int] | None
    """Training scale S, smallest and largest, pixels; none: not known."""
    weights: str
    """SHA-256 of the weights file."""
    layer: FeatureLayer
    """Whose activations they are."""
    scales: tuple[int, ...]
    """Q, pixels."""
    aggregate: Aggregate
    """Whether the scales' descriptors were averaged or stacked."""
    flip: bool
    """Whether the mirrored image's descriptor was averaged in."""
    precision: str
    """Of the network's arithmetic."""
    dataset: str
    """Name of the images' folder."""
    contents: ContentsDigest = UNKNOWN
    """What was in the images."""

    @property
    def trained(self) -> str:
        """`D [256;512]`, for people."""
        scale = "" if self.train_scale is None else f" {format_train_scale(self.train_scale)}"
        return self.network + scale

    @property
    def method(self) -> str:
        """`fc7, Q 256, 384, 512 stacked`, for people."""
        joined = {"average": "averaged", "stack": "stacked"}[self.aggregate]
        scales = ", ".join(map(str, self.scales))
        many = f" {joined}" if len(self.scales) > 1 else ""
        return f"{self.layer}, Q {scales}{many}{'' if self.flip else ', no flip'}"


@dataclass(frozen=True, eq=False)
class Features:
    """Descriptors of images, and their classes."""

    descriptors: NDArray[np.float32] = field(repr=False)
    """(n, d)."""
    labels: NDArray[np.int64] = field(repr=False)
    """(n,)."""
    files: tuple[str, ...] = field(repr=False)
    """(n,), each another name."""
    classes: tuple[str, ...]
    """Names in the order of labels."""
    recipe: Recipe | None = None
    """None: not known."""


def require_writable(path: Path) -> None:
    """Finds out before hours of work whether `save_features` could write there.

    Raises:
        WeightsError: it could not.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(f"{quote(path)} is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_path(path)
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise WeightsError(f"features file {quote(path)} cannot be written: {error}.") from error


def save_features(path: Path, features: Features) -> None:
    """Writes a features file; an old one is replaced at once or not at all.

    Raises:
        WeightsError: it cannot be written.
    """
    header = ""
    if features.recipe is not None:
        header = json.dumps({"format": FORMAT, **asdict(features.recipe)})
    arrays: dict[str, NDArray[Any]] = {
        "X": features.descriptors,
        "y": features.labels,
        "files": np.array(features.files, dtype=np.str_),
        "classes": np.array(features.classes, dtype=np.str_),
        "header": np.array(header),
    }
    try:
        write_arrays(path, arrays)
    except OSError as error:
        raise WeightsError(f"features file {quote(path)} cannot be written: {error}.") from error


def load_features(path: Path) -> Features:
    """Reads a features file.

    Raises:
        WeightsError: there is none, it is cut off or damaged, or it is something else.
    """
    try:
        with np.load(path, allow_pickle=False) as parts:
            header = str(parts["header"]) if "header" in parts else ""
            features = Features(
                parts["X"].astype(np.float32, casting="same_kind"),
                parts["y"].astype(np.int64, casting="safe"),
                _names(parts["files"]),
                _names(parts["classes"]),
                _parse(path, header) if header else None,
            )
            _check(features)
    except FileNotFoundError as error:
        raise WeightsError(
            f"there is no features file {quote(path)}; `vggdist features` writes one."
        ) from error
    except ARCHIVE_ERRORS as error:
        reason = str(error).rstrip(".")
        if "pickle" in reason:  # NumPy says how to load them all the same
            reason = "it holds Python objects, which could run any code and stay in the file"
        raise WeightsError(
            f"{quote(path)} cannot be read as a features file: {reason}. It is cut off, "
            "damaged or something else; `vggdist features` writes one."
        ) from error
    return features


def _names(array: NDArray[np.str_]) -> tuple[str, ...]:
    if array.dtype.kind != "U" or array.ndim != 1:
        raise ValueError(f"its names are {array.dtype} of shape {array.shape}")
    return tuple(array.tolist())


def _check(features: Features) -> None:
    """Raises a ValueError where the parts do not belong together."""
    shape, labels, files = features.descriptors.shape, features.labels, features.files
    if len(shape) != 2 or not all(shape):
        raise ValueError(f"its X has the shape {shape}, not (images, units)")
    if labels.shape != shape[:1] or len(files) != shape[0]:
        raise ValueError(
            f"its parts do not belong together: X has {shape[0]} rows, y the shape {labels.shape}, "
            f"and there are {len(files)} files"
        )
    if labels.min() < 0 or labels.max() >= len(features.classes):
        raise ValueError(f"its labels do not fit its {len(features.classes)} classes")
    name, count = Counter(files).most_common(1)[0]
    if count > 1:
        raise ValueError(f"it has {name!r} twice")
    if not np.isfinite(features.descriptors).all():
        raise ValueError("some descriptors are infinite or not numbers")


def _parse(path: Path, header: str) -> Recipe:
    values = dict(json.loads(header))
    if values.pop("format") != FORMAT:
        raise WeightsError(
            f"{quote(path)} is a features file of another version of vggdist; `vggdist features` "
            "writes it anew."
        )
    low_high = values["train_scale"]
    values["train_scale"] = None if low_high is None else (int(low_high[0]), int(low_high[1]))
    values["scales"] = tuple(map(int, values["scales"]))
    values["contents"] = ContentsDigest.from_mapping(values.get("contents", {}))
    return Recipe(**values)
