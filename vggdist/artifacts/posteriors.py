"""Posteriors files: what one network says of every image of a set, by one protocol at one scale Q.

Evaluation computes them once; fusion, averages over scales and the paper's tables are arithmetic on
these files. A file is a NumPy .npz archive without pickled objects; its parts carry checksums.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vggdist.artifacts.contents import UNKNOWN, ContentsDigest
from vggdist.artifacts.files import ARCHIVE_ERRORS, pack_names, unpack_names, write_arrays
from vggdist.artifacts.paths import quote
from vggdist.errors import WeightsError

FORMAT = 1
Protocol = Literal["center-crop", "dense", "multi-crop"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
Values = NDArray[np.float16] | NDArray[np.float32]


@dataclass(frozen=True)
class Source:
    """What was computed: two files with equal sources hold equal posteriors, up to rounding."""

    network: str
    """Name of the network: its column of Table 1, with -BN where it has batch normalization."""
    train_scale: tuple[int, int] | None
    """Training scale S, smallest and largest, pixels; none: not known."""
    weights: str
    """SHA-256 of the weights file."""
    protocol: Protocol
    """How the network was applied to an image."""
    scale: int
    """Q, the rescaled shorter side, pixels."""
    flip: bool
    """Whether the posteriors of the mirrored image are averaged in."""
    spatial_average: str
    """Dense only: logits or posteriors, whichever is averaged over the score map; else empty."""
    precision: str
    """Of the network's arithmetic."""
    images: str
    """Digest of the manifest of the images."""
    contents: ContentsDigest = field(default=UNKNOWN, compare=False)
    """What was in them; whether two are the same is told by `ContentsDigest.same_as` alone."""

    @property
    def title(self) -> str:
        """`D [256;512], dense, Q 384`, for people."""
        trained = "" if self.train_scale is None else f" {format_train_scale(self.train_scale)}"
        flip = "" if self.flip else ", no flip"
        return f"{self.network}{trained}, {self.protocol}, Q {self.scale}{flip}"


@dataclass(frozen=True, eq=False)
class Posteriors:
    """Posteriors of all images of a set, in the order of its manifest."""

    source: Source
    values: Values = field(repr=False)
    """(num_images, num_classes), each row adds up to 1."""
    labels: NDArray[np.int64] = field(repr=False)
    """(num_images,)."""
    names: tuple[str, ...] = field(repr=False)
    """(num_images,), class/file."""
    classes: tuple[str, ...] = field(repr=False)
    """Names of the classes, in the order of labels."""


@dataclass(frozen=True, eq=False)
class PosteriorsFile:
    """A posteriors file in which only the posteriors stay on the disk, to be read in order."""

    path: Path
    source: Source
    labels: NDArray[np.int64] = field(repr=False)
    """(num_images,)."""
    classes: tuple[str, ...] = field(repr=False)
    """Names of the classes, in the order of labels."""
    dtype: np.dtype[Any]
    """Of the posteriors, float16 or float32."""

    def rows(self, num_images: int) -> Iterator[Values]:
        """The posteriors of all images, `num_images` at a time.

        Raises:
            WeightsError: the file is damaged.
        """
        with _archive(self.path) as archive, archive.open("posteriors.npy") as part:
            (left, num_classes), dtype = _read_form(part)
            while left:
                taken = min(num_images, left)
                left -= taken
                # With its last bytes, zipfile compares the part's checksum.
                data = part.read(taken * num_classes * dtype.itemsize)
                values = np.frombuffer(data, dtype).reshape(taken, num_classes)
                if not np.isfinite(values).all():
                    raise ValueError("some of its posteriors are not numbers")
                yield values


def format_train_scale(scale: tuple[int, int]) -> str:
    """S as in the paper: `256`, or `[256;512]` where it is drawn for each image."""
    smallest, largest = scale
    return str(smallest) if smallest == largest else f"[{smallest};{largest}]"


def save_posteriors(path: Path, posteriors: Posteriors) -> None:
    """Writes a posteriors file; an old one is replaced at once or not at all.

    Raises:
        WeightsError: it cannot be written, or the posteriors are no numbers.
    """
    require_finite(posteriors.values, "posteriors", posteriors.names.__getitem__)
    header = json.dumps({"format": FORMAT, **asdict(posteriors.source)})
    arrays = {
        "header": pack_names([header]),
        "posteriors": np.ascontiguousarray(posteriors.values),
        "labels": posteriors.labels,
        "names": pack_names(posteriors.names),
        "classes": pack_names(posteriors.classes),
    }
    try:
        write_arrays(path, arrays)
    except OSError as error:
        raise WeightsError(f"posteriors file {quote(path)} cannot be written: {error}.") from error


def require_finite(values: NDArray[Any], what: str, name: Callable[[int], str]) -> None:
    """Refuses what a network that has exploded says of images.

    Args:
        values: (num_images, n).
        what: they are, in the plural.
        name: of an image, by its row.

    Raises:
        WeightsError: some are infinite or not numbers.
    """
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise WeightsError(
            f"the network's {what} are infinite or not numbers for {len(bad)} of {len(values)} "
            f"images, such as {name(int(bad[0]))}: it has exploded in training, or its weights are "
            "damaged. Take an older checkpoint, or other weights."
        )


def load_posteriors(path: Path) -> Posteriors:
    """Reads a posteriors file.

    Raises:
        WeightsError: there is none, it is cut off or damaged, or it is something else.
    """
    file = open_posteriors(path)
    (values,) = file.rows(len(file.labels))
    return Posteriors(file.source, values, file.labels, read_names(file), file.classes)


def open_posteriors(path: Path) -> PosteriorsFile:
    """Reads everything but posteriors and names of images.

    Raises:
        WeightsError: as `load_posteriors`.
    """
    with _archive(path) as archive:
        source = _parse_source(path, unpack_names(_read_part(archive, "header"))[0])
        labels = _read_part(archive, "labels").astype(np.int64, casting="safe")
        classes = unpack_names(_read_part(archive, "classes"))
        with archive.open("posteriors.npy") as part:
            shape, dtype = _read_form(part)
        if shape != (len(labels), len(classes)):
            raise ValueError("its parts do not belong together")
        if not (len(labels) and labels.min() >= 0 and labels.max() < len(classes)):
            raise ValueError("it has no images, or labels beyond its classes")
    return PosteriorsFile(path, source, labels, classes, dtype)


def read_names(file: PosteriorsFile) -> tuple[str, ...]:
    """The names of the images, class/file.

    Raises:
        WeightsError: the file is damaged.
    """
    with _archive(file.path) as archive:
        names = unpack_names(_read_part(archive, "names"))
        if len(names) != len(file.labels):
            raise ValueError("its parts do not belong together")
    return names


def holds_posteriors(path: Path) -> bool:
    """Whether an archive has posteriors in it; others, such as features files, may lie beside them.

    Raises:
        WeightsError: it cannot be read at all.
    """
    with _archive(path) as archive:
        return "posteriors.npy" in archive.namelist()


def _parse_source(path: Path, header: str) -> Source:
    values = dict(json.loads(header))
    if values.pop("format") != FORMAT:
        raise WeightsError(
            f"{quote(path)} is a posteriors file of another version of vggdist; `vggdist evaluate` "
            "writes it anew."
        )
    if (scale := values["train_scale"]) is not None:
        smallest, largest = scale
        values["train_scale"] = (int(smallest), int(largest))
    if values["protocol"] not in PROTOCOLS:
        raise ValueError(f"protocol {values['protocol']!r} is none of {', '.join(PROTOCOLS)}")
    values["contents"] = ContentsDigest.from_mapping(values.get("contents", {}))
    return Source(**values)


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """A posteriors file's parts; whatever makes them unreadable becomes a `WeightsError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError as error:
        raise WeightsError(
            f"there is no posteriors file {quote(path)}; `vggdist evaluate` writes one."
        ) from error
    except ARCHIVE_ERRORS as error:
        raise WeightsError(
            f"{quote(path)} cannot be read as a posteriors file: {str(error).rstrip('.')}. It is "
            "cut off, damaged or something else; `vggdist evaluate` writes it anew."
        ) from error


def _read_part(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with archive.open(f"{name}.npy") as part:
        array: NDArray[Any] = np.lib.format.read_array(part, allow_pickle=False)
    return array


def _read_form(part: IO[bytes]) -> tuple[tuple[int, int], np.dtype[Any]]:
    """Shape and type of the posteriors; `part` then stands at their first byte."""
    version = np.lib.format.read_magic(part)
    if version != (1, 0):
        raise ValueError(f"its posteriors are in NumPy's format {version}, not (1, 0)")
    shape, column_major, dtype = np.lib.format.read_array_header_1_0(part)
    if column_major or len(shape) != 2 or dtype not in (np.float16, np.float32):
        raise ValueError(f"its posteriors are {dtype} of shape {shape}")
    return shape, dtype
