"""What a preparation has finished, so that a killed one continues where it was.

A part is a shard, or some thousand files. It is done when its index exists: a file in the journal,
a hidden folder beside the images, that lists them and is written once their bytes are on the disk.
Images without such an index are written again.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggdist.artifacts import files
from vggdist.artifacts.contents import ContentsDigest
from vggdist.artifacts.names import listed
from vggdist.artifacts.paths import quote
from vggdist.config_file import flatten
from vggdist.data.manifest_file import FINISHED_NAME, JOURNAL_NAME
from vggdist.errors import DataError

COLUMNS = ("labels", "sizes", "num_bytes", "sha256", "offsets")
Part = dict[str, NDArray[Any]]
"""The arrays of an index: split; names, packed; and `COLUMNS`, (num_images, ...), in
the order in which the images were packed."""


class Entry(NamedTuple):
    """An image of a part."""

    name: str
    """File name relative to the class folder."""
    label: int
    size: tuple[int, int]
    """Width and height, pixels; 0 where no header could be read."""
    num_bytes: int
    sha256: bytes
    offset: int = 0
    """Of the encoded image in its shard."""


class Journal:
    """The journal of a folder, locked against other processes.

    Args:
        folder: the data set's folder; made if it is not there.
        request: what is asked for: plain JSON values.

    Raises:
        DataError: the folder holds something else, or another process writes there.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, request: Mapping[str, Any]) -> None:
        self._root = folder
        self._folder = folder / JOURNAL_NAME
        present = sorted(os.listdir(folder)) if folder.exists() else []
        if present and JOURNAL_NAME not in present:
            raise DataError(
                f"{quote(folder)} is not empty and holds no preparation to continue (it has "
                f"{listed(present)}); nothing in it was touched. Choose another folder, or remove "
                "this one."
            )
        try:
            self._lock = files.lock(
                self._folder / "lock", without_locks="prepare it only once at a time"
            )
        except files.LockedError as holder:
            raise DataError(
                f"Another process is preparing {quote(folder)}: {holder}. Wait for it, or choose "
                "another folder."
            ) from None
        stored = self._folder / "request.json"
        if stored.exists():
            _require_same(request, stored, folder)
        else:
            files.write_text(stored, json.dumps(request, indent=1, sort_keys=True) + "\n", True)
        self.parts = [self._load(path) for path in sorted(self._folder.glob("part-*.npz"))]
        """What is finished."""

    @property
    def num_images(self) -> int:
        """Images of all finished parts."""
        return sum(len(part["labels"]) for part in self.parts)

    def of_split(self, split: str) -> list[Part]:
        """The finished parts of a split."""
        return [part for part in self.parts if part["split"] == split]

    def commit(self, split: str, entries: Sequence[Entry]) -> None:
        """Makes a part durable, with everything that was written before it."""
        names, labels, sizes, num_bytes, sha256, offsets = zip(*entries, strict=True)
        part = {
            "split": np.array(split),
            "names": files.pack_names(names),
            "labels": np.array(labels, np.int64),
            "sizes": np.array(sizes, np.int32),
            "num_bytes": np.array(num_bytes, np.int64),
            "sha256": np.frombuffer(b"".join(sha256), np.uint8).reshape(-1, 32),
            "offsets": np.array(offsets, np.int64),
        }
        _sync_file_system(self._root)
        files.write_arrays(self._folder / f"part-{len(self.parts):06d}.npz", part)
        self.parts.append(part)

    def finish(self) -> None:
        """The data set is complete: of the journal only the request is kept."""
        os.replace(self._folder / "request.json", self._root / FINISHED_NAME)
        _sync_file_system(self._root)
        shutil.rmtree(self._folder)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        """Releases the lock."""
        self._lock.close()

    def _load(self, path: Path) -> Part:
        try:
            with np.load(path, allow_pickle=False) as stored:
                return {name: stored[name] for name in ("split", "names", *COLUMNS)}
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(
                f"The record {quote(path)} of an unfinished preparation is damaged ({error}). "
                f"Remove {quote(self._root)} and start again."
            ) from error


def is_finished(folder: Path, request: Mapping[str, Any]) -> bool:
    """Whether a folder holds the finished result of a request.

    Raises:
        DataError: it holds that of another request.
    """
    stored = folder / FINISHED_NAME
    if not stored.exists():
        return False
    _require_same(request, stored, folder)
    shutil.rmtree(folder / JOURNAL_NAME, ignore_errors=True)  # a kill may have left it
    return True


def _require_same(request: Mapping[str, Any], stored: Path, folder: Path) -> None:
    try:
        before = json.loads(stored.read_bytes())
    except ValueError as error:
        raise DataError(
            f"{quote(stored)} is damaged ({error}). Remove {quote(folder)} and start again."
        ) from error
    now = json.loads(json.dumps(request))
    contents = [ContentsDigest.from_mapping(asked.pop("contents", {})) for asked in (before, now)]
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
