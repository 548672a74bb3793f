"""Compares a data set on disk with its manifest, name by name and file by file.

A class folder that is lost, added or renamed would silently change the labels of all later classes,
so the list of images is saved once, and every later start compares the tree with it. It also holds
digests of the files, to detect results of different images under the same names.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggdist.artifacts.names import LARGEST_LIST, explain_twins, listed, spelled
from vggdist.artifacts.paths import quote
from vggdist.data.classes import require_same_classes
from vggdist.data.folders import Census, existing_folder, list_classes, names_in, render_skipped
from vggdist.data.known_contents import digest, renew
from vggdist.data.manifest import Contents, Dataset, Manifest, from_classes
from vggdist.data.manifest_file import (
    MANIFEST_NAME,
    SPLITS,
    find_manifest,
    is_unfinished,
    load_contents,
    load_manifest,
    manifest_places,
    save_manifest,
    with_quarantine,
)
from vggdist.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Survey:
    """Splits of a data set, compared with the disk by one rank."""

    splits: tuple[Manifest, ...]
    """The manifests, with digests of their contents."""
    contents: Mapping[str, Contents]
    """Split -> contents of its files."""
    changed: tuple[str, ...]
    """Images, split/class/file, whose contents have changed since the last survey."""
    remarks: tuple[str, ...]
    """Warnings for the user, as sentences."""
    is_outdated: bool
    """Whether the stored manifest is out of date."""
    places: tuple[Path, ...]
    """Folders for the manifest, the preferred one first."""
    added: tuple[str, ...] = ()
    """Images, split/class/file, that the stored manifest lacks and that were accepted."""
    removed: tuple[str, ...] = ()
    """Those that it has and that are gone, which was accepted."""

    @property
    def dataset(self) -> Dataset:
        """Both splits."""
        train, val = self.splits
        return Dataset(train, val)

    def save(self) -> Path | None:
        """Writes the manifest, if it is out of date.

        Returns:
            The file, if there was none before.

        Raises:
            DataError: there is none, and it cannot be written.
        """
        if not self.is_outdated:
            return None
        is_first = not any(place.is_file() for place in self.places)
        try:
            file = save_manifest(self.dataset, self.places, self.contents)
        except DataError as error:
            if is_first:
                raise
            logger.warning(
                "The updated manifest is not saved, and is computed again at each start: %s", error
            )
            return None
        return file if is_first else None


class _Current(NamedTuple):
    """A split as currently listed."""

    manifest: Manifest
    census: Census
    states: NDArray[np.int64] | None
    """Of the files; None if there are differences."""
    differences: list[str]
    """From the stored list, as sentences."""


def survey_dataset(
    root: str | Path, fallback: Path | None = None, accept_changes: bool = False
) -> Survey:
    """Surveys both splits; writes nothing.

    Args:
        root: the folder with train/ and val/.
        fallback: another folder for the manifest, which takes precedence over `root`.
        accept_changes: whether images may have come or gone since the manifest was written; shards
            hold what was packed.

    Raises:
        DataError: there is no such data set, or it differs from its manifest.
    """
    root = dataset_folder(root)
    stored = find_manifest(root, fallback)
    if stored is not None:
        dataset = load_manifest(stored, root)
        splits = [_compare(manifest) for manifest in (dataset.train, dataset.val)]
        if accept_changes and not dataset.train.shards and any(s.differences for s in splits):
            return _accepted(dataset, root, fallback)
    else:
        splits = [_list(root / split, split) for split in SPLITS]
        require_same_classes(*(current.manifest for current in splits))
    return _survey(splits, root, stored, manifest_places(root, fallback))


def _accepted(before: Dataset, root: Path, fallback: Path | None) -> Survey:
    """The images as they are now, and what has come and gone."""
    splits = [_list(root / split, split) for split in SPLITS]
    require_same_classes(*(current.manifest for current in splits))
    had = {name for manifest in (before.train, before.val) for name in _names(manifest)}
    have = {name for current in splits for name in _names(current.manifest)}
    survey = _survey(splits, root, None, manifest_places(root, fallback))
    return replace(survey, added=tuple(sorted(have - had)), removed=tuple(sorted(had - have)))


def _names(manifest: Manifest) -> Iterator[str]:
    for image in range(manifest.num_images):
        yield f"{manifest.split}/{manifest.name(image)}"


def survey_images(images: Manifest) -> Survey:
    """Surveys images that were opened before; writes nothing.

    Raises:
        DataError: the images have changed.
    """
    root = images.folder.parent if images.split else images.folder
    stored = find_manifest(root) if images.split else None
    return _survey([_compare(images)], root, stored, manifest_places(root))


def note_files(manifest: Manifest, contents: Contents) -> tuple[Manifest, Contents]:
    """A split that has just been written, with the times of its files.

    Raises:
        DataError: the folder has other images.
    """
    current = _compare(manifest)
    if current.states is None:
        raise _other_images(manifest.folder.parent, None, manifest, current.differences)
    file_times = current.states[:, 1]
    times = file_times if manifest.shards is None else np.full(manifest.num_images, -1, np.int64)
    contents = replace(contents, times=times, file_times=file_times)
    return replace(manifest, contents=digest(manifest, contents)), contents


def dataset_folder(root: str | Path) -> Path:
    """`root` as an absolute path.

    Raises:
        DataError: it has no train/ and val/, or its preparation is unfinished.
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
                "data.root to such a folder. `vggdist prepare folder SRC --validation 20% --form "
                "folders --out DIR` makes one of a single folder of classes."
            )
    return root


def list_split(folder: Path, split: str, census: Census | None = None) -> Manifest:
    """The images of a split that has no manifest.

    Args:
        folder: with class folders.
        split: its name.
        census: as in `list_classes`.

    Raises:
        DataError: as in `list_classes`; or there are shards.
    """
    shards = [name for name in names_in(folder) if name.endswith(".tar")]
    if shards:
        raise DataError(
            f"{folder} holds {listed(shards)}, but {folder.parent / MANIFEST_NAME}, which tells "
            "where in them the images are, is missing. Prepare the data set again."
        )
    return with_quarantine(from_classes(folder, split, list_classes(folder, census)))


def _survey(
    splits: Sequence[_Current], root: Path, stored: Path | None, places: Sequence[Path]
) -> Survey:
    if differences := [text for split in splits for text in split.differences]:
        raise _other_images(root, stored, splits[0].manifest, differences)
    known = (load_contents(stored, root) if stored is not None else None) or {}
    renewed = []
    for split in splits:
        assert split.states is not None
        renewed.append(renew(split.manifest, known.get(split.manifest.split), split.states))
    changed = [
        f"{new.manifest.split}/{new.manifest.name(image)}".removeprefix("/")
        for new in renewed
        for image in new.changed
    ]
    if changed and splits[0].manifest.shards is not None:
        damage = [f"{spelled(name)} is not the image that was packed." for name in changed]
        raise _other_images(root, stored, splits[0].manifest, damage)
    remarks = list(_remarks(splits))
    if stored is not None and not all(
        split.manifest.split in known and known[split.manifest.split].file_times is not None
        for split in splits
    ):
        remarks.append(
            f"{stored} was written by a version that did not note what is in the images' files; "
            "they are taken as they are now."
        )
    if changed:
        remarks.append(
            f"{len(changed):,} images have changed since {stored} was written: {listed(changed)}."
        )
    return Survey(
        splits=tuple(new.manifest for new in renewed),
        contents={new.manifest.split: new.contents for new in renewed},
        changed=tuple(changed),
        remarks=tuple(remarks),
        is_outdated=stored is None or any(new.is_outdated for new in renewed),
        places=tuple(places),
    )


def _remarks(splits: Sequence[_Current]) -> Iterator[str]:
    for split in splits:
        folder, skipped = split.manifest.folder, split.census.skipped
        if skipped:
            yield f"not read in {folder}: {render_skipped(skipped)}"
        if said := explain_twins(split.manifest.classes):
            yield f"In {folder}, {said}"


def _list(folder: Path, split: str) -> _Current:
    census = Census()
    manifest = list_split(folder, split, census)
    return _Current(manifest, census, census.states_of(manifest.classes), [])


def _compare(manifest: Manifest) -> _Current:
    """A split compared with the disk."""
    census = Census()
    if manifest.shards is not None:
        return _Current(manifest, census, *_compare_shards(manifest))
    differences = _compare_tree(manifest, census)
    states = None if differences else census.states_of(manifest.classes)
    return _Current(manifest, census, states, differences)


def _compare_shards(manifest: Manifest) -> tuple[NDArray[np.int64] | None, list[str]]:
    assert manifest.shards is not None
    states, differences = [], []
    for name, size in zip(manifest.shards.files, manifest.shards.sizes, strict=True):
        try:
            now = os.stat(manifest.folder / name)
        except OSError as error:
            differences.append(f"{manifest.folder / name}: {error.strerror}.")
            continue
        states.append((now.st_size, now.st_mtime_ns))
        if now.st_size != size:
            differences.append(f"{manifest.folder / name} has {now.st_size} bytes, not {size}.")
    return (None if differences else np.array(states, np.int64)), differences


def _compare_tree(manifest: Manifest, census: Census) -> list[str]:
    folder, names = manifest.folder, manifest.names
    ends = np.searchsorted(manifest.labels, np.arange(len(manifest.classes)), side="right")
    listed_in = dict(zip(manifest.classes, pairwise([0, *ends.tolist()]), strict=True))
    new, files = [], []
    for name, now in list_classes(folder, census):
        if name not in listed_in:
            new.append(name)
            continue
        before = names.unpack(*listed_in.pop(name))
        if now != before:
            files += _file_differences(folder / name, set(before), set(now))
    gone = [
        name
        for name, (first, last) in listed_in.items()
        if first < last  # a class without images, which a prepared data set may have, has none
    ]
    differences = [f"In {folder}, the class folder {spelled(name)} is gone." for name in gone]
    differences += [f"In {folder}, the class folder {spelled(name)} is new." for name in new]
    if said := explain_twins({*gone, *new}):
        differences.append(said)
    return differences + files


def _file_differences(folder: Path, before: set[str], now: set[str]) -> list[str]:
    differences = [
        f"In {folder}, {listed(sorted(names))} {'is' if len(names) == 1 else 'are'} {state}."
        for names, state in ((before - now, "gone"), (now - before, "new"))
        if names
    ]
    said = explain_twins(before ^ now)
    return [*differences, said] if said else differences


def _other_images(
    root: Path, stored: Path | None, manifest: Manifest, differences: Sequence[str]
) -> DataError:
    if stored is None:
        return DataError(
            f"While the images in {root} were listed, they changed: {differences[0]} Start again "
            "once they stay as they are."
        )
    lines = [f"  {difference}" for difference in differences[:LARGEST_LIST]]
    if len(differences) > LARGEST_LIST:
        lines.append(f"  There are {len(differences) - LARGEST_LIST} more differences.")
    listing = "\n".join(lines)
    if manifest.shards is not None:
        hint = "prepare the shards again"
    elif stored.parent == root:
        hint = f"accept the images as they are now: `vggdist check {quote(root)} --accept-changes`"
    else:
        hint = f"delete {stored} to accept the images as they are now"
    return DataError(
        f"The images in {root} are not those that {stored} lists:\n{listing}\nThe manifest keeps "
        f"labels and the order of images from changing unnoticed. Undo the change, or {hint}."
    )
