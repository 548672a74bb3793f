"""Where a crop of the rescaled image lies in the source image: integer arithmetic only.

The paper rescales an image so that its shorter side is S and then takes a crop. Decoding can skip
most of an image if the source pixels that the crop will show are known before; that window is what
this module computes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

POSITIONS = 65536
"""A crop's place along one axis is an integer in [0, POSITIONS): 0 is the first window, the largest
the last.
"""

CENTER = POSITIONS // 2


def source_windows(
    sizes: ArrayLike, scales: ArrayLike, positions: ArrayLike, crop_size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Windows of source images that become a crop of `crop_size` once the shorter side is rescaled
    to S.

    Args:
        sizes: (n, 2), height and width of the source images, pixels, at least 1.
        scales: (n,), S, pixels, at least `crop_size`.
        positions: (n, 2), place of the window along y and x, in [0, POSITIONS).
        crop_size: side of the crop, pixels.

    Returns:
        Side of each square window (n,): crop_size x shorter side / S rounded to the nearest pixel
        (halves up), at least 1; and its first row and column (n, 2). A window always lies inside
        its image.
    """
    size = np.asarray(sizes, dtype=np.int64)
    scale = np.asarray(scales, dtype=np.int64)
    position = np.asarray(positions, dtype=np.int64)
    shorter = size.min(axis=1)
    side = np.maximum(1, (2 * crop_size * shorter + scale) // (2 * scale))
    start = (size - side[:, None]) * position // POSITIONS
    return side, start
