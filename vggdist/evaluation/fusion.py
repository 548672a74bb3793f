"""Fusion: the mean of class posteriors over networks, scales and protocols, and its errors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vggdist.artifacts.posteriors import PosteriorsFile
from vggdist.errors import WeightsError
from vggdist.evaluation.metrics import count_errors
from vggdist.evaluation.mistakes import Mistake

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


Members = tuple[int, ...]
"""Numbers of the files that a fusion averages, ascending."""


def errors_of_fusions(
    files: Sequence[PosteriorsFile],
    fusions: Collection[Members],
    advance: Callable[[int], None] = lambda num_images: None,
    confusion: NDArray[np.int64] | None = None,
) -> dict[Members, ErrorRates]:
    """Errors of many fusions; every file is read once, a few images at a time.

    Args:
        files: posteriors of the same images.
        fusions: the files to average, as numbers of `files`.
        advance: called with the number of images just counted.
        confusion: (num_classes, num_classes), true classes by predicted ones, to which the images
            are added as the mean of all files predicts them; that mean is one of the fusions.

    Raises:
        WeightsError: a file is damaged, or two are of different images.
    """
    counts = {members: np.zeros(2, np.int64) for members in fusions}
    everything = tuple(range(len(files)))
    for values, labels in _parts(files):
        for members in fusions:
            mean = _mean(values, members)
            counts[members] += _count(mean, labels)
            if confusion is not None and members == everything:
                np.add.at(confusion, (labels, mean.argmax(axis=1)), 1)
        advance(len(labels))
    num_images = len(files[0].labels)
    return {
        members: ErrorRates(num_images, *(count / num_images).tolist())
        for members, count in counts.items()
    }


def mistakes_of_mean(files: Sequence[PosteriorsFile], count: int) -> tuple[Mistake, ...]:
    """The images on which the mean of all files errs most surely, the surest first."""
    found: list[Mistake] = []
    num_seen = 0
    for values, labels in _parts(files):
        mean = _mean(values, range(len(files)))
        predicted = mean.argmax(axis=1)
        for row in np.flatnonzero(predicted != labels).tolist():
            label = int(predicted[row])
            found.append(Mistake(num_seen + row, int(labels[row]), label, float(mean[row, label])))
        found.sort(key=lambda mistake: (-mistake.confidence, mistake.image))
        del found[count:]
        num_seen += len(labels)
    return tuple(found)


def _parts(
    files: Sequence[PosteriorsFile],
) -> Iterator[tuple[list[NDArray[np.float64]], NDArray[np.int64]]]:
    """The posteriors in each file and the labels of some images at a time."""
    for file in files[1:]:
        _require_same_images(files[0], file)
    labels, num_classes = files[0].labels, len(files[0].classes)
    rows = max(1, _VALUES_AT_ONCE // (num_classes * len(files)))
    start = 0
    for part in zip(*(file.rows(rows) for file in files), strict=True):
        # In float64, sums of float16 posteriors are exact, so that their order does not count.
        values = [posteriors.astype(np.float64) for posteriors in part]
        yield values, labels[start : start + len(values[0])]
        start += len(values[0])


def _mean(values: Sequence[NDArray[np.float64]], members: Sequence[int]) -> NDArray[np.float64]:
    total = values[members[0]].copy()
    for number in members[1:]:
        total += values[number]
    total /= len(members)
    return total


def _require_same_images(first: PosteriorsFile, file: PosteriorsFile) -> None:
    """Posteriors of different images have no mean."""
    if first.classes != file.classes:
        counts = f"{len(first.classes):,} and {len(file.classes):,}"
        difference = f"classes ({counts}, or with other names)"
    elif len(first.labels) != len(file.labels):
        difference = f"images ({len(first.labels):,} and {len(file.labels):,})"
    elif first.source.images != file.source.images:
        difference = "images (the digests of their manifests differ)"
    elif not np.array_equal(first.labels, file.labels):
        difference = "labels"
    elif first.source.contents.same_as(file.source.contents) is False:
        difference = "images under the same names"
    else:
        return
    raise WeightsError(
        f"{first.path} and {file.path} are of different {difference}. Posteriors are averaged "
        "image by image: report the two apart, or evaluate both on the same images."
    )


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
