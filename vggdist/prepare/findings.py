"""What a check of a data set finds, put together from what is known of each image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggdist.data.examine import Examined
from vggdist.data.manifest import Contents, Manifest
from vggdist.data.manifest_file import Unusable
from vggdist.errors import DataError
from vggdist.prepare.isolated import Casualty

TINY_CLASS = 10
"""A class with fewer training images is worth a warning; ImageNet's smallest has 732."""

CROP_SIZE = 224
"""The paper's crop size, pixels: an image with a shorter side below it is enlarged at every S."""


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
    """What is known of each image of one split.

    Args:
        manifest: the split.
        root: the folder that is checked; files are named relative to it.
        before: what the manifest knew of the files, if somebody has looked into them.
    """

    def __init__(self, manifest: Manifest, root: Path, before: Contents | None) -> None:
        num_images = manifest.num_images
        self.manifest = manifest
        self.num_bytes = np.zeros(num_images, dtype=np.int64)
        self.contents = Contents(
            np.zeros((num_images, 2), dtype=np.int32), np.zeros((num_images, 32), dtype=np.uint8)
        )
        self.reasons: dict[int, str] = {}
        self.damage: dict[int, str] = {}
        self.formats: Counter[str] = Counter()
        self.modes: Counter[str] = Counter()
        self._before = before
        self._prefix = f"{manifest.split}/" if manifest.split else ""
        # A folder that is itself the only class is part of an image's name, but above `root`.
        self._above = f"{root.name}/" if manifest.folder == root.parent else ""

    def add(self, image: int, found: Examined | Casualty) -> None:
        """Takes note of what was found out about an image."""
        if isinstance(found, Casualty):
            found = Examined(found.reason)
        self.num_bytes[image] = found.num_bytes
        self.contents.sizes[image] = found.width, found.height
        self.contents.sha256[image] = np.frombuffer(found.sha256, dtype=np.uint8)
        if found.reason:
            self.reasons[image] = found.reason
        else:
            if found.damage:
                self.damage[image] = found.damage
            self.formats[found.format] += 1
            self.modes[found.mode or "unknown"] += 1

    def file(self, image: int) -> str:
        """The name of an image, relative to the folder that is checked."""
        return self._prefix + self.manifest.name(image).removeprefix(self._above)

    def accepted(self) -> NDArray[np.int64]:
        """Numbers of the images that training can use."""
        usable = np.ones(self.manifest.num_images, dtype=bool)
        usable[list(self.reasons)] = False
        return np.flatnonzero(usable)

    def unusable(self) -> list[Unusable]:
        """The other images, with their reasons."""
        return [Unusable(self.file(image), reason) for image, reason in self.reasons.items()]

    def damaged(self) -> list[Unusable]:
        """The images that are used though they are damaged."""
        return [Unusable(self.file(image), damage) for image, damage in self.damage.items()]

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
        accepted = np.bincount(labels[self.accepted()], minlength=len(classes)).tolist()
        return dict(zip(classes, map(ClassCount, images, accepted), strict=True))


_Image = tuple[SplitFindings, int]


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
    images = [(split, int(image)) for split in found for image in split.accepted()]
    sizes = np.concatenate([split.contents.sizes[split.accepted()] for split in found])
    num_bytes = np.concatenate([split.num_bytes[split.accepted()] for split in found])
    quarantine = [*refused, *(one for split in found for one in split.unusable())]
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
        quarantine=sorted(quarantine, key=lambda one: one.file),
        left_out={reason: _by_count(kinds) for reason, kinds in left_out.items()},
        splits=counts,
        formats=_by_count(sum((split.formats for split in found), Counter())),
        modes=_by_count(sum((split.modes for split in found), Counter())),
        shorter_side=_spread(shorter),
        num_bytes=_spread(num_bytes),
        smallest=extreme(0),
        largest=extreme(-1),
        num_below_crop_size=int((shorter < CROP_SIZE).sum()),
        duplicates=_duplicates(images, found),
        tiny_classes={
            name: count.accepted for name, count in training.items() if count.accepted < TINY_CLASS
        },
        changed=sorted(file for split in found for file in split.changed()),
        damaged=sorted(
            (one for split in found for one in split.damaged()), key=lambda one: one.file
        ),
    )


def _spread(values: NDArray[Any]) -> Spread:
    if not len(values):
        return Spread(0, 0, 0)
    return Spread(int(values.min()), int(np.median(values)), int(values.max()))


def _by_count(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _duplicates(images: Sequence[_Image], found: Sequence[SplitFindings]) -> Duplicates:
    hashes = np.concatenate([split.contents.sha256[split.accepted()] for split in found])
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
