"""The data set as a list that cannot shift: which files, in which order, with which labels.

A label is the place of a class among the sorted names of the class folders. A folder that is lost,
added or renamed would silently change the labels of all later classes, so the list is written down
once, beside the images, and every later start compares the tree with it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vggdist.data.folders import (
    LARGEST_LIST,
    ClassFolders,
    existing_folder,
    list_classes,
    list_images,
    listed,
    names_in,
)
from vggdist.errors import DataError

MANIFEST_NAME = "vggdist-manifest.npz"
_VERSION = 1
_SPLITS = ("train", "val")


@dataclass(frozen=True, eq=False)
class Manifest:
    """The images of one split, numbered from 0: by class, and by file name within a class."""

    folder: Path
    """The folder that holds the class folders."""
    split: str
    """train or val; empty for class folders that belong to no split."""
    classes: tuple[str, ...]
    """Names of the class folders, sorted; a label is a place in this tuple."""
    labels: NDArray[np.int64]
    """(num_images,), the label of each image."""
    digest: str
    """SHA-256 over classes, labels and names: the same digest means the same images in the same
    order. It depends neither on where the folder is nor on what is in the files.
    """
    names: bytes = field(repr=False)
    """Names relative to the class folders, each ended by a NUL byte. One string instead of a list
    of 1.3 million, which would take seconds to load.
    """
    ends: NDArray[np.int64] = field(repr=False)
    """(num_images,), where in `names` each NUL byte is."""

    @property
    def num_images(self) -> int:
        """Images of the split."""
        return len(self.labels)

    def name(self, image: int) -> str:
        """Path of an image relative to `folder`: class/file."""
        return os.fsdecode(self._encoded_name(image))

    def path(self, image: int) -> Path:
        """Path of an image."""
        return self.folder / self.name(image)

    def encoded_path(self, image: int) -> NDArray[np.uint8]:
        """Path of an image as the bytes that the operating system takes, (length,)."""
        path = os.fsencode(self.folder) + b"/" + self._encoded_name(image)
        return np.frombuffer(path, dtype=np.uint8)

    def _encoded_name(self, image: int) -> bytes:
        start = int(self.ends[image - 1]) + 1 if image else 0
        name = self.names[start : int(self.ends[image])]
        return os.fsencode(self.classes[self.labels[image]]) + b"/" + name


@dataclass(frozen=True)
class Dataset:
    """A training set and a validation set with the same classes."""

    train: Manifest
    val: Manifest


def open_dataset(root: str | Path, fallback: Path | None = None, write: bool = False) -> Dataset:
    """The data set of a folder that holds train/ and val/, each with one folder per class.

    Args:
        root: the folder.
        fallback: where the manifest goes if `root` cannot be written: the run folder. A manifest
            that is there already goes before one in `root`, since the run was started with it.
        write: compare the tree with its manifest, or write the manifest if there is none. The
            main rank does so; the others call with False afterwards and load what it has checked.
            Without a manifest, False takes the tree as it is.

    Raises:
        DataError: there is no such data set, or it is not the one that its manifest lists.
    """
    root = existing_folder(root)
    for split in _SPLITS:
        if not (root / split).is_dir():
            raise DataError(
                f"{root} has no folder {split}/ (it has {listed(names_in(root))}); a data set is "
                "a folder with train/ and val/, each with one folder of images per class. Set "
                "data.root to such a folder."
            )
    places = [root / MANIFEST_NAME] + ([fallback / MANIFEST_NAME] if fallback else [])
    stored = next((place for place in reversed(places) if place.is_file()), None)
    if stored is not None and not write:
        return _load(stored, root)
    trees = {split: list_classes(root / split) for split in _SPLITS}
    if stored is not None:
        dataset = _load(stored, root)
        _compare(dataset, trees, stored)
        return dataset
    _check_same_classes(root, trees)
    dataset = Dataset(*(_from_tree(root / split, split, trees[split]) for split in _SPLITS))
    if write:
        _save(dataset, places)
    return dataset


def open_images(root: str | Path) -> Manifest:
    """The images of a folder, for commands that only look at them; no manifest is involved.

    Args:
        root: a data set (its training images are taken), a folder of class folders, or a folder
            of images, which then is the only class.
    """
    root = existing_folder(root)
    if (root / "train").is_dir():
        return _from_tree(root / "train", "train", list_classes(root / "train"))
    images = list_images(root)
    if any("/" not in name for name in images):
        return _from_tree(root.parent, "", {root.name: images})
    return _from_tree(root, "", list_classes(root))


def _from_tree(folder: Path, split: str, tree: ClassFolders) -> Manifest:
    counts = [len(images) for images in tree.values()]
    labels = np.repeat(np.arange(len(tree), dtype=np.int64), counts)
    names = b"".join(os.fsencode(name) + b"\0" for images in tree.values() for name in images)
    return _from_names(folder, split, tuple(tree), labels, names)


def _from_names(
    folder: Path, split: str, classes: tuple[str, ...], labels: NDArray[np.int64], names: bytes
) -> Manifest:
    ends = np.flatnonzero(np.frombuffer(names, dtype=np.uint8) == 0)
    sha = hashlib.sha256(f"vggdist manifest {_VERSION}".encode())
    for part in (os.fsencode("\0".join(classes)), labels.astype("<i8").tobytes(), names):
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return Manifest(folder, split, classes, labels, sha.hexdigest(), names, ends)


def _save(dataset: Dataset, places: Sequence[Path]) -> None:
    """Writes the manifest to the first place that lets it."""
    arrays = {"version": np.array(_VERSION)}
    for manifest in (dataset.train, dataset.val):
        classes = os.fsencode("\0".join(manifest.classes))
        arrays[f"{manifest.split}_classes"] = np.frombuffer(classes, dtype=np.uint8)
        arrays[f"{manifest.split}_labels"] = manifest.labels
        arrays[f"{manifest.split}_names"] = np.frombuffer(manifest.names, dtype=np.uint8)
        arrays[f"{manifest.split}_digest"] = np.array(manifest.digest)
    refusals = []
    for place in places:
        temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.parent.stat().st_mode & 0o222:
                # root could, but somebody has said that nobody shall.
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            with open(temporary, "wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, place)
            return
        except OSError as error:
            refusals.append(f"{place} ({error.strerror})")
            with contextlib.suppress(OSError):
                temporary.unlink()
    raise DataError(
        f"The data set's manifest cannot be written to {' nor to '.join(refusals)}; it keeps "
        "labels from shifting when folders change. Make one of these folders writable."
    )


def _load(path: Path, root: Path) -> Dataset:
    try:
        with np.load(path, allow_pickle=False) as stored:
            if int(stored["version"]) != _VERSION:
                raise ValueError(f"it has version {stored['version']}, not {_VERSION}")
            splits = []
            for split in _SPLITS:
                classes = tuple(os.fsdecode(stored[f"{split}_classes"].tobytes()).split("\0"))
                names = stored[f"{split}_names"].tobytes()
                labels = stored[f"{split}_labels"]
                splits.append(_from_names(root / split, split, classes, labels, names))
                if splits[-1].digest != str(stored[f"{split}_digest"]):
                    raise ValueError("its checksum is wrong")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"The manifest {path} cannot be used: {error}. Delete it to accept the images in "
            f"{root} as they are now."
        ) from error
    return Dataset(*splits)


def _check_same_classes(root: Path, trees: dict[str, ClassFolders]) -> None:
    train, val = (set(trees[split]) for split in _SPLITS)
    differences = [
        f"only {root / split} has {listed(sorted(names))}"
        for split, names in (("train", train - val), ("val", val - train))
        if names
    ]
    if differences:
        raise DataError(
            f"train/ and val/ have different class folders: {'; '.join(differences)}. A label is "
            "the place of a class among the sorted folders, so both need the same ones. Add or "
            "remove these folders."
        )


def _compare(dataset: Dataset, trees: dict[str, ClassFolders], path: Path) -> None:
    """Raises a DataError that names the differences between a manifest and the tree, if any."""
    found: list[str] = []
    for manifest in (dataset.train, dataset.val):
        now = trees[manifest.split]
        if _from_tree(manifest.folder, manifest.split, now).digest != manifest.digest:
            found += _differences(_tree(manifest), now, manifest.folder)
    if not found:
        return
    lines = [
        f"The images in {dataset.train.folder.parent} are not those that {path} lists:",
        *(f"  {difference}" for difference in found[:LARGEST_LIST]),
    ]
    if len(found) > LARGEST_LIST:
        lines.append(f"  There are {len(found) - LARGEST_LIST} more differences.")
    lines.append(
        "The manifest keeps labels and the order of images from changing unnoticed. Undo the "
        f"change, or delete {path} to accept the images as they are now."
    )
    raise DataError("\n".join(lines))


def _tree(manifest: Manifest) -> ClassFolders:
    tree: ClassFolders = {name: [] for name in manifest.classes}
    names = os.fsdecode(manifest.names).split("\0")[:-1]
    for label, name in zip(manifest.labels, names, strict=True):
        tree[manifest.classes[label]].append(name)
    return tree


def _differences(before: ClassFolders, now: ClassFolders, folder: Path) -> list[str]:
    found = [f"The class folder {folder / name} is gone." for name in before if name not in now]
    found += [f"The class folder {folder / name} is new." for name in now if name not in before]
    for name in sorted(before.keys() & now.keys()):
        gone, new = set(before[name]) - set(now[name]), set(now[name]) - set(before[name])
        for files, state in ((sorted(gone), "gone"), (sorted(new), "new")):
            if files:
                verb = "is" if len(files) == 1 else "are"
                found.append(f"In {folder / name}, {listed(files)} {verb} {state}.")
    return found
