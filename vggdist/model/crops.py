"""The last pooled maps of overlapping crops of an image, computing their shared parts once.

25 crops of 224 pixels show each pixel of an image at Q = 256 about 14 times. A convolution pads a
crop with zeros, so the maps near a crop's border differ from those of the whole image; a few pixels
further in they are equal. Near one side they equal those of an image cut off there, which all crops
with that side share. So the first blocks run on the whole region of the crops, on strips along
their sides and on squares at their corners, and the crops' maps are assembled from these; the
result is that of separate crops, up to rounding.

Poolings must align: if two blocks are shared, only crops whose first rows and first columns are
equal modulo 4 share a region.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Lines = Sequence[int]
"""First rows, or first columns, of crops, ascending."""


@dataclass(frozen=True)
class Sharing:
    """How many blocks crops share; 0: nothing is shared."""

    num_blocks: int
    ring: int
    """How far a crop's padding reaches into its maps after these blocks, in map pixels."""

    @property
    def stride(self) -> int:
        """Image pixels per pixel of the shared maps, along a side."""
        return 1 << self.num_blocks

    @property
    def strip(self) -> int:
        """Width of a strip, image pixels: the crop's border plus that of the cut behind it."""
        return 2 * self.ring * self.stride

    def num_pixels(self, rows: Lines, columns: Lines, crop_size: int) -> int:
        """Pixels of an image that go through the shared blocks for crops at `rows` x `columns`."""
        total = 0
        for y in alike(rows, self.stride):
            for x in alike(columns, self.stride):
                height, width = y[-1] - y[0] + crop_size, x[-1] - x[0] + crop_size
                total += height * width + 2 * self.strip * (len(y) * width + len(x) * height)
                total += 4 * self.strip**2 * len(y) * len(x)
        return total


NOTHING = Sharing(0, 0)


def alike(lines: Lines, stride: int) -> list[list[int]]:
    """Groups of lines that are equal modulo `stride`."""
    found: dict[int, list[int]] = defaultdict(list)
    for line in lines:
        found[line % stride].append(line)
    return list(found.values())


def choose_sharing(features: nn.Sequential, rows: Lines, columns: Lines, crop_size: int) -> Sharing:
    """The sharing with the fewest multiply-adds for crops at all of `rows` x `columns`.

    Args:
        features: blocks and poolings in turn.
        rows: first rows of the crops.
        columns: first columns of the crops.
        crop_size: side of the crops, pixels.
    """
    work: list[float] = []
    sharings = [NOTHING]
    for number, block in enumerate(features[::2]):
        layers = [layer for layer in block.children() if isinstance(layer, nn.Conv2d)]
        work.append(sum(layer.weight.numel() for layer in layers) * 0.25**number)
        reach = sharings[-1].ring + sum(layer.kernel_size[0] // 2 for layer in layers)
        sharings.append(Sharing(number + 1, -(-reach // 2)))
    alone = len(rows) * len(columns) * crop_size**2

    def saved(sharing: Sharing) -> float:
        shared = sharing.num_pixels(rows, columns, crop_size)
        return float(alone - shared) * sum(work[: sharing.num_blocks])

    return max((s for s in sharings if s.strip <= crop_size), key=saved)


def crop_maps(
    features: nn.Sequential,
    images: Tensor,
    rows: Lines,
    columns: Lines,
    crop_size: int,
    max_pixels: int,
    sharing: Sharing,
) -> Tensor:
    """Applies `features` to the crops at all of `rows` x `columns`.

    Args:
        features: blocks and poolings in turn.
        images: (n, 3, h, w); the shared blocks take them all at once.
        rows: first rows of the crops, ascending.
        columns: first columns of the crops, ascending.
        crop_size: side of the crops, pixels, a multiple of 2^blocks.
        max_pixels: most crop pixels that the other blocks process at once; at least one crop.
        sharing: which blocks are computed once for all crops.

    Returns:
        (n, crops, c, h', w'), the crops row by row.
    """
    early, late = features[: 2 * sharing.num_blocks], features[2 * sharing.num_blocks :]
    at_once = max(1, max_pixels // crop_size**2)
    found: dict[tuple[int, int], Tensor] = {}
    for y in alike(rows, sharing.stride):
        for x in alike(columns, sharing.stride):
            maps = _patchwork(early, images, y, x, crop_size, sharing)
            maps = torch.cat([late(piece) for piece in torch.split(maps, at_once)])
            found |= zip(itertools.product(y, x), torch.split(maps, len(images)), strict=True)
    return torch.stack([found[place] for place in itertools.product(rows, columns)], dim=1)


def _patchwork(
    early: nn.Sequential,
    images: Tensor,
    rows: Lines,
    columns: Lines,
    crop_size: int,
    sharing: Sharing,
) -> Tensor:
    """Applies `early` to crops that share a region: (crops * n, c, side, side).

    `early` treats each piece as an image and pads it with zeros where it is cut, as it pads a crop.
    """
    strip, stride, ring = sharing.strip, sharing.stride, sharing.ring
    n, side = len(images), crop_size // stride
    region = images[:, :, rows[0] : rows[-1] + crop_size, columns[0] : columns[-1] + crop_size]
    tops = [row - rows[0] for row in rows]
    lefts = [column - columns[0] for column in columns]
    # Both sides of each crop: first all strip starts, then all strip ends.
    y = tops + [top + crop_size - strip for top in tops]
    x = lefts + [left + crop_size - strip for left in lefts]
    n_th = (-1, len(images))
    inner = early(region)
    across = early(torch.cat([region[:, :, a : a + strip] for a in y])).unflatten(0, n_th)
    down = early(torch.cat([region[..., b : b + strip] for b in x])).unflatten(0, n_th)
    squares = [region[:, :, a : a + strip, b : b + strip] for a in y for b in x]
    corners = early(torch.cat(squares)).unflatten(0, n_th)
    num_channels = inner.shape[1]
    maps = inner.new_empty(len(rows), len(columns), n, side, side, num_channels)
    maps = maps.permute(0, 1, 2, 5, 3, 4)  # channels_last
    begin = slice(0, ring), slice(0, ring)
    end = slice(side - ring, side), slice(ring, 2 * ring)
    for i, j in itertools.product(range(len(rows)), range(len(columns))):
        own, top, left = maps[i, j], tops[i] // stride, lefts[j] // stride
        vertical, horizontal = slice(top, top + side), slice(left, left + side)
        own.copy_(inner[:, :, vertical, horizontal])
        for a, (to_y, from_y) in ((i, begin), (i + len(rows), end)):
            own[:, :, to_y] = across[a][:, :, from_y, horizontal]
        for b, (to_x, from_x) in ((j, begin), (j + len(columns), end)):
            own[..., to_x] = down[b][..., vertical, from_x]
            for a, (to_y, from_y) in ((i, begin), (i + len(rows), end)):
                own[:, :, to_y, to_x] = corners[a * len(x) + b][:, :, from_y, from_x]
    crops: Tensor = maps.flatten(0, 2)
    return crops
