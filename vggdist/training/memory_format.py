"""How the weights of convolutions lie in memory, and with them the maps between.

channels_last is what tensor cores and 16-bit arithmetic on a CPU want. In fp32 on a CPU oneDNN has
another order of its own, and rearranges weights in every pass: from channels_last this takes as
long as a convolution of maps of 4x4 pixels. So wide blocks, which have most of the weights and the
smallest maps, are better off contiguous: measured for 512 channels, both passes together take 0.62
of the time with maps of 2x2, 0.70 of 4x4, 0.95 to 0.99 of 7x7 to 14x14. Narrow blocks of large maps
are slower contiguous by a twentieth to a fifth.
"""

from typing import Any

import torch
from torch import Tensor, nn

from vggdist.layers.conv_block import ConvBlock

WIDE = 512
"""Channels."""


def arrange_convolutions(network: nn.Module, *, wide_contiguous: bool) -> None:
    """Brings the weights into the order that is fastest, and later the maps that blocks take.

    Args:
        network: with `ConvBlock`s.
        wide_contiguous: whether blocks of `WIDE` channels and more are not channels_last.
    """
    network.to(memory_format=torch.channels_last)
    if wide_contiguous:
        for block in network.modules():
            if isinstance(block, ConvBlock) and block.out_channels >= WIDE:
                block.to(memory_format=torch.contiguous_format)
                # Else the maps would decide, and the weights be rearranged all the same.
                block.register_forward_pre_hook(_contiguous)


def _contiguous(_: nn.Module, maps: tuple[Any, ...]) -> tuple[Tensor]:
    (images,) = maps
    return (images.contiguous(),)
