"""Colour arithmetic: the mean subtracted from an image, including its random colour shift.

Pixels are RGB in grey levels from 0 to 255 everywhere in `vggdist`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

EIGENVALUES: tuple[float, float, float] = (0.2175, 0.0188, 0.0045)
"""Of the covariance of ImageNet's RGB pixels scaled to [0, 1] (Krizhevsky 2012, section 4.1)."""

EIGENVECTORS: tuple[tuple[float, float, float], ...] = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)
"""Rows are R, G, B; column k belongs to `EIGENVALUES[k]`."""


def color_shift(draws: NDArray[np.float32]) -> NDArray[np.float32]:
    """RGB shift of all pixels of an image along the principal components of ImageNet's colours.

    Krizhevsky's formula on [0, 1] pixels, then times 255: a draw of 0.1 on the first component
    moves a pixel by 5.5 grey levels.

    Args:
        draws: (n, 3), one factor per component.

    Returns:
        (n, 3), to be added to R, G and B, in grey levels.
    """
    scaled = np.asarray(EIGENVECTORS) * (np.asarray(EIGENVALUES) * 255.0)
    # A sum in a fixed order: a matrix product may round differently for another number of images,
    # but an image must get the same bits in every micro batch.
    columns = draws.astype(np.float64)[:, None, :] * scaled[None, :, :]
    return ((columns[..., 0] + columns[..., 1]) + columns[..., 2]).astype(np.float32)


def subtracted_mean(mean: Sequence[float], draws: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values to subtract from each image, (n, 3): the training set's mean RGB minus the image's
    colour shift.
    """
    return np.asarray(mean, dtype=np.float32) - color_shift(draws)
