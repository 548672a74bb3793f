"""The memory format of convolution weights, and so of the maps between them.

channels_last is fastest on tensor cores and for 16-bit arithmetic on a CPU. In fp32 on a CPU,
oneDNN uses its own order and rearranges weights in every pass, more slowly from channels_last. So
wide blocks, which have most of the weights and the smallest maps, are faster contiguous: measured
for 512 channels, both passes together take 0.62 of the time with maps of 2x2, 0.70 with 4x4, 0.95
to 0.99 with 7x7 to 14x14. Narrow blocks with large maps would take up to a quarter longer.
"""

from typing import Any

import torch
from torch import Tensor, nn

from vggdist.config import Precision
from vggdist.distributed.precision import DTYPES
from vggdist.layers.conv_block import ConvBlock

WIDE = 512
"""Channels."""


def arrange_convolutions(network: nn.Module, device: torch.device, precision: Precision) -> None:
    """Puts the weights, and later the input maps of blocks, into the fastest memory format.

    Args:
        network: made of `ConvBlock`s.
        device: of the network.
        precision: of the computation.
    """
    network.to(memory_format=torch.channels_last)
    assert convolutions_are_channels_last(network)
    if device.type == "cpu" and DTYPES[precision] == torch.float32:
        for block in network.modules():
            if isinstance(block, ConvBlock) and block.out_channels >= WIDE:
                block.to(memory_format=torch.contiguous_format)
                # Else the maps would decide, and the weights would still be rearranged.
                block.register_forward_pre_hook(_contiguous)


def convolutions_are_channels_last(part: nn.Module) -> bool:
    """Whether every 4-D parameter is channels_last; 1x1 kernels are in either format."""
    return all(
        parameter.is_contiguous(memory_format=torch.channels_last)
        for parameter in part.parameters()
        if parameter.dim() == 4
    )


def _contiguous(_: nn.Module, maps: tuple[Any, ...]) -> tuple[Tensor]:
    (images,) = maps
    return (images.contiguous(),)
