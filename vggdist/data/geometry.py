"""Positions of crops, and sizes of images and score maps, in integer arithmetic.

The paper rescales an image so that its shorter side is S and then takes a crop. Decoding can skip
most of an image if the crop's window of source pixels is known first; this module computes it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vggdist.errors import ConfigError

POSITIONS = 65536
"""A crop's position along one axis is an integer in [0, POSITIONS): 0 is the first window, the
largest is the last.
"""

CENTER = POSITIONS // 2


def source_windows(
    sizes: ArrayLike, scales: ArrayLike, positions: ArrayLike, crop_size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Windows of source images that become crops of `crop_size` when the shorter side is rescaled
    to S.

    Args:
        sizes: (n, 2), height and width of the source images, pixels, at least 1.
        scales: (n,), S, pixels, at least `crop_size`.
        positions: (n, 2), position of the window along y and x, in [0, POSITIONS).
        crop_size: side of the crop, pixels.

    Returns:
        Side of each square window (n,): crop_size x shorter side / S rounded to the nearest pixel
        (halves up), at least 1; and its first row and column (n, 2). A window is always inside its
        image.
    """
    size = np.asarray(sizes, dtype=np.int64)
    scale = np.asarray(scales, dtype=np.int64)
    position = np.asarray(positions, dtype=np.int64)
    shorter = size.min(axis=1)
    side = np.maximum(1, (2 * crop_size * shorter + scale) // (2 * scale))
    start = (size - side[:, None]) * position // POSITIONS
    return side, start


def rescaled_sizes(sizes: ArrayLike, scale: int) -> NDArray[np.int64]:
    """Sizes of whole images with the shorter side rescaled to Q (section 3.2).

    Args:
        sizes: (n, 2), height and width, pixels, at least 1.
        scale: Q, pixels, at least 1.

    Returns:
        (n, 2), height and width: the shorter side is Q, the longer keeps the aspect ratio, rounded
        to the nearest pixel (halves up).
    """
    size = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
    shorter = size.min(axis=1, keepdims=True)
    rescaled: NDArray[np.int64] = (2 * size * scale + shorter) // (2 * shorter)
    return rescaled


def crop_grid(height: int, width: int, crop_size: int, num: int = 5) -> NDArray[np.int64]:
    """Positions of crops on a regular grid over a rescaled image (section 3.2: 5 x 5).

    Args:
        height: of the rescaled image, pixels, at least `crop_size`.
        width: likewise.
        crop_size: side of a crop, pixels.
        num: crops along each side, at least 2.

    Returns:
        (num x num, 2), first row and column of each crop, row by row: equally spaced from the first
        pixel to the position where the crop ends with the image, rounded to the nearest pixel
        (halves up). On a side of `crop_size` pixels all are 0.
    """
    assert min(height, width) >= crop_size
    assert num >= 2
    gaps = num - 1
    y, x = (
        (2 * np.arange(num) * (side - crop_size) + gaps) // (2 * gaps) for side in (height, width)
    )
    return np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2)


def map_side(pixels: int, num_blocks: int, crop_size: int) -> int:
    """Side of the dense score map for an image side of `pixels`.

    Each block ends with a pooling that halves a side and drops an odd pixel; then the first fully
    connected layer is a convolution as large as the last block's map of a crop.

    Args:
        pixels: height or width of the image.
        num_blocks: poolings of the network.
        crop_size: side of its training crops, pixels, a multiple of 2^num_blocks.

    Returns:
        floor(pixels / 32) - 6 for five blocks and crops of 224; below 1 where the image is smaller
        than a crop.
    """
    stride = 1 << num_blocks
    return pixels // stride - crop_size // stride + 1


def require_scales(
    scales: Iterable[int], crop_size: int, option: str = "--scales"
) -> tuple[int, ...]:
    """The scales Q without duplicates.

    Args:
        scales: pixels.
        crop_size: of the network, pixels.
        option: that sets them, for the message.

    Raises:
        ConfigError: an image at a scale would be smaller than the network's input.
    """
    unique = dict.fromkeys(scales)
    small = [str(scale) for scale in unique if scale < crop_size]
    if small:
        raise ConfigError(
            f"{option}: at a shorter side of {', '.join(small)} pixels images are smaller than the "
            f"network's input of {crop_size} x {crop_size}; use scales of {crop_size} or more."
        )
    return tuple(unique)
