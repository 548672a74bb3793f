"""Listing class folders and the images in them.

A class is a folder; its images are the files in and below it that have an image suffix. Links are
followed. Files and folders that are hidden, have another suffix or were left by systems or programs
are skipped, and counted.
"""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggdist.artifacts.names import has_control_characters, listed, shortened, spelled
from vggdist.artifacts.paths import quote
from vggdist.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""Lower case, but files may have any case. DALI decodes all of these formats."""

HIDDEN = "hidden"
BY_PROGRAMS = "left by systems and programs"
OTHER_SUFFIX = "with another suffix"
LOOSE = "beside the class folders"
DEAD_LINK = "links that lead nowhere"

_BY_PROGRAMS = frozenset(
    (
        *("__macosx", ".ds_store", ".appledouble", ".spotlight-v100", ".fseventsd", ".trashes"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "system volume information"),
        *("$recycle.bin", "recycler", "found.000", "lost+found", ".thumbnails", ".directory"),
        *("@eadir", "#recycle", "#snapshot", ".@__thumb", "@recycle", "@recently-snapshot"),
        *(".snapshot", ".ipynb_checkpoints", "__pycache__", ".picasaoriginals", ".picasa.ini"),
    )
)
"""Lower case: macOS; Windows; Windows and Unix; network storage; notebooks and viewers."""
_APPLE_DOUBLE = "._"  # metadata file that macOS adds for every file on non-Apple disks

_LISTING_THREADS = 16  # hides the latency of network file systems
_WHOLE_NUMBER = re.compile(r"-?[0-9]+")


class Skipped(NamedTuple):
    """A file or folder that is not read."""

    name: str
    """Relative to the folder that was listed."""
    reason: str
    kind: str
    """Its suffix in lower case, or another category of files skipped for the same reason."""


class Listing(NamedTuple):
    """A folder and everything below it."""

    images: list[str]
    """Names of images relative to it, sorted."""
    states: NDArray[np.int64] | None
    """(num_images, 2), length in bytes and modification time in ns of each image's file; -1 if
    unknown; None if not requested."""
    skipped: list[Skipped]


class Census:
    """What a listing of class folders finds besides the names of images.

    Attributes:
        states: class -> `Listing.states`.
        skipped: (reason, kind) -> count.
    """

    def __init__(self) -> None:
        self.states: dict[str, NDArray[np.int64]] = {}
        self.skipped: Counter[tuple[str, str]] = Counter()

    def add(self, skipped: Iterable[Skipped]) -> None:
        """Counts what was skipped."""
        self.skipped.update((entry.reason, entry.kind) for entry in skipped)

    def states_of(self, classes: Iterable[str]) -> NDArray[np.int64]:
        """(num_images, 2), `Listing.states` of all images of `classes`, in this order."""
        return np.concatenate([self.states[name] for name in classes if name in self.states])


def existing_folder(root: str | Path) -> Path:
    """`root` as an absolute path; raises a DataError if it is not a folder."""
    folder = Path(root).expanduser().absolute()
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise DataError(
            f"The data folder {quote(folder)} {state}; set data.root to a folder with train/ and "
            "val/, each with one folder of images per class."
        )
    return folder


def list_classes(folder: Path, census: Census | None = None) -> Iterator[tuple[str, list[str]]]:
    """Each class folder of `folder`, in label order, with the sorted names of its images.

    An iterator: ImageNet's names as a list of Python strings take 300 MB.

    Args:
        folder: a split.
        census: receives the file states and the skipped files.

    Raises:
        DataError: no class folders, classes without images or with an invalid name, or an
            unreadable folder.
    """
    classes, skipped = class_folders(folder)
    if census is not None:
        census.add(skipped)
    if not classes:
        raise DataError(
            f"{folder} has no class folders; put the images of each class into a folder of its "
            f"own, as in {folder / 'CLASS' / 'IMAGE.jpg'}."
        )
    empty = []
    with ThreadPoolExecutor(_LISTING_THREADS) as pool:
        listings = pool.map(
            partial(list_folder, with_states=census is not None),
            (folder / name for name in classes),
        )
        for name, listing in zip(classes, listings, strict=True):
            if not listing.images:
                empty.append(name)
            if census is not None:
                assert listing.states is not None
                census.states[name] = listing.states
                census.add(listing.skipped)
            yield name, listing.images
    if empty:
        raise DataError(
            f"In {folder} there are no images in {listed(empty)}; every class needs at least one "
            f"file that ends in {', '.join(IMAGE_SUFFIXES)}. Fill the folder, or remove it."
        )


def class_folders(folder: Path) -> tuple[list[str], list[Skipped]]:
    """Names of the class folders in label order, and the skipped entries next to them.

    Raises:
        DataError: a name has control characters, a link leads back, or the folder is unreadable.
    """
    classes, skipped = [], []
    for entry in _entries(folder):
        reason = _reason(entry)
        if not reason and _is_folder(entry, ()):
            classes.append(entry.name)
        else:
            if reason in ("", DEAD_LINK):
                reason = LOOSE if _has_image_suffix(entry) else reason or OTHER_SUFFIX
            skipped.append(Skipped(entry.name, reason, _kind(entry.name, reason)))
    if unusable := [name for name in classes if has_control_characters(name)]:
        raise DataError(
            f"In {folder} there are class folders with control characters, such as a line break, "
            f"in their names, which no list or picture of classes could show: {listed(unusable)}. "
            "Rename them."
        )
    return label_order(classes), skipped


def label_order(classes: Iterable[str]) -> list[str]:
    """Class names in label order: by number if all are whole numbers, else as text."""
    names = sorted(classes)
    if all(_WHOLE_NUMBER.fullmatch(name) for name in names):
        names.sort(key=int)
    return names


def list_images(folder: Path) -> list[str]:
    """Sorted names of the images in and below a folder, relative to it."""
    return list_folder(folder).images


def list_folder(folder: Path, with_states: bool = False) -> Listing:
    """All images in and below a folder, and the skipped entries.

    Raises:
        DataError: it cannot be read, or a link leads back to a folder that contains it.
    """
    found: list[tuple[str, int, int]] = []
    skipped: list[Skipped] = []
    for name, entry, reason in _walk(folder, "", ()):
        if reason in ("", DEAD_LINK) and _has_image_suffix(entry):
            # A dead link with an image's suffix is a bad image, like a damaged file.
            found.append((name, *(_state(entry) if with_states else (-1, -1))))
        else:
            kind = _kind(entry.name, reason)
            skipped.append(Skipped(name, reason or OTHER_SUFFIX, kind))
    found.sort()
    states = np.array([state for _, *state in found], np.int64).reshape(-1, 2)
    return Listing([name for name, *_ in found], states if with_states else None, skipped)


def _walk(
    folder: Path, prefix: str, links: tuple[str, ...]
) -> Iterator[tuple[str, os.DirEntry[str], str]]:
    """Everything in and below a folder but folders: its name, and why it is skipped whatever its
    suffix.

    Args:
        prefix: of the names.
        links: real folders of the links that led here.
    """
    below = []
    for entry in _entries(folder):
        reason = _reason(entry)
        if not reason and _is_folder(entry, links):
            below.append(entry)
        else:
            yield prefix + entry.name, entry, reason
    for entry in below:
        further = (*links, os.path.realpath(folder)) if entry.is_symlink() else links
        yield from _walk(folder / entry.name, f"{prefix}{entry.name}/", further)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(
            f"The folder {quote(folder)} cannot be read: {error.strerror}. Give yourself the right "
            "to read it, or remove it."
        ) from error


def _reason(entry: os.DirEntry[str]) -> str:
    """Why an entry is skipped whatever its suffix; empty if it is not."""
    name = entry.name.lower()
    if name in _BY_PROGRAMS or name.startswith(_APPLE_DOUBLE):
        return BY_PROGRAMS
    if name.startswith("."):
        return HIDDEN
    if entry.is_symlink():
        try:
            os.stat(entry.path)
        except FileNotFoundError:
            return DEAD_LINK
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _endless(entry, "itself") from error
    return ""


def _kind(name: str, reason: str) -> str:
    if reason == BY_PROGRAMS:
        return "._*" if name.startswith(_APPLE_DOUBLE) else name
    return os.path.splitext(name)[1].lower() or "no suffix"


def _has_image_suffix(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(IMAGE_SUFFIXES)


def _is_folder(entry: os.DirEntry[str], links: tuple[str, ...]) -> bool:
    """Whether an entry is a folder, or a link to one.

    Raises:
        DataError: the link leads back to a folder that contains it.
    """
    try:
        if not entry.is_dir():
            return False
    except OSError:
        return False
    if entry.is_symlink():
        target = os.path.realpath(entry.path)
        for above in (os.path.realpath(os.path.dirname(entry.path)), *links):
            if os.path.commonpath([above, target]) == target:
                raise _endless(entry, target)
    return True


def _endless(entry: os.DirEntry[str], target: str) -> DataError:
    return DataError(
        f"The link {spelled(entry.path)} leads back to {target}, so that following it would never "
        "end. Remove it."
    )


def _state(entry: os.DirEntry[str]) -> tuple[int, int]:
    try:
        status = entry.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def names_in(folder: Path) -> list[str]:
    """Sorted names of everything in a folder that is neither hidden nor left by a program."""
    return sorted(entry.name for entry in _entries(folder) if not _reason(entry))


def render_skipped(skipped: Counter[tuple[str, str]]) -> str:
    """`beside the class folders: .jpg 20; hidden: .jpg 1`, most frequent first."""
    reasons = {reason: Counter[str]() for reason, _ in skipped}
    for (reason, kind), count in skipped.items():
        reasons[reason][kind] += count
    return "; ".join(
        f"{reason}: {shortened([f'{kind} {count}' for kind, count in kinds.most_common()])}"
        for reason, kinds in sorted(reasons.items(), key=lambda item: -item[1].total())
    )
