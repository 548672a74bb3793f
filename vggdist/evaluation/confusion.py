"""Which classes fail, and for what they are taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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

    def error(self, label: int) -> float:
        """The top-1 error of a class that has images, as a fraction."""
        return self.num_wrong[label] / self.num_images[label]

    def worst(self, count: int) -> list[int]:
        """Labels of the classes with the largest errors, those without any left out."""
        labels = [label for label, wrong in enumerate(self.num_wrong) if wrong]
        return sorted(labels, key=lambda label: (-self.error(label), label))[:count]

    def sentences(self, classes: Sequence[str], count: int = 5) -> list[str]:
        """The worst classes and the most confused pairs, for a person; none without errors."""
        if not any(self.num_wrong):
            return []
        worst = ", ".join(
            f"{classes[label]} {100 * self.error(label):.1f} % of {self.num_images[label]:,}"
            for label in self.worst(count)
        )
        pairs = ", ".join(
            f"{classes[truth]} as {classes[prediction]} ({number:,})"
            for truth, prediction, number in self.pairs[:count]
        )
        return [f"largest errors: {worst}", f"most often taken: {pairs}"]

    def to_dict(self, classes: Sequence[str]) -> dict[str, Any]:
        """For JSON, with names; a class without images has no error."""
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
