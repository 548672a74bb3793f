"""How files are written: whole or not at all, under a lock, as lines of JSON, as packed names."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vggdist.errors import in_words

logger = logging.getLogger(__name__)

_LONGEST_NAME = 200  # bytes; file systems allow 255, and something is put before and behind
_SECONDS_BETWEEN_TRIES = 0.2

ARCHIVE_ERRORS = (
    *(OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError),
    *(ValueError, KeyError, IndexError, TypeError, AttributeError, MemoryError),
)
"""What zipfile, zlib, NumPy and json say of bytes that are not theirs."""


class LockedError(Exception):
    """Another process holds a lock; the text says which."""


def temporary_path(path: Path, suffix: str = "") -> Path:
    """A name in the same folder, for what will be renamed to `path` once it is whole."""
    name = os.fsencode(path.name)[:_LONGEST_NAME].decode(errors="ignore")
    return path.with_name(f".{name}.tmp-{os.getpid()}{suffix}")


@contextlib.contextmanager
def replacing(path: Path, suffix: str = "", durable: bool = False) -> Iterator[Path]:
    """A temporary file, which takes the place of `path` when the block ends without an error.

    After an error it is removed, and `path` is as before. Missing folders are made. The file's mode
    follows from the umask, also where its writer (safetensors) lets nobody else read it.

    Args:
        path: the file; an old one is replaced at once.
        suffix: of the temporary file, for writers that go by it.
        durable: whether the contents are on the disk before the file has its name.

    Raises:
        OSError: it cannot be written.
    """
    temporary = temporary_path(path, suffix)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        if temporary.stat().st_mode != mode:
            temporary.chmod(mode)
        if durable:
            fsync(temporary)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str, durable: bool = False) -> None:
    """Writes a file as `replacing` does, in UTF-8; bytes of names that are not UTF-8 are kept."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_arrays(path: Path, arrays: Mapping[str, ArrayLike]) -> None:
    """Writes an .npz archive, durably, as `replacing` does; objects are not pickled."""
    with replacing(path, durable=True) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def fsync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(path: Path, patience_seconds: float = 0.0, without_locks: str | None = None) -> TextIO:
    """Takes a lock until the returned file is closed or the process ends.

    The file names its holder, unless all others wait for it forever.

    Args:
        path: the lock's file; it is made where it is missing, with its folder.
        patience_seconds: how long another holder is waited for; infinity: as long as it takes.
        without_locks: what users are warned of where the file system has no locks, as the end of a
            sentence; none: that is an error.

    Raises:
        LockedError: another process holds it.
        OSError: the file cannot be written or locked.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    try:
        try:
            _flock(file, patience_seconds)
        except BlockingIOError:
            file.seek(0)
            raise LockedError(file.read().strip() or "another process") from None
        except OSError as error:
            if without_locks is None:
                raise
            logger.warning(
                "%s cannot be locked (%s); %s.", path.parent, in_words(error), without_locks
            )
        if patience_seconds < math.inf:
            file.truncate(0)
            # Not through the buffer, which would try again when the file is closed.
            os.write(file.fileno(), f"process {os.getpid()} on {os.uname().nodename}".encode())
    except BaseException:
        file.close()
        raise
    return file


def is_locked(path: Path) -> bool:
    """Whether a process holds a lock now; false where that cannot be told."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _flock(file: TextIO, patience_seconds: float) -> None:
    if patience_seconds == math.inf:
        return fcntl.flock(file, fcntl.LOCK_EX)
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_SECONDS_BETWEEN_TRIES)


@dataclass(frozen=True)
class JsonLines:
    """A file with a JSON object on each line, to which a process that may be killed appends."""

    path: Path

    def append(self, record: Mapping[str, Any], durable: bool = False) -> None:
        """Adds a line; after one that was cut short, it begins a new one.

        Raises:
            OSError: it cannot be written.
        """
        with self.path.open("a+b") as file:
            start = b""
            if file.tell():
                file.seek(-1, os.SEEK_END)
                start = b"" if file.read(1) == b"\n" else b"\n"
            file.write(start + json.dumps(record).encode() + b"\n")
            if durable:
                file.flush()
                os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """All records; lines that were cut short are left out, and a missing file has none."""
        return [record for _, record in self._lines()]

    def keep(self, is_kept: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Drops records, and lines that are none; returns the records that are left.

        Args:
            is_kept: says of a record whether it stays; one that lacks a key, or has a value of
                another type, does not.
        """
        kept = []
        for line, record in self._lines():
            with contextlib.suppress(KeyError, TypeError):
                if is_kept(record):
                    kept.append((line, record))
        write_text(self.path, "".join(f"{line}\n" for line, _ in kept))
        return [record for _, record in kept]

    def _lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return
        for line in text.splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield line, record


def pack_names(names: Iterable[str]) -> NDArray[np.uint8]:
    """Names as bytes, each ended by a NUL byte: an array of texts would be pickled or padded."""
    return np.frombuffer(b"".join(os.fsencode(name) + b"\0" for name in names), dtype=np.uint8)


def unpack_names(packed: NDArray[np.uint8]) -> tuple[str, ...]:
    """Names from bytes; the last one need not be ended."""
    names = os.fsdecode(packed.tobytes()).split("\0")
    return tuple(names if names[-1] else names[:-1])
