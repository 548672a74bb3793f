"""What a training step costs beside a bare PyTorch loop, and what bounds the training.

The bare loop has the same network, precision, format and batch. All loops run in one process of
each rank, in turn, so that a machine whose speed drifts slows all alike; the ratio is taken pair by
pair. What the figures say about the training is told by `benchmark/bound.py`.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch

from vggdist.artifacts.paths import quote
from vggdist.config import BatchSplit, Config, split_batch
from vggdist.data.batch import Batch
from vggdist.data.manifest import Manifest
from vggdist.distributed import process as world
from vggdist.distributed.precision import resolve_precision
from vggdist.errors import ConfigError
from vggdist.model.initialization import build_initialized
from vggdist.profiling.bound import Setting, Timings, describe, render_bound
from vggdist.profiling.images import TimedImages, open_training_images
from vggdist.profiling.loops import BareLoop, OurLoop, synthetic_batch
from vggdist.terminal import StatusLine

# Weights must not run away: from the first infinite gradient on, updates would be left out.
_LEARNING_RATE = 1e-6
# Seconds that the slower one of loader and step is timed in a round; short steps are repeated.
_WINDOW_SECONDS = 0.5
_LONGEST_WINDOW = 100  # steps
_STEPS_BEFORE_TOGETHER = 2

Times = dict[str, list[float]]


def measure_step(config: Config, rounds: int) -> dict[str, Any] | None:
    """Times the bare loop, our step and, if `data.root` is set, the loader and both at once.

    Collective: every rank that a launcher started takes part, and the slowest rank's time counts.

    Args:
        config: as of a training; its learning rate is not used.
        rounds: in each, everything is timed in turn, after one round of warming up.

    Returns:
        On the main rank, else none: `bare_seconds`, `tuned_seconds`, `vggdist_seconds` (medians per
        step; the bare loop exchanges nothing, and the tuned one is the bare one with
        `cudnn.benchmark`, on a GPU only), `ratio` (median of the pairs of vggdist and bare),
        `ratio_fastest` (fastest step by fastest step: what is left where other work on the machine
        disturbed the rest),
        `images_per_second` (of vggdist, all ranks), what was measured, and the entries of
        `bound.describe`: `loader_`, `step_`, `together_` and `no_exchange_images_per_second` (all
        ranks; none where not measured), `data_wait` (share of the time in which the network waits
        for images), `bound` (input, compute or exchange) and `advice`.

    Raises:
        VggdistError: the configuration cannot be run here, or the images cannot be read.
    """
    if rounds < 1:
        raise ConfigError(f"--rounds is {rounds}; at least one round is needed.")
    with ExitStack() as stack:
        process = stack.enter_context(world.joined(config.device))
        config, why = resolve_precision(config, process)
        status = StatusLine(speaks=process.is_main)
        status.note(why)
        split = split_batch(config.batch, process.world_size)
        manifest = _open_images(config)
        images = None
        if manifest is not None:
            images = stack.enter_context(TimedImages(manifest, config, split, process))
        loops = _Loops(config, split, process, images)
        times: Times = defaultdict(list)
        status.show("warming up")
        loops.warm_up()
        for number in range(rounds):
            status.show(f"round {number + 1} of {rounds}")
            for name, value in loops.round(number):
                times[name].append(value)
        status.clear()
    if not process.is_main:
        return None
    resized = manifest is not None and bool(manifest.resized)
    return _result(times, Setting(config, split, process, resized), rounds)


def _open_images(config: Config) -> Manifest | None:
    if config.data.root is None:
        return None
    manifest = open_training_images(config)
    if len(manifest.classes) > config.model.num_classes:
        raise ConfigError(
            f"model.num_classes is {config.model.num_classes}, but {quote(config.data.root)} has "
            f"{len(manifest.classes)} classes; set model.num_classes={len(manifest.classes)}."
        )
    return manifest


def _result(times: Times, setting: Setting, rounds: int) -> dict[str, Any]:
    config, split = setting.config, setting.split
    median = {name: statistics.median(values) for name, values in times.items()}
    ratios = [one / other for one, other in zip(times["vggdist"], times["bare"], strict=True)]
    timings = Timings(
        step=median["vggdist"],
        loader=median.get("loader"),
        together=median.get("together"),
        no_exchange=median.get("no_exchange"),
        data_wait=median.get("data_wait"),
    )
    return {
        "configuration": config.model.configuration,
        "crop_size": config.data.crop_size,
        "precision": config.resolved_precision,
        "micro_batch": split.micro,
        "accumulation_steps": split.accumulation_steps,
        "device": str(setting.process.device),
        "rounds": rounds,
        "bare_seconds": median["bare"],
        "tuned_seconds": median.get("tuned"),
        "vggdist_seconds": median["vggdist"],
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "ratio_fastest": min(times["vggdist"]) / min(times["bare"]),
        "images_per_second": split.global_batch / median["vggdist"],
        **describe(timings, setting),
    }


def render_step(result: dict[str, Any]) -> str:
    """The tables of `measure_step`, and its advice as the last line."""
    images = result["micro_batch"] * result["accumulation_steps"]
    bare = "bare PyTorch" if result["world_size"] == 1 else "bare, no exchange"
    rows = [
        f"configuration {result['configuration']}, {result['crop_size']} px, "
        f"{result['precision']}, micro batch {result['micro_batch']} x "
        f"{result['accumulation_steps']}, {result['device']}, "
        f"{result['rounds']} interleaved rounds",
        f"{'loop':<26}{'seconds/step':>14}{'images/s/rank':>15}",
    ]
    loops = {bare: "bare_seconds", "with cudnn.benchmark": "tuned_seconds"}
    for name, key in {**loops, "vggdist": "vggdist_seconds"}.items():
        if result[key] is None:
            continue
        rows.append(f"{name:<26}{result[key]:>14.4f}{images / result[key]:>15.2f}")
    rows.append(
        f"vggdist / bare: {result['ratio']:.4f} (pairs {result['ratio_min']:.4f} to "
        f"{result['ratio_max']:.4f}); fastest by fastest: {result['ratio_fastest']:.4f}"
    )
    return "\n".join([*rows, "", *render_bound(result)])


class _Loops:
    """Everything that is timed on one rank."""

    def __init__(
        self, config: Config, split: BatchSplit, process: world.Process, images: TimedImages | None
    ) -> None:
        optimizer = config.optimizer.model_copy(update={"learning_rate": _LEARNING_RATE})
        config = config.model_copy(update={"optimizer": optimizer})
        self._num_micro, self._process, self._images = split.accumulation_steps, process, images
        network = build_initialized(config.model, config.data.crop_size, config.seed)
        self._bare = BareLoop(network, config, process.device)
        self._ours = OurLoop(config, split, process)
        self._synthetic = [synthetic_batch(config, split.micro, process.device)] * self._num_micro
        self._window, self._settle_seconds = 1, 0.0

    def warm_up(self) -> None:
        """A round or two, from which the length of the next ones follows."""
        for _ in range(2):
            seconds = dict(self.round(0))
            slowest = max(seconds["vggdist"], seconds.get("loader", 0.0))
            if slowest > _WINDOW_SECONDS:
                break
        self._window = min(_LONGEST_WINDOW, math.ceil(_WINDOW_SECONDS / slowest))
        if self._images is not None:
            # While the loader fills its queues, it would slow down whatever is timed beside it.
            self._settle_seconds = self._images.num_queued * seconds["loader"] / self._num_micro

    def round(self, number: int) -> Iterator[tuple[str, float]]:
        """Names and seconds of a step, those of the slowest rank."""
        time.sleep(self._settle_seconds)
        loops = [("bare", self._bare.step), ("vggdist", self._ours.step)]
        if self._process.device.type == "cuda":
            loops.append(("tuned", self._bare.tuned_step))
        # Who goes first alternates, so that none always finds the warmer cache.
        for name, step in loops if number % 2 else loops[::-1]:
            yield name, self._on_synthetic(step)
        if self._ours.can_keep_gradients:
            with self._ours.gradients_kept():
                seconds = self._on_synthetic(self._ours.step)
            yield "no_exchange", seconds
        if self._images is not None:
            self._images.drain()
            started_at = self._clock()
            self._images.take(self._window * self._num_micro)
            yield "loader", self._since(started_at) / self._window
            yield from self._together(self._images)

    def _on_synthetic(self, step: Callable[[list[Batch]], None]) -> float:
        started_at = self._clock()
        for _ in range(self._window):
            step(self._synthetic)
        return self._since(started_at) / self._window

    def _together(self, images: TimedImages) -> Iterator[tuple[str, float]]:
        # The loader's queues are empty: only what it makes while the network works comes in now.
        for _ in range(_STEPS_BEFORE_TOGETHER):
            self._ours.step(itertools.islice(images, self._num_micro))
        started_at, images.wait_seconds = self._clock(), 0.0
        for _ in range(self._window):
            self._ours.step(itertools.islice(images, self._num_micro))
        seconds = self._since(started_at)
        yield "together", seconds / self._window
        yield "data_wait", min(1.0, max(world.gather(images.wait_seconds)) / seconds)

    def _clock(self) -> float:
        """Now, on all ranks."""
        self._finish()
        world.all_agree(True, self._process.device)
        return time.perf_counter()

    def _since(self, started_at: float) -> float:
        self._finish()
        return max(world.gather(time.perf_counter() - started_at))

    def _finish(self) -> None:
        if self._process.device.type == "cuda":
            torch.cuda.synchronize(self._process.device)
