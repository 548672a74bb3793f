"""Opening a data set: by its manifest if there is one, else by its class folders."""

from __future__ import annotations

from pathlib import Path

from vggdist.data.classes import require_same_classes
from vggdist.data.folders import existing_folder, list_classes, list_images
from vggdist.data.manifest import Dataset, Manifest, from_classes
from vggdist.data.manifest_file import SPLITS, find_manifest, load_manifest
from vggdist.data.survey import dataset_folder, list_split, survey_dataset


def open_dataset(root: str | Path, fallback: Path | None = None, write: bool = False) -> Dataset:
    """The data set of a folder with train/ and val/: class folders, or shards.

    Args:
        root: the folder.
        fallback: folder for the manifest if `root` is not writable: the run folder. A manifest
            there takes precedence over one in `root`, since the run was started with it.
        write: compare the images with their manifest, and write an updated one. The main rank does
            so; afterwards the others call with False and load the result. Without a manifest, False
            takes the tree as it is.

    Raises:
        DataError: there is no such data set, or it differs from its manifest.
    """
    if write:
        survey = survey_dataset(root, fallback)
        survey.save()
        return survey.dataset
    root = dataset_folder(root)
    stored = find_manifest(root, fallback)
    if stored is not None:
        return load_manifest(stored, root)
    train, val = (list_split(root / split, split) for split in SPLITS)
    require_same_classes(train, val)
    return Dataset(train, val)


def open_split(root: str | Path, split: str) -> Manifest:
    """The images of one split, for commands that only read them; writes nothing.

    Args:
        root: a data set, or a folder that has only this split.
        split: train or val.

    Raises:
        DataError: there is no such split.
    """
    root = existing_folder(root)
    (other,) = set(SPLITS) - {split}
    if find_manifest(root) is None and (root / split).is_dir() and not (root / other).exists():
        return list_split(root / split, split)
    dataset = open_dataset(root)
    return dataset.train if split == "train" else dataset.val


def open_images(root: str | Path) -> Manifest:
    """The images of a folder, for commands that only read them; writes nothing.

    Args:
        root: a data set (its training images are taken), a folder of class folders, or a folder
            of images, which is then the only class.
    """
    root = existing_folder(root)
    stored = find_manifest(root)
    if stored is not None:
        return load_manifest(stored, root).train
    if (root / "train").is_dir():
        return list_split(root / "train", "train")
    images = list_images(root)
    if any("/" not in name for name in images):
        return from_classes(root.parent, "", [(root.name, images)])
    return from_classes(root, "", list_classes(root))
