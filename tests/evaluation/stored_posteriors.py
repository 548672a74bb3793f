"""Posteriors files for tests: random, of a few images, each recognizable by its numbers."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggdist.artifacts.posteriors import Posteriors, Source, save_posteriors

SOURCE = Source(
    network="D",
    train_scale=(256, 512),
    weights="d1" * 32,
    protocol="dense",
    scale=384,
    flip=True,
    spatial_average="logits",
    precision="fp32",
    images="1a" * 32,
)


def random_posteriors(
    seed: int = 0,
    num_images: int = 23,
    num_classes: int = 1000,
    dtype: Any = np.float32,
    **source: Any,
) -> Posteriors:
    """Labels depend on the counts only, posteriors on the seed; half of the images are easy."""
    labels = np.random.default_rng(num_images).integers(0, num_classes, num_images)
    logits = np.random.default_rng(seed).normal(size=(num_images, num_classes))
    logits[np.arange(num_images), labels] += np.linspace(0, 6, num_images)
    values = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return Posteriors(
        source=Source(**{**vars(SOURCE), **source}),
        values=values.astype(dtype),
        labels=labels,
        names=tuple(f"c{label}/image {number}.jpg" for number, label in enumerate(labels)),
        classes=tuple(f"c{number}" for number in range(num_classes)),
    )


def store(folder: Path, several: Iterable[Posteriors]) -> list[Path]:
    """Writes them as `0.npz`, `1.npz` and so on."""
    paths = []
    for number, posteriors in enumerate(several):
        paths.append(folder / f"{number}.npz")
        save_posteriors(paths[-1], posteriors)
    return paths


def naive_errors(values: Iterable[NDArray[Any]], labels: NDArray[Any]) -> tuple[float, float]:
    """Of the mean of several arrays of posteriors, with a sort for each image."""
    mean = np.mean([one.astype(np.float64) for one in values], axis=0)
    wrong = np.zeros(2)
    for row, label in zip(mean, labels, strict=True):
        ranking = sorted(range(len(row)), key=lambda number: (-row[number], number))
        wrong += [label not in ranking[:1], label not in ranking[:5]]
    return wrong[0] / len(labels), wrong[1] / len(labels)
