"""Opening a data set: its manifest where there is one, else its class folders.

A class folder that is lost, added or renamed would silently change the labels of all later classes,
so the list of images is written down once, and every later start compares the tree with it.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np

from vggdist.data.folders import (
    LARGEST_LIST,
    existing_folder,
    list_classes,
    list_images,
    listed,
    names_in,
)
from vggdist.data.manifest import Dataset, Manifest, from_classes
from vggdist.data.manifest_file import MANIFEST_NAME, SPLITS, load_manifest, save_manifest
from vggdist.data.preparation.journal import is_unfinished
from vggdist.errors import DataError


def open_dataset(root: str | Path, fallback: Path | None = None, write: bool = False) -> Dataset:
    """The data set of a folder that holds train/ and val/: class folders, or shards.

    Args:
        root: the folder.
        fallback: where the manifest goes if `root` cannot be written: the run folder. A manifest
            that is there already goes before one in `root`, since the run was started with it.
        write: compare the images with their manifest, or write the manifest if there is none. The
            main rank does so; the others call with False afterwards and load what it has checked.
            Without a manifest, False takes the tree as it is.

    Raises:
        DataError: there is no such data set, or it is not the one that its manifest lists.
    """
    root = existing_folder(root)
    if is_unfinished(root):
        raise DataError(
            f"{root} holds a data set that is not finished yet. Start the same `vggdist prepare` "
            "again, which goes on where it stopped."
        )
    for split in SPLITS:
        if not (root / split).is_dir():
            raise DataError(
                f"{root} has no folder {split}/ (it has {listed(names_in(root))}); a data set is "
                "a folder with train/ and val/, each with one folder of images per class. Set "
                "data.root to such a folder."
            )
    stored = find_manifest(root, fallback)
    if stored is not None:
        dataset = load_manifest(stored, root)
        if write:
            _compare(root, stored, dataset.train, dataset.val)
        return dataset
    dataset = Dataset(*(_from_folders(root / split, split) for split in SPLITS))
    _check_same_classes(dataset)
    if write:
        save_manifest(dataset, _places(root, fallback))
    return dataset


def open_split(root: str | Path, split: str) -> Manifest:
    """The images of one split, for commands that only look at them; nothing is written.

    Args:
        root: a data set, or a folder that has only this split.
        split: train or val.

    Raises:
        DataError: there is no such split.
    """
    root = existing_folder(root)
    (other,) = set(SPLITS) - {split}
    if find_manifest(root) is None and (root / split).is_dir() and not (root / other).exists():
        return _from_folders(root / split, split)
    dataset = open_dataset(root)
    return dataset.train if split == "train" else dataset.val


def require_unchanged(images: Manifest, root: str | Path) -> None:
    """Compares images that `open_split` gave with the disk; one rank does.

    Raises:
        DataError: the stored manifest lists other images than there are.
    """
    root = existing_folder(root)
    if (stored := find_manifest(root)) is not None:
        _compare(root, stored, images)


def find_manifest(root: Path, fallback: Path | None = None) -> Path | None:
    """Where the manifest of a data set is, if it has one."""
    return next((path for path in reversed(_places(root, fallback)) if path.is_file()), None)


def open_images(root: str | Path) -> Manifest:
    """The images of a folder, for commands that only look at them; nothing is written.

    Args:
        root: a data set (its training images are taken), a folder of class folders, or a folder
            of images, which then is the only class.
    """
    root = existing_folder(root)
    stored = find_manifest(root)
    if stored is not None:
        return load_manifest(stored, root).train
    if (root / "train").is_dir():
        return _from_folders(root / "train", "train")
    images = list_images(root)
    if any("/" not in name for name in images):
        return from_classes(root.parent, "", [(root.name, images)])
    return from_classes(root, "", list_classes(root))


def _places(root: Path, fallback: Path | None) -> list[Path]:
    return [root / MANIFEST_NAME] + ([fallback / MANIFEST_NAME] if fallback else [])


def _from_folders(folder: Path, split: str) -> Manifest:
    shards = [name for name in names_in(folder) if name.endswith(".tar")]
    if shards:
        raise DataError(
            f"{folder} holds {listed(shards)}, but {folder.parent / MANIFEST_NAME}, which tells "
            "where in them the images are, is missing. Prepare the data set again."
        )
    return from_classes(folder, split, list_classes(folder))


def _check_same_classes(dataset: Dataset) -> None:
    train, val = set(dataset.train.classes), set(dataset.val.classes)
    differences = [
        f"only {dataset.root / split} has {listed(sorted(names))}"
        for split, names in (("train", train - val), ("val", val - train))
        if names
    ]
    if differences:
        raise DataError(
            f"train/ and val/ have different class folders: {'; '.join(differences)}. A label is "
            "the place of a class among the sorted folders, so both need the same ones. Add or "
            "remove these folders."
        )


def _compare(root: Path, path: Path, *parts: Manifest) -> None:
    """Raises a DataError that names the differences between a manifest and the disk, if any."""
    found: list[str] = []
    for manifest in parts:
        found += _shard_differences(manifest) if manifest.shards else _tree_differences(manifest)
    if not found:
        return
    lines = [
        f"The images in {root} are not those that {path} lists:",
        *(f"  {difference}" for difference in found[:LARGEST_LIST]),
    ]
    if len(found) > LARGEST_LIST:
        lines.append(f"  There are {len(found) - LARGEST_LIST} more differences.")
    lines.append(
        "The manifest keeps labels and the order of images from changing unnoticed. Undo the "
        + (
            "change, or prepare the shards again."
            if parts[0].shards
            else f"change, or delete {path} to accept the images as they are now."
        )
    )
    raise DataError("\n".join(lines))


def _shard_differences(manifest: Manifest) -> list[str]:
    assert manifest.shards is not None
    found = []
    for name, size in zip(manifest.shards.files, manifest.shards.sizes, strict=True):
        try:
            now = os.stat(manifest.folder / name).st_size
        except OSError as error:
            found.append(f"{manifest.folder / name}: {error.strerror}.")
            continue
        if now != size:
            found.append(f"{manifest.folder / name} has {now} bytes, not {size}.")
    return found


def _tree_differences(manifest: Manifest) -> list[str]:
    folder, names = manifest.folder, manifest.names
    ends = np.searchsorted(manifest.labels, np.arange(len(manifest.classes)), side="right")
    listed_in = dict(zip(manifest.classes, pairwise([0, *ends.tolist()]), strict=True))
    new, files = [], []
    for name, now in list_classes(folder):
        if name not in listed_in:
            new.append(f"The class folder {folder / name} is new.")
            continue
        before = names.unpack(*listed_in.pop(name))
        if now != before:
            files += _file_differences(folder / name, set(before), set(now))
    gone = [
        f"The class folder {folder / name} is gone."
        for name, (first, last) in listed_in.items()
        if first < last  # a class without images, which a prepared data set may have, has none
    ]
    return gone + new + files


def _file_differences(folder: Path, before: set[str], now: set[str]) -> list[str]:
    return [
        f"In {folder}, {listed(sorted(names))} {'is' if len(names) == 1 else 'are'} {state}."
        for names, state in ((before - now, "gone"), (now - before, "new"))
        if names
    ]
