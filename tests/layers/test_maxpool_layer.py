import torch

from vggdist.layers.maxpool_layer import MaxPoolLayer


def test_each_output_is_the_largest_of_its_own_four_pixels() -> None:
    x = torch.randn(2, 3, 6, 4)
    expected = torch.empty(2, 3, 3, 2)
    for row in range(3):
        for column in range(2):
            window = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            expected[:, :, row, column] = window.amax((2, 3))
    assert torch.equal(MaxPoolLayer()(x), expected)


def test_an_odd_last_row_is_left_out() -> None:
    assert MaxPoolLayer()(torch.randn(1, 1, 7, 5)).shape == (1, 1, 3, 2)
