"""What a check of a data set finds: from what is known of each image to the report of the whole."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggdist.artifacts.names import printable
from vggdist.artifacts.paths import quote
from vggdist.data.examine import Examined
from vggdist.data.manifest import Contents, Manifest
from vggdist.data.manifest_file import Unusable
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
    quarantine: list[Unusable]
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
    duplicates: Duplicates
    tiny_classes: dict[str, int]
    """Class -> its accepted training images, where they are fewer than `TINY_CLASS`."""
    changed: list[str]
    """Files whose bytes are not those that the manifest knew."""
    damaged: list[Unusable]
    """Accepted images of which the decoder says that they are damaged, sorted by file."""

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


class SplitFindings:
    """What is known of each image of a split.

    Args:
        manifest: the split.
        root: the folder that is checked; files are named relative to it.
        before: what the manifest knew of the files, if somebody has looked into them.

    Attributes:
        usable: (num_images,), whether training can use an image.
        unusable: the images that it cannot use.
        damaged: those that it uses though they are damaged.
    """

    def __init__(self, manifest: Manifest, root: Path, before: Contents | None) -> None:
        num_images = manifest.num_images
        self.manifest = manifest
        self.num_bytes = np.zeros(num_images, dtype=np.int64)
        self.contents = Contents(
            np.zeros((num_images, 2), dtype=np.int32), np.zeros((num_images, 32), dtype=np.uint8)
        )
        self.usable = np.zeros(num_images, dtype=bool)
        self.unusable: list[Unusable] = []
        self.damaged: list[Unusable] = []
        self.formats: Counter[str] = Counter()
        self.modes: Counter[str] = Counter()
        self._before = before
        self._prefix = f"{manifest.split}/" if manifest.split else ""
        # A folder that is itself the only class is part of an image's name, but above `root`.
        self._above = f"{root.name}/" if manifest.folder == root.parent else ""

    def add(self, image: int, found: Examined) -> None:
        """Takes note of what was found out about an image."""
        self.num_bytes[image] = found.num_bytes
        self.contents.sizes[image] = found.width, found.height
        self.contents.sha256[image] = np.frombuffer(found.sha256, dtype=np.uint8)
        if found.reason:
            self.unusable.append(Unusable(self.file(image), found.reason))
            return
        self.usable[image] = True
        if found.damage:
            self.damaged.append(Unusable(self.file(image), found.damage))
        self.formats[found.format] += 1
        self.modes[found.mode or "unknown"] += 1

    def file(self, image: int) -> str:
        """The name of an image, relative to the folder that is checked."""
        return self._prefix + self.manifest.name(image).removeprefix(self._above)

    def changed(self) -> list[str]:
        """Files whose bytes are not those that were there before."""
        if self._before is None:
            return []
        known = self._before.sha256.any(axis=1) & self.contents.sha256.any(axis=1)
        differs = (self._before.sha256 != self.contents.sha256).any(axis=1)
        return [self.file(int(image)) for image in np.flatnonzero(known & differs)]

    def class_counts(self) -> dict[str, ClassCount]:
        """Class -> its images."""
        labels, classes = self.manifest.labels, self.manifest.classes
        images = np.bincount(labels, minlength=len(classes)).tolist()
        accepted = np.bincount(labels[self.usable], minlength=len(classes)).tolist()
        return dict(zip(classes, map(ClassCount, images, accepted), strict=True))


def put_together(
    root: Path,
    found: Sequence[SplitFindings],
    refused: Sequence[Unusable],
    left_out: Mapping[str, Counter[str]],
) -> CheckResult:
    """The result for a folder.

    Args:
        root: the folder.
        found: what is known of the images of each split; the training images first.
        refused: images that training does not list, by their suffix.
        left_out: reason -> kind -> what else it does not list.
    """
    images = [(split, int(i)) for split in found for i in np.flatnonzero(split.usable)]
    sizes = np.concatenate([split.contents.sizes[split.usable] for split in found])
    num_bytes = np.concatenate([split.num_bytes[split.usable] for split in found])
    hashes = np.concatenate([split.contents.sha256[split.usable] for split in found])
    counts = {split.manifest.split: split.class_counts() for split in found}
    training = counts[found[0].manifest.split]
    by_pixels = np.argsort(sizes.astype(np.int64).prod(axis=1), kind="stable")

    def extreme(rank: int) -> Extreme | None:
        if not images:
            return None
        split, image = images[int(by_pixels[rank])]
        return Extreme(split.file(image), *split.contents.sizes[image].tolist())

    shorter = sizes.min(axis=1)
    return CheckResult(
        data=str(root),
        accepted=len(images),
        quarantine=by_file(chain(refused, *(split.unusable for split in found))),
        left_out={reason: _by_count(kinds) for reason, kinds in left_out.items()},
        splits=counts,
        formats=_by_count(sum((split.formats for split in found), Counter())),
        modes=_by_count(sum((split.modes for split in found), Counter())),
        shorter_side=_spread(shorter),
        num_bytes=_spread(num_bytes),
        smallest=extreme(0),
        largest=extreme(-1),
        num_below_crop_size=int((shorter < CROP_SIZE).sum()),
        duplicates=_duplicates(images, hashes),
        tiny_classes={
            name: count.accepted for name, count in training.items() if count.accepted < TINY_CLASS
        },
        changed=sorted(file for split in found for file in split.changed()),
        damaged=by_file(chain(*(split.damaged for split in found))),
    )


def by_file(images: Iterable[Unusable]) -> list[Unusable]:
    """Sorted by their names."""
    return sorted(images, key=attrgetter("file"))


def _spread(values: NDArray[Any]) -> Spread:
    if not len(values):
        return Spread(0, 0, 0)
    return Spread(int(values.min()), int(np.median(values)), int(values.max()))


def _by_count(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _duplicates(
    images: Sequence[tuple[SplitFindings, int]], hashes: NDArray[np.uint8]
) -> Duplicates:
    across, conflicting, num_same = [], [], 0
    for group in ([images[i] for i in places] for places in _same(hashes)):
        by_label = Counter((split, split.manifest.labels[image]) for split, image in group)
        labels_of = Counter(split for split, _ in by_label)
        num_same += len(group) - len(by_label)
        if len(labels_of) > 1:
            across.append(sorted(split.file(image) for split, image in group))
        for split in (split for split, labels in labels_of.items() if labels > 1):
            conflicting.append(sorted(split.file(image) for of, image in group if of is split))
    return Duplicates(sorted(across), sorted(conflicting), num_same)


def _same(hashes: NDArray[np.uint8]) -> Iterator[list[int]]:
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


def _by_reason(listed: Sequence[Unusable], whole_list: Path | None) -> Iterator[str]:
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
        where = f"in {quote(whole_list)}" if whole_list else "what --json FILE writes"
        yield f"  and {-left} more; the whole list is {where}"
