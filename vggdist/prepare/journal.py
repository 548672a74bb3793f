"""What a packing has finished, so that a killed one goes on where it was.

A part is a shard, or some thousand files. Once its bytes are on the disk, one file that lists its
images is put into the journal, a hidden folder beside them; what no part lists is written again.
"""

from __future__ import annotations

import ctypes
import fcntl
import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggdist.artifacts.contents import ContentsDigest
from vggdist.artifacts.names import listed
from vggdist.artifacts.paths import quote
from vggdist.config_file import flatten
from vggdist.data.manifest import Names
from vggdist.data.manifest_file import FINISHED_NAME, JOURNAL_NAME
from vggdist.errors import DataError

Request = Mapping[str, Any]
"""What was asked for: plain JSON values."""


class Entry(NamedTuple):
    """An image of a part."""

    label: int
    name: str
    width: int
    height: int
    num_bytes: int
    sha256: bytes
    offset: int


class Part(NamedTuple):
    """The images of a part, in the order in which they were packed."""

    split: str
    names: Names
    labels: NDArray[np.int64]
    sizes: NDArray[np.int32]
    num_bytes: NDArray[np.int64]
    sha256: NDArray[np.uint8]
    offsets: NDArray[np.int64]


class Journal:
    """The journal of one folder; also keeps other processes from writing there.

    Args:
        folder: the data set's folder; made if it is not there.
        request: what is asked for.

    Raises:
        DataError: the folder holds something else, or another process is at work there.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, request: Request) -> None:
        self._root = folder
        self._folder = folder / JOURNAL_NAME
        _refuse_others(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self._folder / "lock", folder)
        stored = self._folder / "request.json"
        if stored.exists():
            _check_same(request, stored, folder)
        else:
            _write_durably(stored, _json(request))
        self.parts = [self._load(path) for path in sorted(self._folder.glob("part-*.npz"))]
        """What is finished."""

    @property
    def num_images(self) -> int:
        """Images of all finished parts."""
        return sum(len(part.names) for part in self.parts)

    def of_split(self, split: str) -> list[Part]:
        """The finished parts of a split."""
        return [part for part in self.parts if part.split == split]

    def commit(self, split: str, entries: Sequence[Entry]) -> None:
        """Makes a part lasting, with everything that was written before."""
        _sync_file_system(self._root)
        part = Part(
            split,
            Names.pack(entry.name for entry in entries),
            np.array([entry.label for entry in entries], dtype=np.int64),
            np.array([(entry.width, entry.height) for entry in entries], dtype=np.int32),
            np.array([entry.num_bytes for entry in entries], dtype=np.int64),
            np.frombuffer(b"".join(entry.sha256 for entry in entries), np.uint8).reshape(-1, 32),
            np.array([entry.offset for entry in entries], dtype=np.int64),
        )
        arrays = part._asdict()
        arrays["names"] = np.frombuffer(part.names.packed, dtype=np.uint8)
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **arrays)
        _write_durably(self._folder / f"part-{len(self.parts):06d}.npz", content.getvalue())
        self.parts.append(part)

    def finish(self) -> None:
        """The data set is complete: only what was asked for is kept."""
        os.replace(self._folder / "request.json", self._root / FINISHED_NAME)
        _sync_file_system(self._root)
        shutil.rmtree(self._folder)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        """Lets other processes in."""
        self._lock.close()

    def _load(self, path: Path) -> Part:
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = dict(stored)
            arrays["names"] = Names(arrays["names"].tobytes())
            return Part(**{**arrays, "split": str(arrays["split"])})
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(
                f"The record {quote(path)} of an unfinished preparation is damaged ({error}). "
                f"Remove {quote(self._root)} and start again."
            ) from error


def is_finished(folder: Path, request: Request) -> bool:
    """Whether a folder holds the finished result of a request.

    Raises:
        DataError: it holds that of another request.
    """
    stored = folder / FINISHED_NAME
    if not stored.exists():
        return False
    _check_same(request, stored, folder)
    shutil.rmtree(folder / JOURNAL_NAME, ignore_errors=True)  # a kill may have left it
    return True


def _refuse_others(folder: Path) -> None:
    there = sorted(os.listdir(folder)) if folder.exists() else []
    if there and JOURNAL_NAME not in there:
        raise DataError(
            f"{quote(folder)} is not empty and holds no preparation to continue (it has "
            f"{listed(there)}); nothing in it was touched. Choose another folder, or remove this "
            "one."
        )


def _check_same(request: Request, stored: Path, folder: Path) -> None:
    try:
        before = json.loads(stored.read_bytes())
    except ValueError as error:
        raise DataError(
            f"{quote(stored)} is damaged ({error}). Remove {quote(folder)} and start again."
        ) from error
    now = json.loads(_json(request))
    contents = [ContentsDigest.from_mapping(one.pop("contents", {})) for one in (before, now)]
    differences = list(_differences(flatten(before), flatten(now)))
    if contents[0].same_as(contents[1]) is False:
        differences.append("images have changed under their names")
    if differences:
        raise DataError(
            f"{quote(folder)} was prepared from something else, or in another way: "
            f"{'; '.join(differences)}. Ask for the same again, choose another folder, or remove "
            "this one."
        )


def _differences(before: Mapping[str, object], now: Mapping[str, object]) -> Iterator[str]:
    """What another request asks for, by `key.key`, as halves of a sentence."""
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        path = f"{key.rpartition('.')[0]}.path"
        if old == new or (key != path and before.get(path) != now.get(path)):
            continue  # another file has another size and time as well
        if path in now and key.endswith(".changed_at_ns"):
            yield f"{quote(str(now[path]))} has changed since"
        else:
            yield f"{key} was {old}, now it is {new}"


def _json(request: Request) -> bytes:
    return (json.dumps(request, indent=1, sort_keys=True) + "\n").encode()


def _locked(path: Path, folder: Path) -> IO[bytes]:
    file = path.open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise DataError(
            f"Another process is preparing {quote(folder)}. Wait for it, or choose another folder."
        ) from error
    except OSError:
        pass  # a file system without locks: then nobody watches
    return file


def _write_durably(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _sync_file_system(folder: Path) -> None:
    """Waits until everything written to a file system is on its disk.

    One call instead of an fsync for each of some thousand files and their folders; Python has only
    `os.sync`, which waits for all file systems and reports no errors.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if library.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)
