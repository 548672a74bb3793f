"""What is on disk: class folders and the images in them.

A class is a folder; its images are the files in it, and in folders below it, that have an image's
suffix. Whatever is hidden or has another suffix is left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vggdist.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""Lower case; files count whatever the case of theirs. DALI decodes all of these formats."""

LARGEST_LIST = 5
"""Names that an error message spells out before it says how many more there are."""

_LISTING_THREADS = 16  # hides the latency of network file systems


def existing_folder(root: str | Path) -> Path:
    """`root` as an absolute path; a DataError if it is no folder."""
    folder = Path(root).expanduser().absolute()
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise DataError(
            f"The data folder {folder} {state}; set data.root to a folder with train/ and val/, "
            "each with one folder of images per class."
        )
    return folder


def list_classes(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Each class folder of `folder` with the sorted names of its images, relative to it; sorted.

    One after another: a list of ImageNet's names as Python strings takes 300 MB.

    Raises:
        DataError: no class folders, classes without images, or a folder that cannot be read.
    """
    classes = [name for name in names_in(folder) if (folder / name).is_dir()]
    if not classes:
        raise DataError(
            f"{folder} has no class folders; put the images of each class into a folder of its "
            f"own, as in {folder / 'CLASS' / 'IMAGE.jpg'}."
        )
    empty = []
    with ThreadPoolExecutor(_LISTING_THREADS) as pool:
        found = pool.map(list_images, (folder / name for name in classes))
        for name, images in zip(classes, found, strict=True):
            if not images:
                empty.append(str(folder / name))
            yield name, images
    if empty:
        raise DataError(
            f"There are no images in {listed(empty)}; every class needs at least one file that "
            f"ends in {', '.join(IMAGE_SUFFIXES)}. Fill the folder, or remove it."
        )


def list_images(folder: Path, prefix: str = "") -> list[str]:
    """Sorted names of the images in a folder and below it, relative to it, after `prefix`."""
    found, below = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.lower().endswith(IMAGE_SUFFIXES) and not entry.is_dir():
                    found.append(prefix + entry.name)
                elif entry.is_dir(follow_symlinks=False):  # a link may lead back up, for ever
                    below.append(entry.name)
    except OSError as error:
        raise DataError(f"The folder {folder} cannot be read: {error.strerror}.") from error
    for name in below:
        found += list_images(folder / name, f"{prefix}{name}/")
    return sorted(found)


def names_in(folder: Path) -> list[str]:
    """Sorted names of everything in a folder that is not hidden."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise DataError(f"The folder {folder} cannot be read: {error.strerror}.") from error


def listed(names: Sequence[str]) -> str:
    """A few names for an error message, and how many more there are."""
    shown = ", ".join(names[:LARGEST_LIST]) or "nothing"
    more = len(names) - LARGEST_LIST
    return f"{shown} and {more} more" if more > 0 else shown
