"""Fusion: the mean of class posteriors over networks, scales and protocols, and its errors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vggdist.artifacts.contents import ContentsDigest
from vggdist.artifacts.posteriors import Posteriors, PosteriorsFile, Values, load_posteriors
from vggdist.errors import WeightsError
from vggdist.evaluation.metrics import count_errors

_VALUES_AT_ONCE = 2**22  # posteriors in memory: 32 MB as float64


@dataclass(frozen=True)
class ErrorRates:
    """Errors of posteriors, as fractions of `num_images`."""

    num_images: int
    top1_error: float
    top5_error: float

    def to_dict(self) -> dict[str, float]:
        """The fields, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """The images that posteriors belong to."""

    name: str
    """Name of the posteriors in messages."""
    digest: str
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    contents: ContentsDigest

    @classmethod
    def of(cls, posteriors: Posteriors | PosteriorsFile, name: str) -> ImageSet:
        """The images of `posteriors`."""
        source = posteriors.source
        return cls(name, source.images, posteriors.labels, posteriors.classes, source.contents)

    def require(self, other: ImageSet) -> None:
        """Refuses other images: posteriors of different images have no mean.

        Raises:
            WeightsError: images, their labels or the classes of `other` differ.
        """
        if self.classes != other.classes:
            counts = f"{len(self.classes):,} and {len(other.classes):,}"
            difference = f"classes ({counts}, or with other names)"
        elif len(self.labels) != len(other.labels):
            difference = f"images ({len(self.labels):,} and {len(other.labels):,})"
        elif self.digest != other.digest:
            difference = "images (the digests of their manifests differ)"
        elif not np.array_equal(self.labels, other.labels):
            difference = "labels"
        elif self.contents.same_as(other.contents) is False:
            difference = "images under the same names"
        else:
            return
        raise WeightsError(
            f"{self.name} and {other.name} are of different {difference}. Posteriors are averaged "
            "image by image: report the two apart, or evaluate both on the same images."
        )


class Fusion:
    """The mean of posteriors of the same images, added one set at a time.

    Only their sum is kept. It is float64, in which sums of float16 posteriors are exact, so their
    order does not matter.
    """

    def __init__(self) -> None:
        self._sum: NDArray[np.float64] | None = None
        self._images: ImageSet | None = None
        self._count = 0

    def add(self, posteriors: Posteriors, name: str = "") -> None:
        """Adds the posteriors of one file.

        Args:
            posteriors: of one file.
            name: their name in messages; by default, the title of their source.

        Raises:
            WeightsError: their images or classes differ from those added before.
        """
        images = ImageSet.of(posteriors, name or posteriors.source.title)
        if self._sum is None or self._images is None:
            self._sum, self._images = np.zeros(posteriors.values.shape, np.float64), images
        self._images.require(images)
        self._sum += posteriors.values
        self._count += 1

    @property
    def values(self) -> NDArray[np.float64]:
        """The mean, (num_images, num_classes)."""
        assert self._sum is not None, "nothing was added"
        return self._sum / self._count

    @property
    def labels(self) -> NDArray[np.int64]:
        """(num_images,)."""
        assert self._images is not None, "nothing was added"
        return self._images.labels

    def errors(self) -> ErrorRates:
        """The errors of the mean."""
        return errors_of(self.values, self.labels)


def fuse(paths: Sequence[Path]) -> Fusion:
    """The mean of posteriors files, read one after another.

    Raises:
        WeightsError: a file cannot be read, or its images or classes differ from the first's.
    """
    fusion = Fusion()
    for path in paths:
        fusion.add(load_posteriors(path), str(path))
    return fusion


def errors_of(values: Values | NDArray[np.float64], labels: NDArray[np.int64]) -> ErrorRates:
    """Errors of posteriors (num_images, num_classes), counted as integers."""
    rows = max(1, _VALUES_AT_ONCE // values.shape[1])
    counts = np.zeros(2, np.int64)
    for start in range(0, len(labels), rows):
        part = values[start : start + rows].astype(np.float64, copy=False)
        counts += _count(part, labels[start : start + rows])
    return _rates(counts, len(labels))


Members = tuple[int, ...]
"""Numbers of the files that a fusion averages, ascending."""


def errors_of_fusions(
    files: Sequence[PosteriorsFile],
    fusions: Collection[Members],
    advance: Callable[[int], None] = lambda num_images: None,
) -> dict[Members, ErrorRates]:
    """Errors of many fusions; every file is read once, a few images at a time.

    Args:
        files: posteriors of the same images.
        fusions: the files to average, as numbers of `files`.
        advance: called with the number of images just counted.

    Raises:
        WeightsError: a file is damaged.
    """
    labels, num_classes = files[0].labels, len(files[0].classes)
    rows = max(1, _VALUES_AT_ONCE // (num_classes * len(files)))
    counts = {members: np.zeros(2, np.int64) for members in fusions}
    start = 0
    for part in zip(*(file.rows(rows) for file in files), strict=True):
        values = [rows_of_file.astype(np.float64) for rows_of_file in part]
        shown = labels[start : start + len(values[0])]
        for members in fusions:
            total = values[members[0]].copy()
            for number in members[1:]:
                total += values[number]
            total /= len(members)
            counts[members] += _count(total, shown)
        start += len(shown)
        advance(len(shown))
    return {members: _rates(count, len(labels)) for members, count in counts.items()}


def _count(values: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """As `count_errors`, but four times as fast: only images with ties need to compare class
    numbers."""
    own = np.take_along_axis(values, labels[:, None], axis=1)
    num_ahead = np.count_nonzero(values > own, axis=1)
    tied = np.count_nonzero(values == own, axis=1) != 1  # or it is nan
    counts = np.array([np.count_nonzero(num_ahead[~tied] >= k) for k in (1, 5)], np.int64)
    if tied.any():
        counts += count_errors(
            torch.from_numpy(values[tied]), torch.from_numpy(labels[tied])
        ).numpy()
    return counts


def _rates(counts: NDArray[np.int64], num_images: int) -> ErrorRates:
    top1, top5 = counts.tolist()
    return ErrorRates(num_images, top1 / num_images, top5 / num_images)
