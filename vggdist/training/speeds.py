"""How fast this world's links and devices are, measured in a second at the start of a training.

What `exchange: auto` decides by (`distributed/exchange_time.py`), and its decision.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F

from vggdist.config import BatchSplit, Config, Exchange
from vggdist.distributed import process as world
from vggdist.distributed.collectives import Collectives
from vggdist.distributed.exchange_time import Speeds, Step, soonest
from vggdist.distributed.precision import DTYPES
from vggdist.distributed.process import Process
from vggdist.distributed.traffic import ELEMENT_BYTES, all_reduce_bytes
from vggdist.model.layer_costs import count_layers
from vggdist.training.product import BLOCK_ELEMENTS, multiply

_REPEATS = 3
_LARGEST_ELEMENTS, _LONG_ENOUGH_SECONDS = 1 << 24, 0.05
"""A sum of so many elements, or one that takes so long, shows the rate of the links."""
_MOST_ROWS = 4096
"""Of a product that is timed; more do not change its rate."""
_CHANNELS, _SIDE, _IMAGES = 256, 28, 2
"""A convolution of the middle of VGG at 224 pixels."""


def choose_ways(
    config: Config,
    split: BatchSplit,
    process: Process,
    collectives: Collectives,
    saved: Mapping[str, Any] | None = None,
) -> dict[str, Exchange]:
    """How the trained fully connected layers' gradients are sent, by layer; collective.

    Args:
        saved: an earlier decision's `to_state`, which is kept for the same ranks and images.
    """
    layers = count_layers(config)
    if config.exchange != "auto":
        names = [layer.name for layer in layers if layer.matrix and layer.is_trained]
        return dict.fromkeys(names, config.exchange)
    if saved is not None and to_state(saved["ways"], split) == saved:
        return dict(saved["ways"])
    gradients = [layer.gradient for layer in reversed(layers)]
    return soonest(
        gradients, step_of(config, split), measure_speeds(config, split, process, collectives)
    )


def to_state(ways: Mapping[str, Exchange], split: BatchSplit) -> dict[str, Any]:
    """A decision and what it is for, ready for JSON."""
    return {
        "world_size": split.world_size,
        "micro": split.micro,
        "per_rank": split.per_rank,
        "ways": dict(ways),
    }


def step_of(config: Config, split: BatchSplit) -> Step:
    """What each rank computes and sends in a step."""
    return Step(
        split.world_size,
        split.micro,
        split.per_rank,
        ELEMENT_BYTES[config.sent_precision],
        ELEMENT_BYTES[config.factor_precision],
        config.updates_by_blocks,
    )


def measure_speeds(
    config: Config, split: BatchSplit, process: Process, collectives: Collectives
) -> Speeds:
    """The slowest rank's; collective."""
    device = process.device

    def seconds(work: Callable[[], object]) -> float:
        """The shortest of a few, after one that does not count."""
        work()
        return min(_time(work, device) for _ in range(_REPEATS))

    def all_reduce(num_elements: int) -> Callable[[], object]:
        flat = torch.ones(num_elements, dtype=DTYPES[config.sent_precision], device=device)

        def work() -> None:
            collectives.all_reduce(flat)()

        return work

    def all_gather() -> None:
        row = torch.ones(1, 1, dtype=DTYPES[config.factor_precision], device=device)
        collectives.all_gather(row)[1]()

    latency, gather_latency = seconds(all_reduce(1)), seconds(all_gather)
    num_elements, took, used = 1 << 18, 0.0, 0.0
    while True:
        work = all_reduce(num_elements)
        work()
        before = time.process_time()
        took = max(world.gather(_time(work, device)))
        used = time.process_time() - before
        if took >= _LONG_ENOUGH_SECONDS or num_elements >= _LARGEST_ELEMENTS:
            break
        num_elements *= 4
    size = ELEMENT_BYTES[config.sent_precision]
    sent = all_reduce_bytes(num_elements, split.world_size, size)
    held_up = used / process.num_cores / sent if device.type == "cpu" else 0.0

    compute = DTYPES[config.resolved_precision]
    weights = torch.ones(_CHANNELS, _CHANNELS, 3, 3, dtype=compute, device=device)
    images = torch.ones(_IMAGES, _CHANNELS, _SIDE, _SIDE, dtype=compute, device=device)
    weights, images = (
        tensor.contiguous(memory_format=torch.channels_last) for tensor in (weights, images)
    )
    convolution = seconds(lambda: F.conv2d(images, weights, padding=1))
    rows, width = min(split.global_batch, _MOST_ROWS), config.model.fc_width
    block = torch.empty(
        max(1, min(width, BLOCK_ELEMENTS[device.type] // width)), width, device=device
    )
    x, dy = (
        torch.ones(rows, columns, dtype=DTYPES[config.factor_precision], device=device)
        for columns in (width, len(block))
    )
    product = seconds(lambda: multiply(dy, x, 1.0, block))
    large = torch.ones(_LARGEST_ELEMENTS, device=device)
    copied = torch.empty_like(large)
    copying = seconds(lambda: copied.copy_(large))
    collectives.waiting.take()  # no step has waited for these

    measured = Speeds(
        all_reduce_latency=latency,
        all_gather_latency=gather_latency,
        sent_bytes_per_second=sent / max(took - latency, took / 2),
        held_up_seconds_per_byte=held_up,
        multiply_adds_per_second=weights.numel() * _IMAGES * _SIDE**2 / convolution,
        product_multiply_adds_per_second=rows * block.numel() / product,
        memory_bytes_per_second=2 * large.nbytes / copying,
    )
    return _slowest(world.gather(measured))


def _time(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started_at = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started_at


def _slowest(of_ranks: list[Speeds]) -> Speeds:
    """The lowest rates and the longest times; the same on all ranks."""
    values = [asdict(speeds) for speeds in of_ranks]
    return Speeds(
        **{
            name: (min if name.endswith("per_second") else max)(value[name] for value in values)
            for name in values[0]
        }
    )
