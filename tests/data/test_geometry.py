"""Windows, sizes and grids against exact fractions, and score maps against torch's poolings."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from vggdist.data.geometry import (
    CENTER,
    POSITIONS,
    crop_grid,
    map_side,
    rescaled_sizes,
    source_windows,
)

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


def half_up(exact: Fraction) -> int:
    return math.floor(exact + Fraction(1, 2))


@pytest.mark.parametrize("scale", [1, 224, 256, 257, 384, 511, 512])
def test_a_rescaled_image_has_the_shorter_side_q_and_keeps_its_shape(scale):
    for (height, width), rescaled in zip(SIZES, rescaled_sizes(SIZES, scale), strict=True):
        shorter = min(height, width)
        assert list(rescaled) == [half_up(Fraction(x * scale, shorter)) for x in (height, width)]
        assert min(rescaled) == scale


def test_no_images_have_no_sizes():
    assert rescaled_sizes([], 256).shape == (0, 2)


@pytest.mark.parametrize(("height", "width"), [(256, 341), (224, 224), (512, 683), (227, 500)])
def test_the_grid_has_25_places_equally_spaced_from_the_first_pixel_to_the_last(height, width):
    expected = [
        (half_up(Fraction(i * (height - 224), 4)), half_up(Fraction(j * (width - 224), 4)))
        for i in range(5)
        for j in range(5)
    ]
    assert [tuple(place) for place in crop_grid(height, width, 224)] == expected
    assert expected[0] == (0, 0)
    assert expected[-1] == (height - 224, width - 224)


def test_a_grid_of_two_is_the_four_corners():
    corners = [(0, 0), (0, 9), (3, 0), (3, 9)]
    assert [tuple(place) for place in crop_grid(35, 41, 32, num=2)] == corners


@pytest.mark.parametrize(
    ("pixels", "side"),
    [
        (224, 1), (255, 1), (256, 2), (288, 3), (352, 5), (384, 6), (416, 7), (512, 10), (640, 14),
        (768, 18), (223, 0),
    ],
)  # fmt: skip
def test_the_score_map_of_a_side_is_that_of_five_blocks_and_crops_of_224(pixels, side):
    assert map_side(pixels, 5, 224) == side


@pytest.mark.parametrize(("num_blocks", "crop_size"), [(1, 32), (2, 32), (5, 64), (5, 224)])
def test_a_score_map_is_as_large_as_poolings_and_a_convolution_leave_it(num_blocks, crop_size):
    for pixels in range(crop_size, crop_size + 70):
        maps = torch.zeros(1, 1, pixels, crop_size)
        for _ in range(num_blocks):
            maps = torch.nn.functional.max_pool2d(maps, 2)
        kernel = torch.zeros(1, 1, crop_size >> num_blocks, crop_size >> num_blocks)
        scores = torch.nn.functional.conv2d(maps, kernel)
        assert scores.shape[2] == map_side(pixels, num_blocks, crop_size)
