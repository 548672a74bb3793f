"""Shards copied to a disk of the node's own, so that an epoch leaves the network alone."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from vggdist.artifacts.files import lock
from vggdist.artifacts.paths import quote
from vggdist.data.manifest import Dataset
from vggdist.errors import ConfigError, DataError
from vggdist.terminal import Progress

_COPIES_AT_ONCE = 4  # a network file system gives more to several readers than to one
_PIECE_BYTES = 1 << 24
_LOCK = "lock"


def local_dataset(dataset: Dataset, folder: Path) -> Dataset:
    """The data set as it is in the node's own folder once `copy_shards` is done.

    Raises:
        ConfigError: its images are not in shards.
    """
    if dataset.train.shards is None or dataset.val.shards is None:
        raise ConfigError(
            f"data.local_folder is {quote(folder)}, but the images in {quote(dataset.root)} are "
            "files of their own, and only shards are copied to the nodes. Pack them with `vggdist "
            f"prepare folder {quote(dataset.root)} --out DIR --form shards` and set data.root=DIR, "
            "or set data.local_folder=null."
        )
    copy = folder.expanduser().absolute() / _name(dataset)
    manifests = (dataset.train, dataset.val)
    return Dataset(*(replace(found, folder=copy / found.split) for found in manifests))


def copy_shards(dataset: Dataset, folder: Path, cancelled: threading.Event | None = None) -> None:
    """Copies what is missing of a data set's shards; one process of each node does so.

    Others on the node, of other jobs too, wait for it and then find everything there. A shard that
    is complete has its name, its size and its time of change; one that was not finished has not.

    Args:
        cancelled: once set, the copying ends, in the middle of a shard too.

    Raises:
        DataError: there is not enough space, or a shard cannot be copied; what has been copied
            stays for the next start.
    """
    target = local_dataset(dataset, folder).root
    with _locked(target):
        missing = [
            (manifest.folder / name, target / manifest.split / name)
            for manifest in (dataset.train, dataset.val)
            for name in manifest.shards.files  # type: ignore[union-attr]
            if not _is_copy(manifest.folder / name, target / manifest.split / name)
        ]
        progress = Progress(len(missing), unit="shards")
        with ThreadPoolExecutor(_COPIES_AT_ONCE) as pool:
            try:
                _check_space(missing, target, dataset)
                copies = [pool.submit(_copy, *paths, cancelled) for paths in missing]
                for copy in copies:
                    copy.result()
                    progress.advance()
            except OSError as error:
                pool.shutdown(cancel_futures=True)
                raise DataError(
                    f"A shard of {quote(dataset.root)} cannot be copied to {quote(target)}: "
                    f"{error}. What has been copied stays. Mend it, or set data.local_folder=null "
                    "to read the shards where they are."
                ) from error
        if missing:
            progress.close()


def _name(dataset: Dataset) -> str:
    """A folder name that belongs to these very shards."""
    sha = hashlib.sha256()
    for manifest in (dataset.train, dataset.val):
        shards = manifest.shards
        assert shards is not None
        sha.update(f"{manifest.digest} {shards.files} {shards.sizes.tolist()}".encode())
    return f"vggdist-{sha.hexdigest()[:16]}"


def _locked(target: Path) -> TextIO:
    try:
        return lock(target / _LOCK, patience_seconds=math.inf)
    except OSError as error:
        raise DataError(
            f"data.local_folder: {quote(target)} cannot be written on this node: {error}. Name a "
            "folder on a disk of the node's own, or set data.local_folder=null."
        ) from error


def _is_copy(source: Path, copy: Path) -> bool:
    try:
        there, here = source.stat(), copy.stat()
    except FileNotFoundError:
        return False
    return (there.st_size, there.st_mtime_ns) == (here.st_size, here.st_mtime_ns)


def _check_space(missing: list[tuple[Path, Path]], target: Path, dataset: Dataset) -> None:
    needed = sum(source.stat().st_size for source, _ in missing)
    free = shutil.disk_usage(target).free
    if needed > free:
        raise DataError(
            f"data.local_folder: the shards of {quote(dataset.root)} take {needed / 1e9:.1f} GB "
            f"more, but {quote(target)} has {free / 1e9:.1f} GB free. Free space there, name "
            "another folder, or set data.local_folder=null to read the shards where they are."
        )


def _copy(source: Path, copy: Path, cancelled: threading.Event | None) -> None:
    copy.parent.mkdir(exist_ok=True)
    partial = copy.with_name(f".{copy.name}.partial")
    with open(source, "rb") as read, open(partial, "wb") as written:
        while True:
            if cancelled is not None and cancelled.is_set():
                return
            if not (piece := read.read(_PIECE_BYTES)):
                break
            written.write(piece)
    shutil.copystat(source, partial)
    os.replace(partial, copy)
