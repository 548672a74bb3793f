"""The input of a network: images with labels and keys."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggdist.config import Triple
from vggdist.data.bad_image import BadImage


@dataclass(frozen=True, eq=False)
class Batch:
    """n finished images with their labels and keys."""

    pixels: Tensor
    """(n, 3, crop_size, crop_size) uint8, channels_last, RGB, on the device."""
    mean: Tensor
    """(n, 3) float32, subtracted from R, G and B, on the device."""
    labels: Tensor
    """(n,) int64, on the device."""
    dropout_keys: Tensor
    """(n,) int64, on the device; 0 in evaluations."""
    index: NDArray[np.int64]
    """(n,), numbers of the images in their manifest."""
    dtype: torch.dtype = torch.float32
    """The type of `images`."""
    std: Triple = (1.0, 1.0, 1.0)
    """Divisors of R, G and B."""
    bad: tuple[BadImage, ...] = ()
    """Bad images found since the previous batch; others have replaced them."""

    def __len__(self) -> int:
        return len(self.index)

    @functools.cached_property
    def images(self) -> Tensor:
        """(n, 3, crop_size, crop_size), channels_last, RGB in grey levels minus the mean, divided
        by `std`.

        Computed on the device on demand: only a quarter of the bytes are queued and copied.
        """
        return normalized(self.pixels, self.mean, self.std, self.dtype)


def normalized(pixels: Tensor, mean: Tensor, std: Triple, dtype: torch.dtype) -> Tensor:
    """The input of a network: (pixels - mean) / std.

    Args:
        pixels: (n, 3, h, w) uint8.
        mean: (n, 3) or (1, 3).
        std: of R, G and B; ones leave the grey levels unchanged.
        dtype: of the result.
    """
    levels = pixels.to(torch.float32)  # before subtracting: both in one operation are much slower
    levels.sub_(mean[:, :, None, None])
    if std != (1.0, 1.0, 1.0):
        divisor = torch.empty(3, 1, 1, device=levels.device)
        for channel, value in enumerate(std):
            divisor[channel].fill_(value)  # a tensor from a list would wait for the device
        levels.div_(divisor)
    return levels.to(dtype)
