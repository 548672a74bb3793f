"""What makes training fast on a CPU: the memory format of weights, and memory that is kept.

channels_last is fastest on tensor cores and for 16-bit arithmetic on a CPU. In fp32 on a CPU,
oneDNN uses its own order and rearranges weights in every pass, more slowly from channels_last. So
wide blocks, which have most of the weights and the smallest maps, are faster contiguous: measured
for 512 channels, both passes together take 0.62 of the time with maps of 2x2, 0.70 with 4x4, 0.95
to 0.99 with 7x7 to 14x14. Narrow blocks with large maps would take up to a quarter longer.

Every step on a CPU allocates and frees the same hundreds of megabytes. The C library returns large
blocks to the system at once, and a fresh page costs more than the arithmetic on it: a measured
fifth of a step's time at 224 pixels (732,000 page faults).
"""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from vggdist.config import Precision
from vggdist.distributed.precision import DTYPES
from vggdist.layers.conv_block import ConvBlock

WIDE = 512
"""Channels."""
_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1  # of glibc's malloc.h


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


def keep_freed_memory() -> None:
    """From now on, this process keeps memory that it frees; does nothing without glibc.

    The process never shrinks, and is a little larger than it would be: freed blocks are reused
    after the first few of each size.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
