"""The images on which a network errs most surely."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggdist.distributed.process import gather


class Mistake(NamedTuple):
    """An image that was taken for one of another class."""

    image: int
    """Its number in the manifest."""
    truth: int
    prediction: int
    confidence: float
    """The posterior of the predicted class, 0 to 1."""


class Mistakes:
    """This rank's wrong predictions; three numbers per image stay on the device until the end."""

    def __init__(self, count: int) -> None:
        """Will know the `count` worst."""
        self._count = count
        self._found: list[Tensor] = []
        self._images: list[NDArray[np.int64]] = []

    def add(self, logits: Tensor, labels: Tensor, images: NDArray[np.int64]) -> None:
        """Notes the wrong predictions among n images, without waiting for the device.

        Args:
            logits: (n, num_classes) fp32.
            labels: (n,) int64.
            images: (n,), their numbers.
        """
        if not self._count:
            return
        predictions = logits.argmax(dim=1)
        confidences = logits.softmax(dim=1).gather(1, predictions.unsqueeze(1)).squeeze(1)
        surely = confidences.masked_fill(predictions == labels, -1.0)
        self._found.append(torch.stack([surely.double(), labels.double(), predictions.double()]))
        self._images.append(images)

    def worst(self) -> tuple[Mistake, ...]:
        """The surest of all ranks, the surest first; collective."""
        own: list[Mistake] = []
        if self._found:
            found, images = torch.cat(self._found, dim=1), np.concatenate(self._images)
            # Sorted on the device and stably: the host reads a few numbers, always the same ones.
            places = found[0].sort(descending=True, stable=True).indices[: self._count]
            rows = torch.cat([places[None].double(), found[:, places]]).T.tolist()
            own = [
                Mistake(int(images[int(place)]), int(truth), int(prediction), confidence)
                for place, confidence, truth, prediction in rows
                if confidence >= 0
            ]
        of_all = [mistake for mistakes in gather(own) for mistake in mistakes]
        of_all.sort(key=lambda mistake: (-mistake.confidence, mistake.image))
        return tuple(of_all[: self._count])
