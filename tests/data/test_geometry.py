"""Windows against exact fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest

from vggdist.data.geometry import CENTER, POSITIONS, source_windows

SIZES = [(1, 1), (1, 500), (500, 1), (2, 3), (223, 224), (375, 500), (500, 333), (6430, 5980)]


@pytest.mark.parametrize("scale", [224, 256, 257, 384, 511, 512, 4096])
def test_side_is_the_crop_in_source_pixels_rounded_to_nearest(scale):
    sides, _ = source_windows(SIZES, [scale] * len(SIZES), [(0, 0)] * len(SIZES), 224)
    for (height, width), side in zip(SIZES, sides, strict=True):
        exact = Fraction(224 * min(height, width), scale)
        assert side == max(1, math.floor(exact + Fraction(1, 2)))


def test_every_window_lies_in_its_image():
    random = np.random.default_rng(0)
    sizes = random.integers(1, 70, (20000, 2))
    scales = random.integers(32, 100, 20000)
    positions = random.choice([0, 1, CENTER, POSITIONS - 1], (20000, 2))
    side, start = source_windows(sizes, scales, positions, 32)
    assert (side >= 1).all()
    assert (start >= 0).all()
    assert (start + side[:, None] <= sizes).all()


def test_positions_reach_the_first_pixel_the_last_one_and_the_centre():
    positions = [(0, POSITIONS - 1), (CENTER, CENTER)]
    side, start = source_windows([(400, 600)] * 2, [256] * 2, positions, 224)
    assert list(side) == [350, 350]
    assert list(start[0]) == [0, 600 - 350 - 1]  # floor of 250 x 65535 / 65536
    assert list(start[1]) == [25, 125]


def test_a_scale_equal_to_the_crop_shows_the_whole_shorter_side():
    side, start = source_windows([(300, 450)], [224], [(12345, 0)], 224)
    assert side[0] == 300
    assert list(start[0]) == [0, 0]
