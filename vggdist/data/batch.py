"""What a network is fed: images with their labels and keys."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggdist.config import Triple
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
    std: Triple = (1.0, 1.0, 1.0)
    """What R, G and B are divided by."""
    bad: tuple[BadImage, ...] = ()
    """Images found to be unusable since the batch before; others have taken their places."""

    def __len__(self) -> int:
        return len(self.index)

    @functools.cached_property
    def images(self) -> Tensor:
        """(n, 3, crop_size, crop_size), channels_last, RGB in grey levels less the mean, divided by
        `std`.

        Made where and when the network asks for them: a quarter of the bytes wait and travel.
        """
        return normalized(self.pixels, self.mean, self.std, self.dtype)


def normalized(pixels: Tensor, mean: Tensor, std: Triple, dtype: torch.dtype) -> Tensor:
    """What a network is fed: (pixels - mean) / std.

    Args:
        pixels: (n, 3, h, w) uint8.
        mean: (n, 3) or (1, 3).
        std: of R, G and B; ones leave the grey levels as they are.
        dtype: of the result.
    """
    levels = pixels.to(torch.float32)  # then subtract: together they are much slower
    levels.sub_(mean[:, :, None, None])
    if std != (1.0, 1.0, 1.0):
        divisor = torch.empty(3, 1, 1, device=levels.device)
        for channel, value in enumerate(std):
            divisor[channel].fill_(value)  # a tensor made of a list would wait for the device
        levels.div_(divisor)
    return levels.to(dtype)
