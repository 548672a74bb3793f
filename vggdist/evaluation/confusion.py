"""Which classes fail, and for what they are taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggdist.artifacts.names import printable

MOST_PAIRS = 2500
"""Pairs that are kept: all of 50 classes."""


class Pair(NamedTuple):
    """Images of one class that were taken for another."""

    truth: int
    prediction: int
    num_images: int


@dataclass(frozen=True)
class ClassErrors:
    """Top-1 errors by class."""

    num_images: tuple[int, ...] = ()
    """Of each class; empty: not counted."""
    num_wrong: tuple[int, ...] = ()
    """Of them, those that were taken for another class."""
    pairs: tuple[Pair, ...] = ()
    """The most frequent first, at most `MOST_PAIRS`."""

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> ClassErrors:
        """From the fields as JSON has them; what is missing was not counted."""
        return ClassErrors(
            tuple(state.get("num_images", ())),
            tuple(state.get("num_wrong", ())),
            tuple(Pair(*pair) for pair in state.get("pairs", ())),
        )

    def error(self, label: int) -> float:
        """The top-1 error of a class that has images, as a fraction."""
        return self.num_wrong[label] / self.num_images[label]

    def to_dict(self, classes: Sequence[str]) -> dict[str, Any]:
        """For JSON, with names; a class without images has no error, and nothing was counted if
        there are no classes."""
        if not self.num_images:
            return {}
        return {
            "classes": [
                {
                    "name": name,
                    "num_images": number,
                    "top1_error": self.error(label) if number else None,
                }
                for label, (name, number) in enumerate(zip(classes, self.num_images, strict=True))
            ],
            "confused": [
                {"truth": classes[truth], "prediction": classes[prediction], "num_images": number}
                for truth, prediction, number in self.pairs
            ],
        }


def worst_classes(report: Mapping[str, Any], count: int = 5) -> list[str]:
    """Lines about the largest errors, for a person; none without errors.

    Args:
        report: has what `ClassErrors.to_dict` returned.
        count: classes, and pairs, at most.
    """
    wrong = [found for found in report.get("classes", ()) if found["top1_error"]]
    if not wrong:
        return []
    worst = sorted(wrong, key=lambda found: -found["top1_error"])[:count]
    errors = ", ".join(
        f"{printable(found['name'])}: {100 * found['top1_error']:.1f} % ("
        f"{round(found['top1_error'] * found['num_images']):,} of {found['num_images']:,})"
        for found in worst
    )
    pairs = ", ".join(
        f"{printable(pair['truth'])} for {printable(pair['prediction'])} ({pair['num_images']:,})"
        for pair in report["confused"][:count]
    )
    return [f"largest errors: {errors}", f"most often taken for another: {pairs}"]


def count_predictions(counts: Tensor, logits: Tensor, labels: Tensor) -> None:
    """Adds images to a confusion matrix, without waiting for the device.

    Of classes with equal logits the one with the smallest number is predicted, as `count_errors`
    ranks them.

    Args:
        counts: (num_classes, num_classes) int64, true classes by predicted ones; changed in place.
        logits: (n, num_classes), or posteriors.
        labels: (n,) int64.
    """
    places = labels * counts.shape[1] + logits.argmax(dim=1)
    counts.view(-1).scatter_add_(0, places, torch.ones_like(places))


def class_errors(counts: NDArray[np.int64]) -> ClassErrors:
    """The errors in a confusion matrix (num_classes, num_classes)."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    truths, predictions = np.nonzero(wrong)
    # Stable: pairs that are equally frequent stay in the order of their classes.
    order = np.argsort(-wrong[truths, predictions], kind="stable")[:MOST_PAIRS]
    pairs = zip(truths[order], predictions[order], wrong[truths, predictions][order], strict=True)
    return ClassErrors(
        tuple(counts.sum(axis=1).tolist()),
        tuple(wrong.sum(axis=1).tolist()),
        tuple(
            Pair(int(truth), int(prediction), int(number)) for truth, prediction, number in pairs
        ),
    )
