"""Class posteriors of images by the paper's three protocols: centre crop, dense, multi-crop.

Posteriors are fp32, on the network's device. The images in the convolutions at once are bounded in
pixels; batching never changes a result by more than rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from vggdist.data.geometry import crop_grid

SpatialAverage = Literal["logits", "posteriors"]


class Network(Protocol):
    """The parts of a network that are needed here."""

    @property
    def crop_size(self) -> int: ...

    def maps(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) -> the last pooled maps (n, c, h', w')."""

    def crop_maps(
        self, images: Tensor, rows: Sequence[int], columns: Sequence[int], max_pixels: int
    ) -> Tensor:
        """The same of the crops at `rows` x `columns` -> (n, crops, c, h', w'), row by row."""

    def score_maps(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Last pooled maps of any shapes -> for each, logits at every position (n, h'', w'', k)."""


class Images(Protocol):
    """n images of one shape."""

    @property
    def images(self) -> Tensor:
        """(n, 3, h, w), the network's input."""


def most_pixels(max_megapixels: float | None, device: torch.device) -> int:
    """Most pixels in the convolutions at once: as configured, or best for the device.

    On a CPU this is one image and its mirror image: the maps of more do not fit its cache.
    """
    if max_megapixels is None:
        max_megapixels = 0.4 if device.type == "cpu" else 16.0
    return max(1, round(max_megapixels * 1e6))


@torch.no_grad()
def center_crop_posteriors(network: Network, images: Tensor, flip: bool, max_pixels: int) -> Tensor:
    """Posteriors (n, k) of images (n, 3, crop_size, crop_size)."""
    (scores,) = network.score_maps([maps_with_mirrored(network, images, flip, max_pixels)])
    return mean_of_mirrored(scores[:, 0, 0].float().softmax(dim=1), flip)


@torch.no_grad()
def dense_posteriors(
    network: Network,
    group: Iterable[Images],
    flip: bool,
    spatial_average: SpatialAverage,
    max_pixels: int,
) -> list[Tensor]:
    """Section 3.2: the network applied at every position of whole images, its score map averaged.

    Args:
        network: applied to whole images.
        group: images of any shapes; their windows share the passes over fc6's weights, so a few
            dozen together are faster than each alone.
        flip: average the posteriors of an image and of its mirror image.
        spatial_average: what is averaged over the positions of a score map.
        max_pixels: most pixels in the convolutions at once; a larger image is processed alone.

    Returns:
        (n, k) for each member of the group.
    """
    maps = [maps_with_mirrored(network, part.images, flip, max_pixels) for part in group]
    return [
        mean_of_mirrored(_spatial_average(scores.float(), spatial_average), flip)
        for scores in network.score_maps(maps)
    ]


@torch.no_grad()
def multi_crop_posteriors(
    network: Network, group: Iterable[Images], flip: bool, max_pixels: int
) -> list[Tensor]:
    """Section 3.2: posteriors averaged over a regular grid of 5 x 5 crops, each also mirrored.

    Args:
        network: applied to crops.
        group: images of any shapes.
        flip: average the posteriors of a crop and of its mirror image.
        max_pixels: most pixels in the convolutions at once; a larger image is processed alone.

    Returns:
        (n, k) for each member of the group.
    """
    posteriors = []
    for part in group:
        images = part.images
        at_once = max(1, max_pixels // (images.shape[2] * images.shape[3]))
        views = [
            [
                _of_crops(network, piece, mirrored, max_pixels)
                for mirrored in (False, True)[: 1 + flip]
            ]
            for piece in torch.split(images, at_once)
        ]
        posteriors.append(torch.cat([torch.stack(view).mean(dim=0) for view in views]))
    return posteriors


def _of_crops(network: Network, images: Tensor, mirrored: bool, max_pixels: int) -> Tensor:
    """Mean posteriors (n, k) of the crops of images (n, 3, h, w), or of the crops mirrored."""
    height, width = images.shape[2:]
    grid = crop_grid(height, width, network.crop_size)
    if mirrored:
        images = images.flip(3)
        grid[:, 1] = width - network.crop_size - grid[:, 1]
    # Crops coincide if a side of the image is hardly longer than theirs.
    (rows, row), (columns, column) = (np.unique(starts, return_inverse=True) for starts in grid.T)
    maps = network.crop_maps(images, rows.tolist(), columns.tolist(), max_pixels)
    (scores,) = network.score_maps([maps.flatten(0, 1)])
    posteriors = scores[:, 0, 0].float().softmax(dim=1).view(*maps.shape[:2], -1)
    # Not a sum weighted by multiplicity: on a GPU the host would wait to transfer the weights.
    crops = (row * len(columns) + column).tolist()
    return torch.stack([posteriors[:, crop] for crop in crops]).mean(dim=0)


def maps_with_mirrored(network: Network, images: Tensor, flip: bool, max_pixels: int) -> Tensor:
    """The last pooled maps (n, c, h, w) of images, computed in pieces of at most `max_pixels`.

    If `flip`, (2n, c, h, w) with those of the mirror images last; `mean_of_mirrored` averages them.
    """
    height, width = images.shape[2:]
    images = torch.cat([images, images.flip(3)]) if flip else images
    pieces = torch.split(images, max(1, max_pixels // (height * width)))
    return torch.cat([network.maps(piece) for piece in pieces])


def mean_of_mirrored(values: Tensor, flip: bool) -> Tensor:
    """Averages images and mirror images of `maps_with_mirrored`: (2n, k) -> (n, k)."""
    return values.view(2, -1, values.shape[1]).mean(dim=0) if flip else values


def _spatial_average(scores: Tensor, what: SpatialAverage) -> Tensor:
    """Score maps (n, h, w, k), fp32 -> posteriors (n, k)."""
    if what == "logits":
        return scores.mean(dim=(1, 2)).softmax(dim=1)
    return scores.softmax(dim=3).mean(dim=(1, 2))
