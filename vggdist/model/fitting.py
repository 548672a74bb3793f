"""The largest micro batch that fits the memory of a GPU. No torch."""

from __future__ import annotations

from vggdist.config import (
    FULLY_CONNECTED,
    BatchSplit,
    Config,
    divisors,
    split_batch,
    trained_layers,
)
from vggdist.model.memory import count_memory

LARGEST_MICRO = 256
_LIBRARIES_BYTES = 4 << 30
"""CUDA's context (0.5 GB), NCCL's buffers (1 GB), nvJPEG's (a gibibyte, `data/decode.py`), and as
much again."""
_BYTES_OF_IMAGE = 10 << 20
"""DALI's windows of an image: 3 bytes a pixel, some batches ahead. The loader of the evaluations is
kept between them, and its first batches wait while steps are taken."""
_SHARE = 1.2
"""cuDNN's workspaces, and what lies unused between tensors, as a share of the tensors."""


def needed_memory(config: Config, split: BatchSplit) -> int:
    """Bytes of a GPU on which a step surely fits: its tensors and a reserve for the libraries.

    Where the exchange is not decided yet, that of the dearer way.
    """
    ways = ("all_reduce", "factors") if config.exchange == "auto" else (config.exchange,)
    names = [name for name in trained_layers(config) if name in FULLY_CONNECTED]
    tensors = max(
        count_memory(config, split, dict.fromkeys(names, way) if split.world_size > 1 else {})[
            "total"
        ]
        for way in ways
    )
    images = split.micro + (config.evaluation.micro or split.micro)
    return round(_SHARE * tensors) + _LIBRARIES_BYTES + _BYTES_OF_IMAGE * images


def fitting_split(config: Config, world_size: int, memory_bytes: float) -> BatchSplit:
    """The largest micro batch up to `LARGEST_MICRO` that fits; 1 where none does.

    Raises:
        ConfigError: the ranks cannot share the global batch.
    """
    per_rank = split_batch(config.batch, world_size).per_rank
    for micro in divisors(per_rank, LARGEST_MICRO)[::-1]:
        split = BatchSplit(config.batch.global_, micro, per_rank // micro, world_size)
        if needed_memory(config, split) <= memory_bytes:
            break
    return split
