"""ImageNet's development kit: its classes, and the labels of the validation images."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggdist.artifacts.paths import quote
from vggdist.errors import DataError

_META = re.compile(r"(\./)?[^/]+/data/meta\.mat")
_GROUND_TRUTH = re.compile(r"(\./)?[^/]+/data/ILSVRC2012_validation_ground_truth\.txt")
_MAX_BYTES = 64 * 2**20  # uncompressed, all of it; the published one has 4 MiB
_MAX_FILE_BYTES = 16 * 2**20
_REMEDY = "Use ILSVRC2012_devkit_t12.tar.gz as image-net.org publishes it."


@dataclass(frozen=True, eq=False)
class Devkit:
    """What the kit says of the classes. A label is a place among the sorted WordNet ids."""

    classes: tuple[str, ...]
    """WordNet ids of the leaves of its tree, sorted."""
    num_train_images: NDArray[np.int64]
    """(num_classes,), training images of each class."""
    val_labels: NDArray[np.int64]
    """(num_lines,), the labels of ILSVRC2012_val_00000001.JPEG and of those after it."""


def read_devkit(path: Path) -> Devkit:
    """Reads the kit in memory; nothing is extracted.

    Raises:
        DataError: it is not the kit, or cannot be read.
    """
    meta, ground_truth = _two_files(path)
    ids, classes, num_train_images = _leaves(path, meta)
    labels = {number: label for label, number in enumerate(ids)}
    lines = ground_truth.decode("ascii", "replace").split()
    val_labels = np.empty(len(lines), dtype=np.int64)
    for i, line in enumerate(lines):
        label = labels.get(int(line)) if line.isdecimal() else None
        if label is None:
            raise _error(
                path,
                f"line {i + 1} of ILSVRC2012_validation_ground_truth.txt is {line[:40]!r}, which "
                f"is no ILSVRC2012_ID of a class in meta.mat",
            )
        val_labels[i] = label
    return Devkit(classes, num_train_images, val_labels)


def _two_files(path: Path) -> tuple[bytes, bytes]:
    """The contents of meta.mat and of the ground truth."""
    try:
        with gzip.open(path) as packed:
            content = packed.read(_MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _error(path, f"it cannot be unpacked ({error})") from error
    if len(content) > _MAX_BYTES:
        raise _error(path, f"unpacked it has more than {_MAX_BYTES >> 20} MiB")
    found: dict[re.Pattern[str], bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            for member in tar:
                for pattern in (_META, _GROUND_TRUTH):
                    if pattern.fullmatch(member.name):
                        found[pattern] = _content(path, tar, member)
    except tarfile.TarError as error:
        raise _error(path, f"what it unpacks to is no tar file ({error})") from error
    if len(found) < 2:
        missing = "data/meta.mat" if _META not in found else "the validation ground truth"
        raise _error(path, f"it does not hold {missing}")
    return found[_META], found[_GROUND_TRUTH]


def _content(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if not member.isreg() or member.issparse() or not 0 <= member.size <= _MAX_FILE_BYTES:
        raise _error(
            path, f"{member.name} is no regular file of at most {_MAX_FILE_BYTES >> 20} MiB"
        )
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def _leaves(path: Path, meta: bytes) -> tuple[list[int], tuple[str, ...], NDArray[np.int64]]:
    """ILSVRC2012_ID, WordNet id and number of training images of each class, by WordNet id."""
    # Slow to import, and only this needs it.
    from scipy.io import loadmat  # type: ignore[import-untyped]

    try:
        synsets: Any = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
        leaves = sorted(
            (str(synset["WNID"]), int(synset["ILSVRC2012_ID"]), int(synset["num_train_images"]))
            for synset in synsets
            if int(synset["num_children"]) == 0
        )
    except Exception as error:  # scipy raises anything on a damaged file
        reason = f"{type(error).__name__}: {error}"
        raise _error(path, f"its meta.mat cannot be understood ({reason})") from error
    names = [name for name, _, _ in leaves]
    ids = [number for _, number, _ in leaves]
    wrong = [name for name in names if not re.fullmatch(r"n\d{8}", name)]
    if wrong:
        raise _error(path, f"a class in its meta.mat is called {wrong[0]!r}, which is no WNID")
    if len(set(names)) < len(names) or len(set(ids)) < len(ids) or not names:
        raise _error(path, "its meta.mat holds no classes, or one of them twice")
    return ids, tuple(names), np.array([count for _, _, count in leaves], dtype=np.int64)


def _error(path: Path, problem: str) -> DataError:
    return DataError(f"The devkit {quote(path)} cannot be used: {problem}. {_REMEDY}")
