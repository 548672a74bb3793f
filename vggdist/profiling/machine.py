"""This machine for `vggdist plan`: one device's arithmetic, memory, links, images, disk.

All ranks of a node are measured at the same time, since they share its cores and its memory; the
slowest counts. The network to other nodes is not measured: `vggdist plan --network` says its rate.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, distributed

from vggdist.artifacts import checkpoint
from vggdist.config import BatchSplit, Config
from vggdist.data.dataset import open_images
from vggdist.distributed import process as world
from vggdist.distributed import traffic
from vggdist.distributed.device import memory_of
from vggdist.distributed.precision import DTYPES
from vggdist.errors import ConfigError
from vggdist.model.layer_costs import count_layers
from vggdist.model.vgg import build_vgg
from vggdist.planning.devices import NETWORK_LATENCY_MICROSECONDS, Device, load_device
from vggdist.planning.links import Cluster
from vggdist.planning.messages import Work
from vggdist.planning.step import UPDATE_PASSES, WEIGHT_BYTES, compute_seconds
from vggdist.profiling.images import TimedImages
from vggdist.profiling.loops import OurLoop, synthetic_batch
from vggdist.profiling.outputs import require_own_file
from vggdist.profiling.sample import save_photo
from vggdist.profiling.timing import Bench, open_bench, take_turns
from vggdist.terminal import counted
from vggdist.training.optimizer import MaskedSGD

_LARGE, _SMALL = 1 << 24, 1 << 8  # elements of an all-reduce that measures rate, latency
_REPEATS, _SMALL_REPEATS = 5, 50
_FRESH_IMAGES, _FRESH_MATRIX = 16, (4096, 25088)  # of fc6
_CHECKPOINT_ELEMENTS = 1 << 25
_NUM_IMAGES, _HEIGHT, _WIDTH = 64, 375, 500  # ImageNet's usual shape


def require_writable(out: Path) -> None:
    """Raises a ConfigError if `out` is anything but a new file or an earlier measurement."""

    def is_ours() -> bool:
        try:
            load_device(str(out))
        except ConfigError:
            return False
        return True

    require_own_file(out, is_ours, "vggdist bench machine")


def measure_machine(config: Config, rounds: int, folder: Path) -> dict[str, Any] | None:
    """Measures what `Device` holds.

    Collective: every rank of the node takes part.

    Args:
        config: its network, crop size, precision and batch are those of the arithmetic; the images
            of `data.root` are decoded, or made ones without it.
        rounds: training steps that are timed.
        folder: where a checkpoint is written and deleted again.

    Returns:
        On the main rank the fields of `Device`, else none.

    Raises:
        VggdistError: the configuration cannot be run here, or the images cannot be read.
    """
    if rounds < 3:
        raise ConfigError(f"--rounds is {rounds}; a spread needs at least three rounds.")
    with open_bench(config) as bench:
        config, process, split, status = bench.config, bench.process, bench.split, bench.status
        status.show("memory: updates of the network's weights")
        # Before an engine is built, which keeps what it frees.
        fresh = _fresh_seconds(bench) if process.device.type == "cpu" else 0.0
        memory = _memory_rate(bench)
        steps = _steps(bench, rounds)
        status.show("links between the ranks of this node")
        links = _links(bench)
        status.show("images")
        decoded = _decoded(bench)
        status.show("a checkpoint")
        written = _checkpoint_rate(folder) if process.is_main else 0.0
        status.clear()
    if not process.is_main:
        return None
    device = Device(
        name=_name(process.device),
        source=f"vggdist bench machine, {date.today().isoformat()}, "
        f"{counted(process.world_size, 'rank')} of {platform.node()}, "
        f"{counted(process.num_cores, 'core')} each",
        peak_teraflops={},
        sustained_teraflops={config.resolved_precision: 1.0},
        memory_gigabytes=_memory_bytes(process) / 1e9,
        memory_gigabytes_per_second=memory / 1e9,
        fresh_seconds_per_gigabyte=fresh * 1e9,
        step_spread=min(statistics.mean(map(_spread, zip(*steps, strict=True))), 0.99),
        decoded_images_per_second=decoded,
        checkpoint_gigabytes_per_second=written / 1e9,
        num_cores=process.num_cores * process.world_size,
        cores_compute=process.device.type == "cpu",
        **links,
    )
    rate = sustained_teraflops(config, split, device, statistics.median(map(max, steps)))
    update = {"sustained_teraflops": {config.resolved_precision: rate}}
    return device.model_copy(update=update).model_dump()


def sustained_teraflops(config: Config, split: BatchSplit, device: Device, seconds: float) -> float:
    """The rate at which an estimated step takes just as long as the measured one.

    Args:
        device: with the measured rate of its memory.
        seconds: of a step on one rank, without exchange.
    """
    work = Work.of_training(count_layers(config), config, split)

    def estimated(rate: float) -> float:
        rates = {"sustained_teraflops": {config.resolved_precision: rate}}
        return compute_seconds(work, Cluster(1, 1, device.model_copy(update=rates), 1e9))

    # Arithmetic falls with the rate, what the memory takes does not.
    arithmetic = estimated(1.0) - estimated(1e12)
    return arithmetic / max(seconds - estimated(1e12), 0.1 * seconds)


def render_machine(values: dict[str, Any]) -> str:
    """The measured figures, one a line."""
    (precision, rate), *_ = values["sustained_teraflops"].items()
    rows = {
        f"arithmetic of a rank, {precision}": f"{rate:.3f} TFLOP/s",
        "spread of a step": f"{100 * values['step_spread']:.1f} %",
        "memory of a rank": f"{values['memory_gigabytes']:.1f} GB, "
        f"{values['memory_gigabytes_per_second']:.1f} GB/s",
        "memory fresh from the system": f"{values['fresh_seconds_per_gigabyte']:.2f} s/GB more",
        "ring inside the node": f"{values['bus_gigabytes_per_second']:.2f} GB/s, "
        f"{values['bus_latency_microseconds']:.0f} us a step",
        "arithmetic held up by exchange": f"{values['exchange_seconds_per_gigabyte']:.2f} s/GB",
        "images ready": f"{values['decoded_images_per_second']:.0f} images/s of a core, "
        f"{values['num_cores']} cores",
        "checkpoints": f"{values['checkpoint_gigabytes_per_second']:.2f} GB/s",
    }
    head = [values["name"], values["source"]]
    return "\n".join([*head, *(f"{name:<34}{text}" for name, text in rows.items())])


def _memory_rate(bench: Bench) -> float:
    """Bytes per second of the optimizer's passes over all weights."""
    config = bench.config
    network = build_vgg(config.model, config.data.crop_size, device=str(bench.process.device))
    parameters = list(network.parameters())
    for parameter in parameters:
        torch.nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    optimizer = MaskedSGD(parameters, config.optimizer)
    optimizer.step()
    seconds = statistics.median(bench.seconds(optimizer.step) for _ in range(_REPEATS))
    num_bytes = WEIGHT_BYTES * sum(parameter.numel() for parameter in parameters)
    return UPDATE_PASSES * num_bytes / seconds


def _fresh_seconds(bench: Bench) -> float:
    """By how much a byte of a gradient costs more where the system gives it and takes it back."""
    dy, x = (torch.ones(_FRESH_IMAGES, features) for features in _FRESH_MATRIX)
    kept = torch.empty(_FRESH_MATRIX)

    def fresh() -> None:
        torch.mm(dy.T, x)

    fresh()
    differences = [
        bench.seconds(fresh) - bench.seconds(lambda: torch.mm(dy.T, x, out=kept))
        for _ in range(_REPEATS)
    ]
    return max(0.0, statistics.median(differences)) / (WEIGHT_BYTES * kept.numel())


def _steps(bench: Bench, rounds: int) -> list[list[float]]:
    """Each rank's seconds of training steps in which it keeps its gradients."""
    loop = OurLoop(bench.config, bench.split, bench.process)
    batches = [synthetic_batch(bench.config, bench.split.micro, bench.process.device)]
    batches *= bench.split.accumulation_steps
    with loop.gradients_kept() if loop.can_keep_gradients else nullcontext():
        loop.step(batches)
        ways = {"a step": lambda: bench.seconds_of_ranks(lambda: loop.step(batches))}
        return take_turns(ways, rounds, bench.status, "arithmetic: ")["a step"]


def _spread(seconds: Sequence[float]) -> float:
    """Standard deviation over median, from the quartiles: a single disturbance does not count."""
    lower, median, upper = statistics.quantiles(seconds, n=4, method="inclusive")
    return (upper - lower) / (2 * NormalDist().inv_cdf(0.75)) / median


def _links(bench: Bench) -> dict[str, float]:
    """Rate and latency of a ring of this node's ranks, and the arithmetic that it holds up.

    In the type in which gradients are sent: on a CPU, adding in 16 bits is slower.
    """
    process, world_size = bench.process, bench.process.world_size
    if world_size == 1:
        # Nothing is exchanged here; an estimate of one rank on each node needs no bus.
        return {
            "bus_gigabytes_per_second": 1.0,
            "bus_latency_microseconds": 0.0,
            "network_latency_microseconds": NETWORK_LATENCY_MICROSECONDS,
        }
    dtype = DTYPES[bench.config.sent_precision]
    large, small = (
        torch.ones(size, dtype=dtype, device=process.device) for size in (_LARGE, _SMALL)
    )

    def all_reduce(tensor: Tensor, times: int = 1) -> float:
        return bench.seconds(lambda: [distributed.all_reduce(tensor) for _ in range(times)])

    all_reduce(large)
    all_reduce(small)
    before = time.process_time()
    seconds = statistics.median(all_reduce(large) for _ in range(_REPEATS))
    used = (time.process_time() - before) / _REPEATS
    gigabytes = traffic.all_reduce_bytes(_LARGE, world_size, dtype.itemsize) / 1e9
    latency = 1e6 * all_reduce(small, _SMALL_REPEATS) / _SMALL_REPEATS / (2 * (world_size - 1))
    links = {
        "bus_gigabytes_per_second": gigabytes / seconds,
        "bus_latency_microseconds": latency,
    }
    if process.device.type == "cuda":
        return links | {"network_latency_microseconds": NETWORK_LATENCY_MICROSECONDS}
    return links | {
        "network_latency_microseconds": latency,
        "exchange_seconds_per_gigabyte": max(world.gather(used)) / process.num_cores / gigabytes,
    }


def _decoded(bench: Bench) -> float:
    """Images per second that a core makes ready, by the training's own loader."""
    with tempfile.TemporaryDirectory() as folder:
        if bench.config.data.root is None:
            for number in range(_NUM_IMAGES):
                save_photo(Path(folder, "images", f"{number:03d}.jpg"), _WIDTH, _HEIGHT, number)
        manifest = open_images(bench.config.data.root or folder)
        with TimedImages(manifest, bench.config, bench.split, bench.process) as images:
            images.drain()
            count = max(4, 2 * _NUM_IMAGES // bench.split.micro)
            seconds = bench.seconds(lambda: images.take(count))
    return count * bench.split.micro / seconds / bench.process.num_cores


def _checkpoint_rate(folder: Path) -> float:
    """Bytes per second of a checkpoint: hashed, written and flushed."""
    tensors = {"weight": torch.zeros(_CHECKPOINT_ELEMENTS)}
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        started_at = time.perf_counter()
        checkpoint.save(Path(temporary), checkpoint.Checkpoint(1, tensors, tensors, {}), keep=2)
        seconds = time.perf_counter() - started_at
    return 2 * WEIGHT_BYTES * _CHECKPOINT_ELEMENTS / seconds


def _memory_bytes(process: world.Process) -> int:
    if process.device.type == "cuda":
        return memory_of(process.device)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // process.world_size


def _name(device: torch.device) -> str:
    """The GPU's or the processor's own."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
