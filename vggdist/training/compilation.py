"""`torch.compile` of the convolutions, for the steps of a training alone.

An evaluation has other shapes, for each of which the compiler would take its time again.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vggdist.config import Config
from vggdist.distributed import process as world
from vggdist.distributed.precision import DTYPES
from vggdist.distributed.process import Process
from vggdist.errors import first_line
from vggdist.model.vgg import VGG

logger = logging.getLogger(__name__)


def compile_for_training(network: VGG, config: Config, micro: int, process: Process) -> bool:
    """Compiles the convolutions of a network in training mode, and tries them; collective.

    Where any rank cannot, none does, and a sentence says why.

    Args:
        micro: images that the network is given at once.

    Returns:
        Whether they are compiled.
    """
    logger.info("compiling the convolutions, which takes a minute or so")
    problem = ""
    try:
        network.compiled = compiled_features(network)
        _try(network, config, micro, process.device)
    except Exception as error:  # what a compiler says has no type of its own
        problem = first_line(error)
    problem = max(world.gather(problem))  # of any rank
    if problem:
        network.compiled = None
        logger.warning(
            "compile: true has no effect here: %s The convolutions run as they are.", problem
        )
    return not problem


def compiled_features(network: VGG) -> Callable[[Tensor], Tensor]:
    """What computes `network.features`, compiled at its first use.

    Each block is compiled by itself with its pooling, so that its gradients can be sent while those
    of the blocks below are still computed.

    Raises:
        OSError: there is no compiler.
    """
    on_cpu = next(network.parameters()).device.type == "cpu"
    if on_cpu and shutil.which(os.environ.get("CXX") or "g++") is None:
        raise OSError("there is no C++ compiler, neither g++ nor one that CXX names.")
    parts = list(network.features)
    blocks = [
        torch.compile(nn.Sequential(block, pooling), dynamic=False)
        for block, pooling in zip(parts[::2], parts[1::2], strict=True)
    ]

    def features(images: Tensor) -> Tensor:
        for block in blocks:
            images = block(images)
        return images

    return features


def _try(network: VGG, config: Config, micro: int, device: torch.device) -> None:
    """One pass forward and backward, which leaves nothing behind."""
    assert network.training
    assert network.compiled is not None
    dtype, side = DTYPES[config.resolved_precision], config.data.crop_size
    images = torch.zeros(micro, 3, side, side, dtype=dtype, device=device)
    statistics = [buffer.clone() for buffer in network.buffers()]
    # As DeepSpeed calls the network: else it would be compiled once more.
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        maps = network.compiled(images.to(memory_format=torch.channels_last))
    trained = [weights for weights in network.features.parameters() if weights.requires_grad]
    if trained:
        torch.autograd.grad(maps.sum(), trained)
    for buffer, before in zip(network.buffers(), statistics, strict=True):
        buffer.copy_(before)
