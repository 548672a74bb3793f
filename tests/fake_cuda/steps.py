"""Training steps of VGG D under a pretended CUDA, by the loop that trains."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.fake_cuda import runtime
from tests.fake_cuda.memory import DeviceMemory
from tests.fake_cuda.runtime import PretendedTensors
from tests.fake_cuda.watch import Watch
from vggdist.artifacts import checkpoint
from vggdist.config import BatchSplit, Config, split_batch, trained_layers
from vggdist.config_file import load_config
from vggdist.data.batch import Batch
from vggdist.distributed import process as world
from vggdist.distributed.precision import DTYPES
from vggdist.distributed.process import Process
from vggdist.evaluation.metrics import Errors
from vggdist.model.initialization import build_initialized, freeze
from vggdist.training.engine import Engine
from vggdist.training.loop import Training
from vggdist.training.schedule import Schedule
from vggdist.training.signals import StopSignal
from vggdist.training.zero import build_engine

WATCHED_STEP = 3
"""The first one makes momentum, and from the third on DeepSpeed would measure time."""


@dataclass(frozen=True)
class Ranks:
    """One rank among others."""

    world_size: int = 1
    rank: int = 0


ALONE = Ranks()


def start(ranks: Ranks) -> Process:
    """Joins a world by `vggdist.distributed.process.start`; its other ranks are not there."""
    environment = {"RANK": ranks.rank, "LOCAL_RANK": ranks.rank, "WORLD_SIZE": ranks.world_size}
    os.environ |= {name: str(value) for name, value in environment.items()}
    os.environ |= {"MASTER_ADDR": "nowhere", "MASTER_PORT": "1"}
    join = distributed.init_process_group
    distributed.init_process_group = lambda _, **settings: join("fake", **settings)
    world.rendezvous = lambda *_, **__: iter([(FakeStore(), ranks.rank, ranks.world_size)])
    world._count_cores = lambda _: 1
    world.gather = lambda value: [value] * ranks.world_size  # type: ignore[assignment]
    return world.start("cuda")


def gpu_at_start(ranks: Ranks) -> int:
    """The GPU of the main thread before anything else is done."""
    start(ranks)
    return runtime.current_device()


@dataclass(frozen=True)
class Report:
    """What was seen in a step, and when its network was saved."""

    faults: list[str]
    operators: Counter[str]
    devices: set[int]
    """GPUs that any thread has turned to since the start of the process."""
    num_replays: int
    """Of graphs."""
    seconds: float
    """Of the host, which is slower here than with true tensors."""
    memory: dict[str, int] = field(default_factory=dict)
    """Most bytes on the GPU, by what they are for."""
    saved: list[int] = field(default_factory=list)
    """Contiguous tensors of each checkpoint that would have been written."""
    waiting: set[str] = field(default_factory=set)
    """Threads that have waited for an event since the start of the process."""


class _SeenError(Exception):
    """Ends a training of which enough has been seen."""


def train(
    overrides: Sequence[str],
    ranks: Ranks = ALONE,
    measure_memory: bool = False,
    watched_step: int = WATCHED_STEP,
) -> Report:
    """A training of D that ends after a step that is watched, with a checkpoint if one is due then.

    Args:
        overrides: `section.key=value`.
        ranks: which rank this is, among how many.
        measure_memory: fill in `Report.memory`.
        watched_step: from 1.
    """
    process = start(ranks)
    config = load_config(None, list(overrides))
    split = split_batch(config.batch, process.world_size)
    watch, memory = Watch(process.device), DeviceMemory()
    started_at: list[float] = []
    saved: list[int] = []

    def note(_: Path, given: checkpoint.Checkpoint, keep: int) -> None:
        tensors = [*given.weights.values(), *given.momentum.values()]
        saved.append(sum(tensor.is_contiguous() for tensor in tensors))

    checkpoint.save = note  # type: ignore[assignment]

    def batches() -> Iterator[Batch]:
        batch = synthetic_batch(config, split.micro, process.device)
        for step in itertools.count(1):
            if step == watched_step:
                watch.start()
                memory.start()
                started_at.append(time.perf_counter())
            elif step > watched_step:
                raise _SeenError
            for _ in range(split.accumulation_steps):
                yield dataclasses.replace(batch)

    with PretendedTensors(), watch, memory if measure_memory else contextlib.nullcontext():
        network = build_initialized(config.model, config.data.crop_size, config.seed)
        freeze(network, trained_layers(config))
        engine = build_engine(network, config, split, process)
        if measure_memory:
            memory.follow_gradients(engine.module)
        engine.is_finite = lambda read=engine.is_finite: read() is not None  # no bool is true
        training = build_training(config, process, split, engine, batches())
        with contextlib.suppress(_SeenError):
            training.train(StopSignal())
    seconds = time.perf_counter() - started_at[0]
    replays = sum(call.name == "CUDAGraph.replay" for call in watch.calls)
    devices = {call.device for call in runtime.calls}
    peak = memory.peak(engine) if measure_memory else {}
    waiting = {call.thread for call in runtime.calls if call.name == "Event.synchronize"}
    return Report(
        watch.faults, watch.operators, devices, replays, seconds, peak, saved=saved, waiting=waiting
    )


def build_training(
    config: Config,
    process: Process,
    split: BatchSplit,
    engine: Engine,
    batches: Iterator[Batch],
) -> Training:
    """A training without data; it ends before it would evaluate or save."""
    return Training(
        config,
        process,
        split,
        engine,
        Schedule(config.schedule, base_learning_rate=0.01, steps_per_epoch=1e4, total_steps=1000),
        num_images=1_000_000,
        open_batches=lambda _: contextlib.nullcontext(batches),
        evaluate=lambda: Errors(1, 0.0, 0.0, 0.0),
        data_digests={},
        known_bad=SimpleNamespace(has_new=False, note=lambda _: None, state=list),
        log=None,
        run_folder=Path("nowhere"),
    )


def synthetic_batch(config: Config, size: int, device: torch.device) -> Batch:
    """As the loader makes them, with values that nobody knows."""
    crop_size = config.data.crop_size
    pixels = torch.empty(size, crop_size, crop_size, 3, dtype=torch.uint8, device=device)
    numbers = torch.empty(size, dtype=torch.int64, device=device)
    return Batch(
        pixels.permute(0, 3, 1, 2),
        torch.empty(size, 3, device=device),
        labels=numbers,
        dropout_keys=numbers,
        index=np.arange(size),
        dtype=DTYPES[config.resolved_precision],
        std=config.data.std,
    )
