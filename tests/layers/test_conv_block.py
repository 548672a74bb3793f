import torch
from torch import nn

from vggdist.layers.conv_block import ConvBlock
from vggdist.model.configurations import parse_configuration

(BLOCK,) = parse_configuration([["3-8", "LRN", "1-6"]])


def test_its_layers_stand_in_the_order_of_the_configuration() -> None:
    assert [name for name, _ in ConvBlock(3, BLOCK).named_children()] == [
        "conv1",
        "relu1",
        "lrn1",
        "conv2",
        "relu2",
    ]


def test_batch_normalization_comes_between_convolution_and_relu() -> None:
    names = [name for name, _ in ConvBlock(3, BLOCK, batch_norm=True).named_children()]
    assert names == ["conv1", "norm1", "relu1", "lrn1", "conv2", "norm2", "relu2"]


def test_height_and_width_stay_and_nothing_is_pooled() -> None:
    block = ConvBlock(3, BLOCK)
    assert block(torch.randn(2, 3, 7, 5)).shape == (2, 6, 7, 5)
    assert block.out_channels == 6


def test_a_block_of_two_is_two_padded_convolutions_each_with_relu() -> None:
    (layers,) = parse_configuration([["3-8", "5-6"]])
    block = ConvBlock(3, layers)
    assert isinstance(block.conv1, nn.Conv2d)
    assert isinstance(block.conv2, nn.Conv2d)
    x = torch.randn(2, 3, 6, 6)
    first = nn.functional.conv2d(x, block.conv1.weight, block.conv1.bias, padding=1).clamp(min=0)
    second = nn.functional.conv2d(first, block.conv2.weight, block.conv2.bias, padding=2)
    torch.testing.assert_close(block(x), second.clamp(min=0))
