"""The manifest on disk: `vggdist-manifest.npz` and `vggdist-quarantine.json`, beside the images.

The manifest holds plain numpy arrays, named train_... and val_...; what training does not need
(pixel sizes, hashes) is read only when it is asked for. The quarantine is a list that a person may
read and edit: `{"quarantine": [{"file": "train/CLASS/FILE", "reason": "..."}]}`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggdist.artifacts.contents import ContentsDigest
from vggdist.artifacts.files import pack_names, unpack_names, write_arrays, write_text
from vggdist.artifacts.paths import quote
from vggdist.data.manifest import Contents, Dataset, Manifest, Names, Shards
from vggdist.errors import DataError

logger = logging.getLogger(__name__)

MANIFEST_NAME = "vggdist-manifest.npz"
QUARANTINE_NAME = "vggdist-quarantine.json"
JOURNAL_NAME = ".vggdist-prepare"
"""The folder of a `vggdist prepare` that is at work or was interrupted."""
FINISHED_NAME = ".vggdist-prepared.json"
"""What was asked of `vggdist prepare`, in the folder of a finished data set."""
CLASSES_NAME = "classes.txt"
SPLITS = ("train", "val")
_VERSION = 2
_MOST_NAMED = 100
_CONTENTS = tuple(field.name for field in fields(Contents))


@dataclass(frozen=True)
class BadFile:
    """An image's file that training cannot use."""

    file: str
    """Its name as in the manifest, after the split if there is one: train/class/file."""
    reason: str
    """What is wrong with it."""


def manifest_places(root: Path, fallback: Path | None = None) -> list[Path]:
    """Where the manifest of a data set may lie: with its images, or in a run folder."""
    return [root / MANIFEST_NAME] + ([fallback / MANIFEST_NAME] if fallback else [])


def find_manifest(root: Path, fallback: Path | None = None) -> Path | None:
    """Where the manifest of a data set is, if it has one."""
    places = manifest_places(root, fallback)
    return next((path for path in reversed(places) if path.is_file()), None)


def save_manifest(
    dataset: Dataset, places: Sequence[Path], contents: Mapping[str, Contents] | None = None
) -> Path:
    """Writes the manifest to the first of `places` that lets it; returns that one.

    Args:
        dataset: both splits.
        places: paths of the file.
        contents: split -> what is in its files, if somebody has looked.

    Raises:
        DataError: none of the places can be written.
    """
    arrays: dict[str, NDArray[Any]] = {"version": np.array(_VERSION)}
    for manifest in (dataset.train, dataset.val):
        split = manifest.split
        arrays |= {f"{split}_{name}": array for name, array in _arrays(manifest).items()}
        if contents is not None:
            arrays |= {
                f"{split}_{name}": array
                for name, array in vars(contents[split]).items()
                if array is not None
            }
    refusals = []
    for place in places:
        try:
            _require_writable(place.parent)
            write_arrays(place, arrays)
            return place
        except OSError as error:
            refusals.append(f"{place} ({error.strerror})")
    raise DataError(
        f"The data set's manifest cannot be written to {' nor to '.join(refusals)}; it keeps "
        "labels from shifting when folders change. Make one of these folders writable."
    )


def load_manifest(path: Path, root: Path) -> Dataset:
    """Reads the manifest of the data set in `root`, and its quarantine list.

    Raises:
        DataError: the file is damaged or of another version.
    """
    with _opened(path, root) as stored:
        splits = []
        for split in SPLITS:
            manifest = _manifest(root / split, split, stored)
            if manifest.digest != str(stored[f"{split}_digest"]):
                raise ValueError("its checksum is wrong")
            splits.append(manifest)
    return Dataset(*(with_quarantine(manifest) for manifest in splits))


def load_contents(path: Path, root: Path) -> dict[str, Contents] | None:
    """Split -> what is in its files, as far as the manifest knows it.

    Raises:
        DataError: the file is damaged.
    """
    with _opened(path, root) as stored:
        if f"{SPLITS[0]}_sha256" not in stored:
            return None
        return {
            split: Contents(**{name: stored.get(f"{split}_{name}") for name in _CONTENTS})
            for split in SPLITS
        }


def write_classes(classes: Sequence[str], folder: Path) -> Path:
    """Writes a line for each class, in the order of labels; returns the file.

    Raises:
        OSError: the folder cannot be written.
    """
    file = folder / CLASSES_NAME
    file.write_bytes(os.fsencode("".join(f"{name}\n" for name in classes)))
    return file


def is_unfinished(root: Path) -> bool:
    """Whether `vggdist prepare` has begun to write a data set, and not come to its end."""
    return (root / JOURNAL_NAME).exists() and not (root / FINISHED_NAME).exists()


def save_quarantine(root: Path, bad: Sequence[BadFile]) -> Path:
    """Writes the quarantine list of a data set, or removes it where nothing is left in it.

    Raises:
        OSError: the folder cannot be written.
    """
    path = root / QUARANTINE_NAME
    if not bad:
        path.unlink(missing_ok=True)
        return path
    text = json.dumps({"quarantine": [vars(image) for image in bad]}, indent=1) + "\n"
    _require_writable(root)
    write_text(path, text, durable=True)
    return path


def load_quarantine(root: Path) -> list[BadFile]:
    """The quarantine list of a data set; empty where there is none.

    Raises:
        DataError: the file is not what `save_quarantine` writes.
    """
    path = root / QUARANTINE_NAME
    try:
        listed = json.loads(path.read_bytes().decode("utf-8", "surrogateescape"))["quarantine"]
        return [BadFile(str(image["file"]), str(image["reason"])) for image in listed]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"The quarantine list {path} cannot be read: {type(error).__name__}: {error}. Mend it, "
            "or delete it and run `vggdist check` again."
        ) from error


def with_quarantine(manifest: Manifest) -> Manifest:
    """A split with what the quarantine list beside its folder says of it.

    Raises:
        DataError: as `load_quarantine`.
    """
    listed = load_quarantine(manifest.folder.parent)
    prefix = f"{manifest.split}/"
    names = [image.file.removeprefix(prefix) for image in listed if image.file.startswith(prefix)]
    known = dict(manifest.numbers(names))
    unknown = [name for name, number in known.items() if number is None]
    if unknown:
        logger.warning(
            "%s names %d images that the data set does not have, such as %s.",
            QUARANTINE_NAME,
            len(unknown),
            prefix + unknown[0],
        )
    return replace(manifest, quarantine=frozenset(n for n in known.values() if n is not None))


def _arrays(manifest: Manifest) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {
        "classes": pack_names(manifest.classes)[:-1],  # in this file, the last name has no end
        "labels": manifest.labels.astype(np.int32),
        "names": np.frombuffer(manifest.names.packed, dtype=np.uint8),
        "digest": np.array(manifest.digest),
        "resized": np.array(manifest.resized),
        "contents": np.array(astuple(manifest.contents)),
    }
    if manifest.num_bytes is not None:
        arrays["num_bytes"] = manifest.num_bytes
    if manifest.shards is not None:
        arrays |= {
            "shard_files": pack_names(manifest.shards.files)[:-1],
            "shard_sizes": manifest.shards.sizes,
            "shard_file": manifest.shards.file,
            "shard_offset": manifest.shards.offset,
        }
    return arrays


def _manifest(folder: Path, split: str, stored: Mapping[str, NDArray[Any]]) -> Manifest:
    shards = None
    if f"{split}_shard_files" in stored:
        shards = Shards(
            unpack_names(stored[f"{split}_shard_files"]),
            stored[f"{split}_shard_sizes"],
            stored[f"{split}_shard_file"],
            stored[f"{split}_shard_offset"],
        )
    return Manifest(
        folder,
        split,
        unpack_names(stored[f"{split}_classes"]),
        stored[f"{split}_labels"].astype(np.int64),
        Names(stored[f"{split}_names"].tobytes()),
        str(stored[f"{split}_resized"]),
        stored.get(f"{split}_num_bytes"),
        shards,
        contents=ContentsDigest(*map(str, stored.get(f"{split}_contents", ()))),
    )


@contextlib.contextmanager
def _opened(path: Path, root: Path) -> Any:
    try:
        with np.load(path, allow_pickle=False) as stored:
            if int(stored["version"]) != _VERSION:
                raise ValueError(f"it has version {stored['version']}, not {_VERSION}")
            yield stored
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"The manifest {path} cannot be used: {error}. Delete it to accept the images in "
            f"{root} as they are now; a data set in shards must be prepared again."
        ) from error


def _require_writable(folder: Path) -> None:
    """Respects a folder that nobody may write, although root could."""
    folder.mkdir(parents=True, exist_ok=True)
    if not folder.stat().st_mode & 0o222:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def require_usable(sets: Sequence[Manifest], root: str) -> None:
    """Refuses quarantined images where every image counts.

    Raises:
        DataError: names them.
    """
    names = [
        quote(f"{images.split}/{images.name(image)}".removeprefix("/"))
        for images in sets
        for image in sorted(images.quarantine)
    ]
    if not names:
        return
    listing = "\n  ".join(names[:_MOST_NAMED])
    if (more := len(names) - _MOST_NAMED) > 0:
        listing += f"\n  and {more} more"
    raise DataError(
        f"{QUARANTINE_NAME} in {quote(root)} lists images that cannot be used, and here every one "
        "counts:\n"
        f"  {listing}\nReplace them with good copies and run `vggdist check` again, or delete them "
        f"and run `vggdist check {quote(root)} --accept-changes`."
    )
