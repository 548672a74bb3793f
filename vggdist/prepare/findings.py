"""What a check of a data set finds: from what is known of each image to the report of the whole."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggdist.artifacts.names import printable
from vggdist.artifacts.paths import quote
from vggdist.data.manifest import Contents, Manifest
from vggdist.data.manifest_file import BadFile
from vggdist.data.pillow import Examined
from vggdist.errors import DataError

TINY_CLASS = 10
"""A class with fewer training images is worth a warning; ImageNet's smallest has 732."""

CROP_SIZE = 224
"""The paper's crop size, pixels: an image with a shorter side below it is enlarged at every S."""

_MOST_FILES = 20  # quarantined files that are spelled out
_MOST_CASES = 5  # that a warning spells out


@dataclass(frozen=True)
class Spread:
    """A quantity over the accepted images; zeros if there are none."""

    min: int
    median: int
    max: int


@dataclass(frozen=True)
class ClassCount:
    """The images of a class in one split."""

    images: int
    accepted: int


@dataclass(frozen=True)
class Extreme:
    """An image that is the largest or the smallest by its pixels."""

    file: str
    width: int
    height: int


@dataclass(frozen=True)
class Duplicates:
    """Accepted images with the same bytes, as groups of file names."""

    across_splits: list[list[str]]
    """In train and val: they make the validation error look better than it is."""
    different_labels: list[list[str]]
    """In several classes of one split."""
    num_same_label: int
    """Copies beyond the first in the same class and split."""


@dataclass(frozen=True)
class CheckResult:
    """What a check found; the same however many processes it used."""

    data: str
    """The folder."""
    accepted: int
    """Images that training can use."""
    quarantine: list[BadFile]
    """Those that it cannot, sorted by file."""
    left_out: dict[str, dict[str, int]]
    """Reason -> suffix, or what else it is -> files and folders that training does not read."""
    splits: dict[str, dict[str, ClassCount]]
    """Split (empty: the data has none) -> class -> its images."""
    formats: dict[str, int]
    """Pillow's name of the format -> accepted images."""
    modes: dict[str, int]
    """Pillow's name of the pixels' layout -> accepted images."""
    shorter_side: Spread
    """Pixels."""
    num_bytes: Spread
    """Lengths of the encoded images."""
    smallest: Extreme | None
    largest: Extreme | None
    num_below_crop_size: int
    """Accepted images whose shorter side is below `CROP_SIZE`."""
    num_turned: int
    """Accepted images with an EXIF orientation, by which a viewer turns them."""
    duplicates: Duplicates
    tiny_classes: dict[str, int]
    """Class -> its accepted training images, where they are fewer than `TINY_CLASS`."""
    changed: list[str]
    """Files whose bytes are not those that the manifest knew."""
    damaged: list[BadFile]
    """Accepted images of which the decoder says that they are damaged, sorted by file."""
    added: list[str] = field(default_factory=list)
    """Images that the manifest lacked and that were accepted."""
    removed: list[str] = field(default_factory=list)
    """Images that it had and that are gone, which was accepted."""
    moved: list[str] = field(default_factory=list)
    """Images of the quarantine that were moved away."""
    not_moved: list[str] = field(default_factory=list)
    """Those that were not, since there was such a file already."""

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        return asdict(self)

    def require(self, threshold: float) -> None:
        """Refuses data of which a larger share than `threshold` is in quarantine.

        Raises:
            DataError: it is.
        """
        unusable = len(self.quarantine)
        total = self.accepted + unusable
        if unusable > threshold * total:
            raise DataError(
                f"{unusable} of {total} images in {self.data} ({unusable / total:.2%}) cannot be "
                f"used, more than the {threshold:.2%} that --threshold allows. Replace them with "
                "good copies, or allow more."
            )


class Findings:
    """What is known of the images of a folder, numbered through all of its splits.

    Args:
        root: the folder; files are named relative to it.
        manifests: its splits, the training images first.
        before: split -> what its manifest knew of the files, if it knew anything.

    Attributes:
        bad: the images that training cannot use.
        damaged: those that it uses though they are damaged.
    """

    def __init__(
        self, root: Path, manifests: Sequence[Manifest], before: Mapping[str, Contents]
    ) -> None:
        counts = [manifest.num_images for manifest in manifests]
        self._root, self._manifests, self._before = root, manifests, before
        self._split = np.repeat(np.arange(len(counts)), counts)
        self._first = np.cumsum([0, *counts])  # image of each split
        self._usable = np.zeros(sum(counts), dtype=bool)
        self._num_bytes = np.zeros(sum(counts), dtype=np.int64)
        self._sizes = np.zeros((sum(counts), 2), dtype=np.int32)
        self._sha256 = np.zeros((sum(counts), 32), dtype=np.uint8)
        self._orientations = np.ones(sum(counts), dtype=np.uint8)
        self._formats: Counter[str] = Counter()
        self._modes: Counter[str] = Counter()
        self.bad: list[BadFile] = []
        self.damaged: list[BadFile] = []

    def add(self, image: int, found: Examined) -> None:
        """Records what was found in an image."""
        self._num_bytes[image] = found.num_bytes
        self._sizes[image] = found.width, found.height
        self._sha256[image] = np.frombuffer(found.sha256, dtype=np.uint8)
        self._orientations[image] = found.orientation or 1
        if found.reason:
            self.bad.append(BadFile(self._file(image), found.reason))
            return
        self._usable[image] = True
        if found.damage:
            self.damaged.append(BadFile(self._file(image), found.damage))
        self._formats[found.format] += 1
        self._modes[found.mode or "unknown"] += 1

    def contents(self, split: int) -> Contents:
        """What is in the files of a split, given by its place among the manifests."""
        images = slice(self._first[split], self._first[split + 1])
        orientations = self._orientations[images]
        return Contents(self._sizes[images], self._sha256[images], orientations=orientations)

    def result(
        self, refused: Sequence[BadFile], left_out: Mapping[str, Counter[str]]
    ) -> CheckResult:
        """The result for the folder.

        Args:
            refused: images that training does not list, by their suffix.
            left_out: reason -> kind -> what else it does not list.
        """
        accepted = np.flatnonzero(self._usable)
        sizes = self._sizes[accepted]
        by_pixels = accepted[np.argsort(sizes.astype(np.int64).prod(axis=1), kind="stable")]
        shorter = sizes.min(axis=1)
        splits = {
            manifest.split: self._class_counts(i) for i, manifest in enumerate(self._manifests)
        }
        training = splits[self._manifests[0].split]
        return CheckResult(
            data=str(self._root),
            accepted=len(accepted),
            quarantine=_by_file([*refused, *self.bad]),
            left_out={reason: _by_count(kinds) for reason, kinds in left_out.items()},
            splits=splits,
            formats=_by_count(self._formats),
            modes=_by_count(self._modes),
            shorter_side=_spread(shorter),
            num_bytes=_spread(self._num_bytes[accepted]),
            smallest=self._extreme(by_pixels[0]) if len(accepted) else None,
            largest=self._extreme(by_pixels[-1]) if len(accepted) else None,
            num_below_crop_size=int((shorter < CROP_SIZE).sum()),
            num_turned=int((self._orientations[accepted] > 1).sum()),
            duplicates=self._duplicates(accepted),
            tiny_classes={
                name: count.accepted
                for name, count in training.items()
                if count.accepted < TINY_CLASS
            },
            changed=sorted(self._changed()),
            damaged=_by_file(self.damaged),
        )

    def _file(self, image: int) -> str:
        """The name of an image, relative to the folder that is checked."""
        split = int(self._split[image])
        manifest = self._manifests[split]
        name = manifest.name(image - int(self._first[split]))
        if manifest.folder == self._root.parent:
            # A folder that is itself the only class is part of an image's name, but above `root`.
            return name.removeprefix(f"{self._root.name}/")
        return f"{manifest.split}/{name}" if manifest.split else name

    def _class_counts(self, split: int) -> dict[str, ClassCount]:
        labels, classes = self._manifests[split].labels, self._manifests[split].classes
        usable = self._usable[self._first[split] : self._first[split + 1]]
        images = np.bincount(labels, minlength=len(classes)).tolist()
        accepted = np.bincount(labels[usable], minlength=len(classes)).tolist()
        return dict(zip(classes, map(ClassCount, images, accepted), strict=True))

    def _extreme(self, image: int) -> Extreme:
        width, height = self._sizes[image].tolist()
        return Extreme(self._file(image), width, height)

    def _changed(self) -> Iterator[str]:
        """Files whose bytes are not those that the manifest knew."""
        for split, manifest in enumerate(self._manifests):
            if manifest.split in self._before:
                before, now = self._before[manifest.split].sha256, self.contents(split).sha256
                known = before.any(axis=1) & now.any(axis=1)
                for image in np.flatnonzero(known & (before != now).any(axis=1)):
                    yield self._file(self._first[split] + image)

    def _duplicates(self, accepted: NDArray[np.int64]) -> Duplicates:
        labels = np.concatenate([manifest.labels for manifest in self._manifests])
        across, conflicting, num_same = [], [], 0
        for places in _equal_rows(self._sha256[accepted]):
            group = accepted[places]
            by_label = {(self._split[image], labels[image]) for image in group}
            num_same += len(group) - len(by_label)
            labels_of = Counter(split for split, _ in by_label)
            if len(labels_of) > 1:
                across.append(sorted(map(self._file, group)))
            for split, num_labels in labels_of.items():
                if num_labels > 1:
                    of_split = group[self._split[group] == split]
                    conflicting.append(sorted(map(self._file, of_split)))
        return Duplicates(sorted(across), sorted(conflicting), num_same)


def _by_file(images: Iterable[BadFile]) -> list[BadFile]:
    return sorted(images, key=attrgetter("file"))


def _spread(values: NDArray[Any]) -> Spread:
    if not len(values):
        return Spread(0, 0, 0)
    return Spread(int(values.min()), int(np.median(values)), int(values.max()))


def _by_count(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _equal_rows(hashes: NDArray[np.uint8]) -> Iterator[list[int]]:
    """Places of equal rows of (n, 32), in groups of at least two."""
    words = hashes.view(np.uint64)  # (n, 4): numbers sort faster than strings
    order = np.lexsort(words.T)
    as_before = (words[order][1:] == words[order][:-1]).all(axis=1)
    ends = np.diff(np.concatenate([[False], as_before, [False]]).astype(np.int8))
    for first, last in np.flatnonzero(ends).reshape(-1, 2):
        yield order[first : last + 1].tolist()


def render_check(result: CheckResult, whole_list: Path | None) -> str:
    """A few tables, then warnings, then damaged and quarantined files by reason.

    Args:
        result: of `check`.
        whole_list: where all such files are listed; none: nowhere.
    """
    total = result.accepted + len(result.quarantine)
    lines = [
        f"{quote(result.data)}: {result.accepted} of {total} images can be used",
        "",
        f"  {'':<8}{'classes':>9}{'images':>11}{'accepted':>11}",
    ]
    for split, classes in result.splits.items():
        images = sum(count.images for count in classes.values())
        accepted = sum(count.accepted for count in classes.values())
        lines.append(f"  {split or 'all':<8}{len(classes):>9}{images:>11}{accepted:>11}")
    lines += ["", *(f"  {name:<14} {value}" for name, value in _contents(result))]
    if warnings := list(_warnings(result)):
        lines += ["", "Warnings", *(f"  {warning}" for warning in warnings)]
    for title, files in (
        ("Readable, damaged, used all the same", result.damaged),
        ("Quarantine, files that training cannot use", result.quarantine),
    ):
        if files:
            lines += ["", f"{title}: {len(files)}", *_by_reason(files, whole_list)]
    if result.quarantine and not result.moved:
        lines.append(
            "  Replace them with good copies, or delete them and run `vggdist check "
            f"{quote(result.data)} --accept-changes`, or let --move-broken DIR move them away."
        )
    for title, names in (
        ("Added since the manifest was written, accepted", result.added),
        ("Removed since the manifest was written, accepted", result.removed),
        ("Moved", result.moved),
        ("Not moved, since there is such a file already", result.not_moved),
    ):
        if names:
            lines += ["", f"{title}: {len(names)}", *_shortened(names, whole_list)]
    return "\n".join(printable(line) for line in lines) + "\n"


def _contents(result: CheckResult) -> Iterator[tuple[str, str]]:
    shorter, num_bytes = result.shorter_side, result.num_bytes
    yield "formats", _counted(result.formats)
    yield "modes", _counted(result.modes)
    yield "shorter side", f"{shorter.min} to {shorter.max}, median {shorter.median} pixels"
    yield "file size", f"{num_bytes.min} to {num_bytes.max}, median {num_bytes.median} bytes"
    for name, extreme in (("smallest", result.smallest), ("largest", result.largest)):
        if extreme is not None:
            yield name, f"{extreme.width} x {extreme.height} pixels, {extreme.file}"
    yield f"below {CROP_SIZE}", f"{result.num_below_crop_size} images (shorter side, pixels)"
    yield "copies", f"{result.duplicates.num_same_label} in the same class and split"
    for number, (reason, kinds) in enumerate(result.left_out.items()):
        yield "" if number else "not read", f"{reason}: {_counted(kinds)}"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name or 'no suffix'} {count}" for name, count in counts.items()) or "none"


def _warnings(result: CheckResult) -> Iterator[str]:
    across, conflicting = result.duplicates.across_splits, result.duplicates.different_labels
    tiny = [f"{name}: {count}" for name, count in result.tiny_classes.items()]
    yield from _warning(
        "Images in train/ and in val/, so that the validation error looks better than it is",
        [_group(group) for group in across],
    )
    yield from _warning(
        "Images in several classes of one split", [_group(group) for group in conflicting]
    )
    yield from _warning(f"Classes with fewer than {TINY_CLASS} training images", tiny)
    if result.num_turned:
        yield (
            f"Images with an EXIF orientation, by which a viewer turns them: {result.num_turned}"
        )
        yield "  a network sees them as they are stored, unless data.orientation=apply turns them"
    yield from _warning("Files that have changed since they were last looked at", result.changed)


def _warning(what: str, cases: Sequence[str]) -> Iterator[str]:
    if cases:
        yield f"{what}: {len(cases)}"
        yield from (f"  {case}" for case in cases[:_MOST_CASES])
        if (more := len(cases) - _MOST_CASES) > 0:
            yield f"  and {more} more"


def _group(files: Sequence[str]) -> str:
    # The first and the last are of different splits, or classes.
    return " = ".join(
        files if len(files) < 4 else [files[0], f"({len(files) - 2} more)", files[-1]]
    )


def _shortened(files: Sequence[str], whole_list: Path | None) -> Iterator[str]:
    yield from (f"  {file}" for file in files[:_MOST_FILES])
    if (more := len(files) - _MOST_FILES) > 0:
        yield f"  and {more} more; {_rest(whole_list)}"


def _rest(whole_list: Path | None) -> str:
    where = f"in {quote(whole_list)}" if whole_list else "what --json FILE writes"
    return f"the whole list is {where}"


def _by_reason(listed: Sequence[BadFile], whole_list: Path | None) -> Iterator[str]:
    by_reason: defaultdict[str, list[str]] = defaultdict(list)
    for image in listed:
        by_reason[image.reason].append(image.file)
    left = _MOST_FILES
    for reason, files in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        if left > 0:
            yield f"  {len(files)}: {reason}"
            yield from (f"    {file}" for file in files[:left])
        left -= len(files)
    if left < 0:
        yield f"  and {-left} more; {_rest(whole_list)}"
