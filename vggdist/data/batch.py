"""What a network is fed: images with their labels and keys."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggdist.data.unusable import BadImage


@dataclass(frozen=True, eq=False)
class Batch:
    """n finished images with what belongs to them."""

    pixels: Tensor
    """(n, 3, crop_size, crop_size) uint8, channels_last, RGB, on the device."""
    mean: Tensor
    """(n, 3) float32, what is to be subtracted from R, G and B, on the device."""
    labels: Tensor
    """(n,) int64, on the device."""
    dropout_keys: Tensor
    """(n,) int64, on the device; 0 in evaluations."""
    index: NDArray[np.int64]
    """(n,), numbers of the images in their manifest."""
    dtype: torch.dtype = torch.float32
    """Of `images`."""
    bad: tuple[BadImage, ...] = ()
    """Images found to be unusable since the batch before; others have taken their places."""

    def __len__(self) -> int:
        return len(self.index)

    @functools.cached_property
    def images(self) -> Tensor:
        """(n, 3, crop_size, crop_size), channels_last, RGB in grey levels less the mean.

        Made where and when the network asks for them: a quarter of the bytes wait and travel.
        """
        levels = self.pixels.to(torch.float32)  # then subtract: together they are much slower
        return levels.sub_(self.mean[:, :, None, None]).to(self.dtype)
