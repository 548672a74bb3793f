"""Decoded windows -> 8-bit crops, and decoded images -> whole rescaled images, with torch.

torch resizes 8-bit channels_last images five times faster than DALI and Pillow do on a CPU (0.11 ms
for an ImageNet crop), so on a CPU the DALI graph ends after decoding and this module resizes and
flips. On a GPU the DALI graph does that for crops. Whole images are resized here on both, because
they must equal Pillow's up to the edges, where DALI's differ.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.dlpack import from_dlpack

from vggdist.data.geometry import rescaled_sizes

# The operator behind interpolate(mode="bilinear", antialias=True), which has no `out`: fresh memory
# for each image would take half as long as the resize itself.
_resize = torch.ops.aten._upsample_bilinear2d_aa.out
_MAX_FREE = 8  # batches whose memory is kept, if the consumer has held many at once


def resize_windows(
    windows: Iterable[object], flip: NDArray[np.bool_], crop_size: int, memory: BatchMemory
) -> Tensor:
    """Resizes and flips a batch of crops.

    Args:
        windows: n square windows of source images, each (side, side, 3), uint8, in any form of
            DLPack.
        flip: (n,), whether to mirror.
        crop_size: side of the crops, pixels.
        memory: for the result.

    Returns:
        (n, 3, crop_size, crop_size) uint8, channels_last.
    """
    size = [crop_size, crop_size]
    crops = memory.take(3 * len(flip) * math.prod(size)).view(len(flip), *size, 3)
    crops = crops.permute(0, 3, 1, 2)
    # A mirrored crop goes through this memory, which stays in the cache.
    scratch = torch.empty(1, *size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    places = crops.unsqueeze(1).unbind()
    for window, mirrored, place in zip(windows, flip.tolist(), places, strict=True):
        source = from_dlpack(window).permute(2, 0, 1).unsqueeze(0)
        _resize(source, size, False, out=scratch if mirrored else place)
        if mirrored:
            place.copy_(scratch.flip(-1))
    return crops


class SameShape(NamedTuple):
    """Images of a batch with the same shape at one scale."""

    scale: int
    """Q, the rescaled shorter side, pixels."""
    rows: NDArray[np.int64]
    """(n,), their indices in the batch."""
    pixels: Tensor
    """(n, 3, height, width) uint8, channels_last."""


def rescale(
    decoded: Iterable[object], scales: Sequence[int], memory: BatchMemory
) -> list[SameShape]:
    """Rescales each image to every scale: `Image.resize` of Pillow, bilinear, within 1 grey level.

    Args:
        decoded: n whole images, each (height, width, 3), uint8, in any form of DLPack.
        scales: values of Q, the rescaled shorter side, pixels.
        memory: for the result, on the images' device.

    Returns:
        For every scale, in order, its shapes in the order of their first images. All share one
        block of memory.
    """
    images = [from_dlpack(image) for image in decoded]
    sizes = [image.shape[:2] for image in images]
    shapes = [
        (scale, shape, np.array(rows))
        for scale in scales
        for shape, rows in _rows_by_shape(rescaled_sizes(sizes, scale)).items()
    ]
    num_bytes = [3 * len(rows) * math.prod(shape) for _, shape, rows in shapes]
    parts = torch.split(memory.take(sum(num_bytes)), num_bytes)
    rescaled = []
    for (scale, shape, rows), part in zip(shapes, parts, strict=True):
        pixels = part.view(len(rows), *shape, 3).permute(0, 3, 1, 2)
        for row, place in zip(rows.tolist(), pixels.unsqueeze(1), strict=True):
            _rescale(images[row], shape, place)
        rescaled.append(SameShape(scale, rows, pixels))
    return rescaled


def _rows_by_shape(sizes: NDArray[np.int64]) -> dict[tuple[int, int], list[int]]:
    rows: dict[tuple[int, int], list[int]] = {}
    for row, (height, width) in enumerate(sizes.tolist()):
        rows.setdefault((height, width), []).append(row)
    return rows


def _rescale(image: Tensor, size: tuple[int, int], place: Tensor) -> None:
    """Rescales an image (height, width, 3) into its place, (1, 3, *size)."""
    source = image.permute(2, 0, 1).unsqueeze(0)
    if place.is_cuda:
        place.copy_(rescaled_levels(source, size))
    else:
        _resize(source, list(size), False, out=place)


def rescaled_levels(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Same as torch's resize of 8-bit images, which it lacks on a GPU.

    Args:
        images: (n, 3, h, w) uint8.
        size: height and width of the result.

    Returns:
        (n, 3, *size) float32, whole numbers from 0 to 255.
    """
    levels = interpolate(images.float(), list(size), mode="bilinear", antialias=True)
    return levels.round_().clamp_(0, 255)


class BatchMemory:
    """Memory of batches on a device; on a CPU reused when the last tensor on it is gone.

    Fresh memory costs a page fault every 4 KiB; torch keeps a GPU's itself.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._free: list[NDArray[np.uint8]] = []  # of several threads

    def take(self, num_bytes: int) -> Tensor:
        """Uninitialized bytes, (num_bytes,) uint8."""
        if self._device.type != "cpu":
            return torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(0, np.uint8)
        if len(memory) < num_bytes:
            memory = torch.empty(num_bytes, dtype=torch.uint8).numpy()
        # torch keeps this view as long as any tensor uses the memory, including views and tensors
        # saved by autograd; no tensor object could report that.
        lease = memory[:num_bytes]
        weakref.finalize(lease, self._give_back, memory).atexit = False
        return torch.from_numpy(lease)

    def _give_back(self, memory: NDArray[np.uint8]) -> None:
        if len(self._free) < _MAX_FREE:
            self._free.append(memory)
