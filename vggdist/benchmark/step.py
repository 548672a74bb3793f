"""What training costs beyond a bare PyTorch loop: the same network, precision, format and batch.

Both loops run in one process on one rank, on synthetic images, in turn, so that a machine whose
speed drifts slows both alike; the ratio is taken pair by pair.
"""

import statistics
import sys
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggdist.config import Config, split_batch
from vggdist.data.batch import Batch
from vggdist.distributed import process as world
from vggdist.errors import ConfigError
from vggdist.model.initialization import build_initialized
from vggdist.training.agreement import Agreement, Verdict
from vggdist.training.engine import DTYPES, Engine, check_precision
from vggdist.training.step import Meter, train_step


def measure_step(config: Config, rounds: int) -> dict[str, Any]:
    """Times steps of both loops in turn.

    Args:
        config: model, batch, precision; the batch is one rank's.
        rounds: pairs of steps, after one warm-up of each.

    Returns:
        `bare_seconds`, `vggdist_seconds` (medians per step), `ratio` (median of the pairs),
        `ratio_fastest` (fastest step by fastest step: what is left where other work on the
        machine disturbed the rest), `images_per_second` (of vggdist), and what was measured.
    """
    if rounds < 1:
        raise ConfigError(f"--rounds is {rounds}; at least one pair is needed.")
    process = world.start(config.device)
    try:
        check_precision(config.precision, process.device)
        split = split_batch(config.batch, 1)
        batch = _synthetic_batch(config, split.micro, process.device)
        bare = _BareLoop(
            build_initialized(config.model, config.data.crop_size, config.seed),
            config,
            process.device,
        )
        ours = _OurLoop(config, process)
        loops = [(bare.step, ours.step), (ours.step, bare.step)]
        times: dict[Any, list[float]] = {bare.step: [], ours.step: []}
        for number in range(-1, rounds):
            # Who goes first alternates, so that neither always finds the warmer cache.
            for step in loops[number % 2]:
                seconds = _time(step, batch, split.accumulation_steps, process.device)
                if number >= 0:
                    times[step].append(seconds)
            sys.stderr.write(f"\rround {max(0, number + 1)} of {rounds}")
            sys.stderr.flush()
        sys.stderr.write("\r\x1b[K" if sys.stderr.isatty() else "\n")
    finally:
        world.stop()
    bare_times, our_times = times[bare.step], times[ours.step]
    ratios = [one / other for one, other in zip(our_times, bare_times, strict=True)]
    return {
        "configuration": config.model.configuration,
        "crop_size": config.data.crop_size,
        "precision": config.precision,
        "micro_batch": split.micro,
        "accumulation_steps": split.accumulation_steps,
        "device": str(process.device),
        "rounds": rounds,
        "bare_seconds": statistics.median(bare_times),
        "vggdist_seconds": statistics.median(our_times),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "ratio_fastest": min(our_times) / min(bare_times),
        "images_per_second": split.per_rank / statistics.median(our_times),
    }


def render_step(result: dict[str, Any]) -> str:
    """The table of `measure_step`."""
    images = result["micro_batch"] * result["accumulation_steps"]
    rows = [
        f"configuration {result['configuration']}, {result['crop_size']} px, "
        f"{result['precision']}, micro batch {result['micro_batch']} x "
        f"{result['accumulation_steps']}, {result['device']}, "
        f"{result['rounds']} interleaved rounds",
        f"{'loop':<24}{'seconds/step':>14}{'images/s':>12}",
    ]
    for name, key in (("bare PyTorch", "bare_seconds"), ("vggdist", "vggdist_seconds")):
        rows.append(f"{name:<24}{result[key]:>14.4f}{images / result[key]:>12.2f}")
    rows.append(
        f"vggdist / bare: {result['ratio']:.4f} (pairs {result['ratio_min']:.4f} to "
        f"{result['ratio_max']:.4f}); fastest by fastest: {result['ratio_fastest']:.4f}"
    )
    return "\n".join(rows)


class _BareLoop:
    """What a person would write by hand: SGD, autocast, channels_last."""

    def __init__(self, network: nn.Module, config: Config, device: torch.device) -> None:
        self._network = network.to(device).to(memory_format=torch.channels_last)
        settings = config.optimizer
        self._optimizer = torch.optim.SGD(
            self._network.parameters(),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self._dtype = DTYPES[config.precision]
        self._scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")

    def step(self, batch: Batch, accumulation_steps: int) -> None:
        for _ in range(accumulation_steps):
            mixed = self._dtype != torch.float32
            with torch.autocast(batch.images.device.type, dtype=self._dtype, enabled=mixed):
                logits: Tensor = self._network(batch.images)
            loss = F.cross_entropy(logits.float(), batch.labels) / accumulation_steps
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()


class _OurLoop:
    """The steps of `training/loop.py`."""

    def __init__(self, config: Config, process: world.Process) -> None:
        self._engine = Engine(
            build_initialized(config.model, config.data.crop_size, config.seed),
            config,
            split_batch(config.batch, 1),
            process,
        )
        self._agreement = Agreement(self._engine)
        self._meter = Meter(process.device)
        self._verdict: Verdict | None = None

    def step(self, batch: Batch, accumulation_steps: int) -> None:
        self._agreement.begin()
        train_step(self._engine, [batch] * accumulation_steps, self._meter)
        previous, self._verdict = (
            self._verdict,
            Verdict(self._agreement.end(self._engine, False), 0),
        )
        if previous is not None:
            previous.read()


def _synthetic_batch(config: Config, micro: int, device: torch.device) -> Batch:
    """Noise of the loader's type, range and memory format."""
    generator = torch.Generator().manual_seed(config.seed)
    crop = config.data.crop_size
    pixels = torch.randint(256, (micro, crop, crop, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(config.model.num_classes, (micro,), generator=generator)
    keys = torch.randint(-(2**63), 2**63 - 1, (micro,), generator=generator)
    return Batch(
        pixels.to(device).permute(0, 3, 1, 2),
        torch.tensor([config.data.mean] * micro).to(device),
        labels.to(device),
        keys.to(device),
        labels.numpy(),
        DTYPES[config.precision],
    )


def _time(step: Any, batch: Batch, accumulation_steps: int, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started_at = time.perf_counter()
    step(batch, accumulation_steps)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started_at
