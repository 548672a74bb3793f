"""The images of one split as a fixed list: numbers, labels, and where the bytes are.

A label is the index of a class in `Manifest.classes`. An image is a file below its class folder, or
at an offset of a shard; the list is the same for both, so a training may switch between them.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggdist.artifacts.contents import UNKNOWN, ContentsDigest
from vggdist.artifacts.files import pack_names
from vggdist.artifacts.paths import quote

_VERSION = 1  # of the digest


class Place(NamedTuple):
    """Where the bytes of an image are."""

    path: bytes
    """The path of the file, as bytes for the operating system."""
    offset: int
    """Offset in the file."""
    num_bytes: int
    """Number of bytes; -1: the whole file."""


class Names(Sequence[bytes]):
    """Many byte strings packed in one: a list of 1.3 million would take seconds and 100 MB.

    Args:
        packed: the strings, each terminated by a NUL byte.
    """

    def __init__(self, packed: bytes) -> None:
        self.packed = packed
        self._ends = np.flatnonzero(np.frombuffer(packed, dtype=np.uint8) == 0)

    @classmethod
    def pack(cls, names: Iterable[str]) -> Names:
        """The names as the operating system's bytes."""
        return cls(pack_names(names).tobytes())

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> bytes:  # type: ignore[override]
        start = int(self._ends[i - 1]) + 1 if i else 0
        return self.packed[start : int(self._ends[i])]

    def unpack(self, first: int = 0, last: int | None = None) -> list[str]:
        """The names in [first, last) as text."""
        start = int(self._ends[first - 1]) + 1 if first else 0
        stop = len(self.packed) if last is None else (int(self._ends[last - 1]) + 1 if last else 0)
        return os.fsdecode(self.packed[start:stop]).split("\0")[:-1]


@dataclass(frozen=True, eq=False)
class Shards:
    """Tar files in the split's folder, and the positions of the images in them."""

    files: tuple[str, ...]
    """Their names."""
    sizes: NDArray[np.int64]
    """(num_files,), length of each file in bytes."""
    file: NDArray[np.int32]
    """(num_images,), the file of each image, an index into `files`."""
    offset: NDArray[np.int64]
    """(num_images,), offset of the image's bytes in it."""


@dataclass(frozen=True, eq=False)
class Contents:
    """Contents of the files; needed to verify them, not to train."""

    sizes: NDArray[np.int32]
    """(num_images, 2), width and height, pixels; 0 if the header could not be read."""
    sha256: NDArray[np.uint8]
    """(num_images, 32), of the encoded bytes; 0 if they were not read."""
    times: NDArray[np.int64] | None = None
    """(num_images,), modification time of each image's file when these bytes were first read, ns;
    -1: unknown; None: unknown for all."""
    file_times: NDArray[np.int64] | None = None
    """(num_files,), modification times of the images' files, or of the shards, when last verified
    to hold these contents, ns; None: unknown."""
    orientations: NDArray[np.uint8] | None = None
    """(num_images,), EXIF orientation, 1 to 8; 0: unknown; None: unknown for all."""


@dataclass(frozen=True, eq=False)
class Manifest:
    """The images of one split, numbered from 0: by class, and by file name within a class."""

    folder: Path
    """The folder that holds the class folders, or the shards."""
    split: str
    """train or val; empty for class folders without a split."""
    classes: tuple[str, ...]
    """Names of the classes; a label is an index into this tuple."""
    labels: NDArray[np.int64]
    """(num_images,), the label of each image, ascending."""
    names: Names = field(repr=False)
    """File names relative to the class folders."""
    resized: str = ""
    """How the images were resized when packed; empty if they were not."""
    num_bytes: NDArray[np.int64] | None = None
    """(num_images,), length of each encoded image; None: not yet known."""
    shards: Shards | None = None
    """Where the images are; None: each in its own file."""
    quarantine: frozenset[int] = frozenset()
    """Images known to be bad. They keep their numbers; training replaces them with others.
    """
    contents: ContentsDigest = UNKNOWN
    """Contents of the files, as far as known."""
    digest: str = field(init=False)
    """SHA-256 over classes, labels, names and `resized`: the same digest means the same images in
    the same order. It depends neither on their location nor on whether they are packed.
    """

    def __post_init__(self) -> None:
        assert len(self.labels) == len(self.names)
        sha = hashlib.sha256(f"vggdist manifest {_VERSION}".encode())
        parts = [
            os.fsencode("\0".join(self.classes)),
            self.labels.astype("<i8").tobytes(),
            self.names.packed,
        ]
        for part in parts + ([self.resized.encode()] if self.resized else []):
            sha.update(len(part).to_bytes(8, "little"))
            sha.update(part)
        object.__setattr__(self, "digest", sha.hexdigest())

    @property
    def num_images(self) -> int:
        """Images of the split, those in quarantine included."""
        return len(self.labels)

    def name(self, image: int) -> str:
        """The name of an image: class/file."""
        return os.fsdecode(self._encoded_name(image))

    def place(self, image: int) -> Place:
        """Where the bytes of an image are."""
        num_bytes = -1 if self.num_bytes is None else int(self.num_bytes[image])
        folder = os.fsencode(self.folder) + b"/"
        if self.shards is None:
            # Not the known length: a file that has since been replaced is still an image.
            return Place(folder + self._encoded_name(image), 0, -1)
        file = os.fsencode(self.shards.files[self.shards.file[image]])
        return Place(folder + file, int(self.shards.offset[image]), num_bytes)

    def path(self, image: int) -> Path:
        """The file of an image: its own, or a shard."""
        return Path(os.fsdecode(self.place(image).path))

    def described(self, image: int) -> str:
        """Where an image is, for a message: its path, or its shard and its name."""
        path = quote(self.path(image))
        return path if self.shards is None else f"{path} ({quote(self.name(image))})"

    def numbers(self, names: Iterable[str]) -> Iterator[tuple[str, int | None]]:
        """Each name (class/file) with the number of its image, or None if there is none."""
        labels = {name: label for label, name in enumerate(self.classes)}
        for name in names:
            folder, _, file = name.partition("/")
            number = None
            if folder in labels:
                first, last = np.searchsorted(self.labels, [labels[folder], labels[folder] + 1])
                found = bisect_left(
                    range(last), file, lo=int(first), key=lambda i: os.fsdecode(self.names[i])
                )
                if found < last and os.fsdecode(self.names[found]) == file:
                    number = found
            yield name, number

    def with_classes(self, classes: tuple[str, ...]) -> Manifest:
        """The same images, with labels for another order of the same classes."""
        if classes == self.classes:
            return self
        label = {name: label for label, name in enumerate(classes)}
        labels = np.array([label[name] for name in self.classes], dtype=np.int64)[self.labels]
        order = np.argsort(labels, kind="stable")
        shards = self.shards
        if shards is not None:
            shards = replace(shards, file=shards.file[order], offset=shards.offset[order])
        names = self.names.unpack()
        return replace(
            self,
            classes=classes,
            labels=labels[order],
            names=Names.pack(names[image] for image in order),
            num_bytes=None if self.num_bytes is None else self.num_bytes[order],
            shards=shards,
            quarantine=frozenset(np.flatnonzero(np.isin(order, list(self.quarantine))).tolist()),
        )

    def _encoded_name(self, image: int) -> bytes:
        return os.fsencode(self.classes[self.labels[image]]) + b"/" + self.names[image]


@dataclass(frozen=True)
class Dataset:
    """A training set and a validation set with the same classes."""

    train: Manifest
    val: Manifest

    @property
    def root(self) -> Path:
        """The folder of the data set."""
        return self.train.folder.parent


def from_classes(
    folder: Path, split: str, classes: Iterable[tuple[str, Sequence[str]]]
) -> Manifest:
    """The manifest of class folders whose files have not been read.

    Args:
        classes: each class, in label order, with the sorted names of its images.
    """
    found, counts, packed = [], [], []
    for name, images in classes:
        found.append(name)
        counts.append(len(images))
        packed.append(Names.pack(images).packed)
    labels = np.repeat(np.arange(len(found), dtype=np.int64), counts)
    return Manifest(folder, split, tuple(found), labels, Names(b"".join(packed)))
