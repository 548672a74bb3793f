"""The ways to exchange gradients that `bench exchange` compares, and the rank that runs one.

All train the same network on the same batches with the same optimizer. Each way is a function
that builds a network for its way, and returns its loop.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

from vggdist.config import BatchSplit, Config, split_batch
from vggdist.config_file import load_config
from vggdist.data.batch import Batch
from vggdist.distributed import process as world
from vggdist.distributed.precision import DTYPES
from vggdist.distributed.process import Process, sum_over_ranks
from vggdist.model.initialization import build_initialized
from vggdist.model.vgg import VGG
from vggdist.profiling.hosts import Hosts, bytes_sent
from vggdist.profiling.loops import OurLoop, synthetic_batch, torch_sgd
from vggdist.training.engine import quiet_deepspeed


@dataclass(frozen=True)
class Loop:
    """One way to train.

    Attributes:
        step: one update; the loss of this rank's images before it.
        alone: within its block, steps send no gradients and no weights.
    """

    step: Callable[[Batch], Tensor]
    alone: Callable[[], AbstractContextManager[object]]


Build = Callable[[Config, BatchSplit, Process], Loop]

NUM_BATCHES = 2
"""Different batches of each rank; they come again and again, so the loss must fall."""
POOLED_SIDE = 7
"""Of fc6's input at 224 pixels; smaller images are pooled to it, as torchvision does."""


def run_rank(name: str, config: Config, num_steps: int, num_warm: int) -> None:
    """One rank that exchanges gradients in one way; prints what it measured as JSON.

    That is `seconds` of each timed step, `bytes` sent in them, `loss` (of the last of them, mean
    over ranks) and `peak_memory` (bytes). Then steps with and without the exchange take turns, half
    as many of each: their seconds are `exchanging` and `alone`.
    """
    process = world.start("cpu")
    split = split_batch(config.batch, process.world_size)
    batches = [
        synthetic_batch(
            config, split.micro, process.device, number * process.world_size + process.rank
        )
        for number in range(NUM_BATCHES)
    ]
    # DeepSpeed prints on stdout.
    with contextlib.redirect_stdout(sys.stderr):
        loop = WAYS[name](config, split, process)
    seconds, sent = [], 0
    for number in range(num_warm + num_steps):
        if number == num_warm:
            distributed.barrier()
            sent = bytes_sent(Hosts.interface)
        began_at = time.perf_counter()
        loss = loop.step(batches[number % NUM_BATCHES])
        seconds.append(time.perf_counter() - began_at)
    distributed.barrier()  # what is still queued for the cable has left by then
    sent = bytes_sent(Hosts.interface) - sent
    mean = float(sum_over_ranks(loss.double().clone())) / process.world_size
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    exchanging, alone = [], []
    for number in range(-(-num_steps // 2)):
        batch = batches[number % NUM_BATCHES]
        exchanging.append(_seconds(loop, batch))
        with loop.alone():
            alone.append(_seconds(loop, batch))
    answer = {
        "seconds": seconds[num_warm:],
        "bytes": sent,
        "loss": mean,
        "peak_memory": memory,
        "exchanging": exchanging,
        "alone": alone,
    }
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    world.stop()


def _seconds(loop: Loop, batch: Batch) -> float:
    """Of a step that all ranks begin together."""
    distributed.barrier()
    began_at = time.perf_counter()
    loop.step(batch)
    return time.perf_counter() - began_at


def full_network(config: Config) -> VGG:
    """The network with fc6 as at 224 pixels, for images of any size.

    Maps of another size are pooled adaptively, as torchvision does, so that all 138,357,544
    parameters of configuration D are there at 64 pixels.
    """
    full_side = POOLED_SIDE << len(config.model.blocks())
    network = build_initialized(config.model, full_side, config.seed)
    network.features.add_module("adaptive_pool", nn.AdaptiveAvgPool2d(POOLED_SIDE))
    network.crop_size = config.data.crop_size
    return network


def _ours(config: Config, split: BatchSplit, process: Process) -> Loop:
    loop = OurLoop(config, split, process, full_network(config))

    def step(batch: Batch) -> Tensor:
        loop.meter.sums.zero_()
        loop.step([batch])
        return loop.meter.sums[0] / loop.meter.sums[3]

    return Loop(step, loop.gradients_kept)


def _ddp(hook: Any, config: Config, split: BatchSplit, process: Process) -> Loop:
    network = full_network(config).to(memory_format=torch.channels_last)
    parallel = nn.parallel.DistributedDataParallel(network, gradient_as_bucket_view=True)
    if hook is not None:
        parallel.register_comm_hook(None, hook)
    optimizer = torch_sgd(network, config)

    def step(batch: Batch) -> Tensor:
        loss = _loss(parallel, batch, config)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return Loop(step, parallel.no_sync)


def _deepspeed(
    zero: dict[str, Any],
    settings: dict[str, Any],
    config: Config,
    split: BatchSplit,
    process: Process,
) -> Loop:
    network = full_network(config)
    whole_bf16 = "bf16" in settings
    with quiet_deepspeed(process) as deepspeed:
        engine, *_ = deepspeed.initialize(
            model=network,
            optimizer=torch_sgd(network, config),
            config={
                "train_batch_size": split.global_batch,
                "train_micro_batch_size_per_gpu": split.micro,
                "gradient_clipping": 0.0,
                "zero_allow_untested_optimizer": True,
                "steps_per_print": 2**31,
                "timers": {"throughput": {"enabled": False}},
                "zero_optimization": zero,
                **settings,
            },
            dist_init_required=False,
        )
    if zero["stage"] == 0:
        engine.module.to(memory_format=torch.channels_last)

    def step(batch: Batch) -> Tensor:
        loss = _loss(engine, batch, config, weights_are_bf16=whole_bf16)
        engine.backward(loss)
        engine.step()
        detached: Tensor = loss.detach()
        return detached

    return Loop(step, partial(_silenced, deepspeed.comm.comm))


@contextlib.contextmanager
def _silenced(comm: Any) -> Iterator[None]:
    """Within the block, DeepSpeed's collectives do nothing; its own `no_sync` refuses ZeRO-2."""
    backend, comm.cdb = comm.cdb, _Silent(comm.cdb)
    try:
        yield
    finally:
        comm.cdb = backend


class _Silent:
    """A backend of DeepSpeed whose collectives are done at once, and leave tensors as they are."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("all_reduce", "all_gather", "reduce", "broadcast")):
            return lambda *_, **__: self
        return getattr(self._backend, name)

    def wait(self) -> None:
        """Of a collective, for which it stands too."""


def _loss(network: Any, batch: Batch, config: Config, *, weights_are_bf16: bool = False) -> Tensor:
    dtype = torch.bfloat16 if weights_are_bf16 else DTYPES[config.resolved_precision]
    autocast = dtype != torch.float32 and not weights_are_bf16
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        logits = network(batch.images.to(dtype), batch.dropout_keys)
    return F.cross_entropy(logits.float(), batch.labels)


_BF16_SENT = {"communication_data_type": "bf16"}
_OVERLAP = {"overlap_comm": True, "contiguous_gradients": True}
_ALL_BF16 = {"bf16": {"enabled": True}, **_BF16_SENT}
"""Weights and gradients too."""

WAYS: dict[str, Build] = {
    "ours": _ours,
    "ddp_fp32": partial(_ddp, None),
    "ddp_bf16": partial(_ddp, bf16_compress_hook),
    "deepspeed_0": partial(_deepspeed, {"stage": 0}, _BF16_SENT),
    "zero_1": partial(_deepspeed, {"stage": 1}, {}),
    "zero_2": partial(_deepspeed, {"stage": 2}, {}),
    "zero_1_bf16": partial(_deepspeed, {"stage": 1, **_OVERLAP}, _ALL_BF16),
    "zero_2_bf16": partial(_deepspeed, {"stage": 2, **_OVERLAP}, _ALL_BF16),
}


def main(arguments: Sequence[str]) -> None:
    """`NAME NUM_STEPS NUM_WARM [section.key=value ...]`, with a launcher's environment."""
    name, num_steps, num_warm, *overrides = arguments
    run_rank(name, load_config(None, overrides), int(num_steps), int(num_warm))
    # All is told. Threads of torch's own, which look for the names of hosts that no resolver knows,
    # now and then abort a process that ends in the usual way.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
