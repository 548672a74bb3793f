"""ImageNet's archives as a source of images: nested tar files that are read in one pass.

Nothing is ever extracted by the name that an archive gives: only regular files with the names that
ImageNet has are taken, and each goes where this program puts it.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggdist.artifacts.contents import UNKNOWN
from vggdist.artifacts.names import shortened
from vggdist.artifacts.paths import quote
from vggdist.errors import DataError
from vggdist.prepare.devkit import read_devkit
from vggdist.prepare.ilsvrc2012 import ARCHIVES, NUM_CLASSES, NUM_IMAGES
from vggdist.prepare.sources import SourceImage

_MAX_IMAGE_BYTES = 64 * 2**20
_MAX_CLASS_BYTES = 64 * 2**30
_MAX_IMAGES = 2_000_000
_MAX_HEADER_BYTES = 2**20  # of an extended header, which tarfile reads at once
_CLASS_NAME = r"(n\d{8})\.tar"
_VAL_NAME = r"ILSVRC2012_val_(\d{8})\.JPEG"


class ImageNetArchives:
    """ILSVRC2012's three archives as image-net.org publishes them.

    Args:
        train: a tar of one tar for each class.
        val: a tar of images.
        devkit: the development kit (Task 1 and 2), which knows the classes and labels.

    Raises:
        DataError: one of them is missing, or the kit is not the kit.
    """

    resized = ""
    contents = UNKNOWN  # their lengths and times stand in `identity`

    def __init__(self, train: Path, val: Path, devkit: Path) -> None:
        self._paths = {"train": train, "val": val, "devkit": devkit}
        for name, path in self._paths.items():
            if not path.is_file():
                raise DataError(
                    f"--{name} {quote(path)} is no file; it is to be the archive "
                    f"{ARCHIVES[name].name} of image-net.org."
                )
        self._require_in_place()
        self._kit = read_devkit(devkit)
        self.classes = self._kit.classes
        self.num_images = int(self._kit.num_train_images.sum()) + len(self._kit.val_labels)

    def _require_in_place(self) -> None:
        """Refuses archives that were given for each other, before anything is written."""
        found = {name: _recognize(path) for name, path in self._paths.items()}
        wrong = [
            f"--{name} {quote(self._paths[name])} is {ARCHIVES[kind].name}"
            for name, kind in found.items()
            if kind not in ("", name)
        ]
        if not wrong:
            return
        places = {kind: quote(self._paths[name]) for name, kind in found.items() if kind}
        options = " ".join(
            f"--{name} {places.get(name, archive.name)}" for name, archive in ARCHIVES.items()
        )
        raise DataError(f"{' and '.join(wrong)}; give {options}.")

    def identity(self) -> dict[str, Any]:
        """Path, size and time of change of each archive."""
        return {
            name: {
                "path": str(path.absolute()),
                "num_bytes": (status := path.stat()).st_size,
                "changed_at_ns": status.st_mtime_ns,
            }
            for name, path in self._paths.items()
        }

    def images(self, skip: int = 0) -> Iterator[SourceImage]:
        """The images in the order in which they lie in the archives."""
        count = 0
        for split, members in (("train", self._train), ("val", self._val)):
            before, path = count, self._paths[split]
            with path.open("rb") as file:
                tar = _Tar(file, split, str(path), 0, path.stat().st_size)
                for label, member in members(tar):
                    count += 1
                    if count > _MAX_IMAGES:
                        raise DataError(
                            f"The archives hold more than {_MAX_IMAGES:,} images; ImageNet has "
                            f"{sum(NUM_IMAGES.values()):,}. Use them as image-net.org publishes "
                            "them."
                        )
                    if count > skip:
                        file.seek(member.start)
                        content = file.read(member.num_bytes)
                        if len(content) < member.num_bytes:
                            raise tar.incomplete(member.start)
                        yield SourceImage(split, label, member.name, content)
            if count == before:
                raise DataError(
                    f"{quote(path)} holds no image; --{split} is to be the archive "
                    f"{ARCHIVES[split].name} of image-net.org."
                )

    def surprises(self, counts: Mapping[str, NDArray[np.int64]]) -> list[str]:
        """Differences from ILSVRC2012, and from what the development kit says."""
        found = []
        for split, expected in NUM_IMAGES.items():
            if counts[split].sum() != expected:
                found.append(
                    f"{quote(self._paths[split])} holds {counts[split].sum():,} images; ILSVRC2012 "
                    f"has {expected:,}."
                )
        if len(self.classes) != NUM_CLASSES:
            found.append(
                f"{quote(self._paths['devkit'])} knows {len(self.classes):,} classes; ILSVRC2012 "
                f"has {NUM_CLASSES:,}."
            )
        kit_counts = {
            "train": self._kit.num_train_images,
            "val": np.bincount(self._kit.val_labels, minlength=len(self.classes)),
        }
        for split, expected_counts in kit_counts.items():
            wrong = [
                f"{name} ({there:,} instead of {expected:,})"
                for name, there, expected in zip(
                    self.classes, counts[split], expected_counts, strict=True
                )
                if there != expected
            ]
            if wrong:
                found.append(
                    f"{quote(self._paths[split])} holds other numbers of images than the devkit "
                    f"says: {shortened(wrong)}."
                )
        return found

    def _train(self, tar: _Tar) -> Iterator[tuple[int, _Member]]:
        labels = {name: label for label, name in enumerate(self.classes)}
        path = quote(self._paths["train"])
        for class_tar in tar.members(_CLASS_NAME, "n01440764.tar", _MAX_CLASS_BYTES):
            class_name = class_tar.name.removesuffix(".tar")
            if class_name not in labels:
                raise DataError(
                    f"{path} holds {class_tar.name}, a class that {quote(self._paths['devkit'])} "
                    "does not know. Use archives that belong together."
                )
            part = tar.nested(class_tar, f"{class_tar.name} in {path}")
            pattern, like = rf"{class_name}_\d+\.JPEG", f"{class_name}_1.JPEG"
            for member in part.members(pattern, like, _MAX_IMAGE_BYTES):
                yield labels[class_name], member

    def _val(self, tar: _Tar) -> Iterator[tuple[int, _Member]]:
        like = "ILSVRC2012_val_00000001.JPEG"
        for member in tar.members(_VAL_NAME, like, _MAX_IMAGE_BYTES):
            number = int(member.name[-13:-5])
            if not 1 <= number <= len(self._kit.val_labels):
                raise DataError(
                    f"{quote(self._paths['val'])} holds {member.name}, but the ground truth in "
                    f"{quote(self._paths['devkit'])} has {len(self._kit.val_labels):,} lines, one "
                    "for each image from 1. Use archives that belong together."
                )
            yield int(self._kit.val_labels[number - 1]), member


def _recognize(path: Path) -> str:
    """Which of the archives a file is, by its beginning: train, val, devkit, or empty for none."""
    with contextlib.suppress(OSError, EOFError, zlib.error), gzip.open(path) as packed:
        return "devkit" if packed.read(100).startswith(b"ILSVRC2012_devkit") else ""
    with path.open("rb") as file:
        try:
            with _Tar(file, "", str(path), 0, path.stat().st_size).opened() as tar:
                while (member := tar.next()) is not None and member.isdir():
                    pass
        except tarfile.TarError:
            return ""
    name = "" if member is None else member.name.removeprefix("./")
    known = {"train": _CLASS_NAME, "val": _VAL_NAME}
    return next((kind for kind, pattern in known.items() if re.fullmatch(pattern, name)), "")


class _Member(NamedTuple):
    """A regular file in an archive."""

    name: str
    start: int
    """Where its bytes begin in the outermost file."""
    num_bytes: int


class _Tar(io.RawIOBase):
    """A tar in a file, for tarfile to read headers from.

    Args:
        file: what it lies in.
        split: which of the published archives that is.
        called: what to call it in messages.
        start: where it begins in the file.
        num_bytes: its length.
    """

    def __init__(self, file: BinaryIO, split: str, called: str, start: int, num_bytes: int) -> None:
        self._file, self._split, self._called = file, split, called
        self._start, self._num_bytes = start, num_bytes
        self._position = 0

    def nested(self, member: _Member, called: str) -> _Tar:
        """A member that is itself a tar."""
        return _Tar(self._file, self._split, called, member.start, member.num_bytes)

    def opened(self) -> tarfile.TarFile:
        return tarfile.open(fileobj=self, mode="r:")

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        assert whence == io.SEEK_SET
        self._position = offset
        return offset

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        self._file.seek(self._start + self._position)
        content = self._file.read(max(0, min(size, self._num_bytes - self._position)))
        self._position += len(content)
        return content

    def members(self, pattern: str, like: str, max_bytes: int) -> Iterator[_Member]:
        """The files in it, each checked before it is handed out.

        Args:
            pattern: what all of their names match.
            like: such a name, for messages.
            max_bytes: the largest file allowed.
        """
        seen: set[str] = set()
        try:
            with self.opened() as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
                    if member.isdir():
                        continue
                    name = member.name.removeprefix("./")
                    problem = _problem(member, name, pattern, like, max_bytes)
                    if problem or name in seen:
                        raise DataError(
                            f"{self._called} holds {member.name[:200]!r}, "
                            f"{problem or 'for the second time'}; only regular files with "
                            "ImageNet's own names are taken, each once. Use the archive as "
                            "image-net.org publishes it."
                        )
                    seen.add(name)
                    if member.offset_data + member.size > self._num_bytes:
                        raise self.incomplete(self._num_bytes)
                    yield _Member(name, self._start + member.offset_data, member.size)
                # tarfile takes a damaged header for the end of the archive.
                self.seek(tar.offset)
                end = self.read(tarfile.BLOCKSIZE)
        except tarfile.TarError as error:
            raise self.incomplete(self.tell(), f" ({error})") from error
        nested_without_end = not end and self._start > 0
        if end != bytes(tarfile.BLOCKSIZE) and not nested_without_end:
            raise self.incomplete(self.tell() - len(end))

    def incomplete(self, offset: int, reason: str = "") -> DataError:
        """The error that it ends too early, or is damaged."""
        return DataError(
            f"{self._called} is incomplete or damaged at byte {offset:,}{reason}. Compare its size "
            f"with the published one and its MD5 with {ARCHIVES[self._split].md5}, and download it "
            "again; what was prepared so far stays."
        )


def _problem(member: tarfile.TarInfo, name: str, pattern: str, like: str, max_bytes: int) -> str:
    """Why a member is refused; empty: it is not."""
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        return "a link" if member.islnk() or member.issym() else "which is no regular file"
    if not re.fullmatch(pattern, name, re.ASCII):
        return f"which is not called like {like}"
    if not 0 <= member.size <= max_bytes:
        return f"which has {member.size:,} bytes (at most {max_bytes:,} are allowed)"
    return ""
