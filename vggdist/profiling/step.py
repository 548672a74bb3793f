"""What a training step costs compared with a bare PyTorch loop, and what bounds the training.

The bare loop has the same network, precision, format and batch. All loops run in one process of
each rank, in turn, so that a machine whose speed drifts slows all alike; the ratio is taken pair by
pair. What the figures say about the training is told by `bound.py`.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

from vggdist.artifacts.paths import quote
from vggdist.config import BatchSplit, Config, split_batch
from vggdist.data.manifest import Manifest
from vggdist.distributed import process as world
from vggdist.distributed.precision import resolve_precision
from vggdist.errors import ConfigError
from vggdist.model.initialization import build_initialized
from vggdist.profiling.bound import Setting, Timings, describe, render_bound
from vggdist.profiling.images import TimedImages, open_training_images
from vggdist.profiling.loops import BareLoop, OurLoop, synthetic_batch
from vggdist.profiling.timing import Clock, ratios, require_rounds, with_small_steps
from vggdist.terminal import StatusLine, render_table

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
    require_rounds(rounds)
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
    pairs = ratios(times["vggdist"], times["bare"])
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
        "ratio": statistics.median(pairs),
        "ratio_min": min(pairs),
        "ratio_max": max(pairs),
        "ratio_fastest": min(times["vggdist"]) / min(times["bare"]),
        "images_per_second": split.global_batch / median["vggdist"],
        **describe(timings, setting),
    }


def render_step(result: dict[str, Any]) -> str:
    """The tables of `measure_step`, and its advice as the last line."""
    images = result["micro_batch"] * result["accumulation_steps"]
    bare = "bare PyTorch" if result["world_size"] == 1 else "bare, no exchange"
    loops = {bare: "bare_seconds", "with cudnn.benchmark": "tuned_seconds"}
    rows = [
        (name, f"{result[key]:.4f}", f"{images / result[key]:.2f}")
        for name, key in {**loops, "vggdist": "vggdist_seconds"}.items()
        if result[key] is not None
    ]
    return "\n".join(
        [
            f"configuration {result['configuration']}, {result['crop_size']} px, "
            f"{result['precision']}, micro batch {result['micro_batch']} x "
            f"{result['accumulation_steps']}, {result['device']}, "
            f"{result['rounds']} interleaved rounds",
            render_table(("loop", "seconds/step", "images/s/rank"), rows),
            f"vggdist / bare: {result['ratio']:.4f} (pairs {result['ratio_min']:.4f} to "
            f"{result['ratio_max']:.4f}); fastest by fastest: {result['ratio_fastest']:.4f}",
            "",
            *render_bound(result),
        ]
    )


class _Loops:
    """Everything that is timed on one rank."""

    def __init__(
        self, config: Config, split: BatchSplit, process: world.Process, images: TimedImages | None
    ) -> None:
        config = with_small_steps(config)
        self._num_micro, self._process, self._images = split.accumulation_steps, process, images
        network = build_initialized(config.model, config.data.crop_size, config.seed)
        self._bare = BareLoop(network, config, process.device)
        self._ours = OurLoop(config, split, process)
        self._synthetic = [synthetic_batch(config, split.micro, process.device)] * self._num_micro
        self._clock, self._window, self._settle_seconds = Clock(process), 1, 0.0

    def warm_up(self) -> None:
        """A round or two, from which the length of the next ones follows."""
        for _ in range(2):
            seconds = dict(self.round(0))
            slowest = max(seconds["vggdist"], seconds.get("loader", 0.0))
            if slowest > _WINDOW_SECONDS:
                break
        self._window = min(_LONGEST_WINDOW, math.ceil(_WINDOW_SECONDS / slowest))
        if self._images is not None:
            # While the loader fills its queues, it would slow down whatever is timed with it.
            self._settle_seconds = self._images.num_queued * seconds["loader"] / self._num_micro

    def round(self, number: int) -> Iterator[tuple[str, float]]:
        """Names and seconds of a step, those of the slowest rank."""
        time.sleep(self._settle_seconds)
        loops = [("bare", self._bare.step), ("vggdist", self._ours.step)]
        if self._process.device.type == "cuda":
            loops.append(("tuned", self._bare.tuned_step))
        # Which goes first alternates, so that none always finds the warmer cache.
        for name, step in loops if number % 2 else loops[::-1]:
            yield name, self._seconds(partial(step, self._synthetic))
        if self._ours.can_keep_gradients:
            with self._ours.gradients_kept():
                seconds = self._seconds(lambda: self._ours.step(self._synthetic))
            yield "no_exchange", seconds
        if self._images is not None:
            images = self._images
            images.drain()
            yield "loader", self._seconds(lambda: images.take(self._num_micro))
            # The loader's queues are empty: only what it makes while the network works comes now.
            for _ in range(_STEPS_BEFORE_TOGETHER):
                self._step_on(images)
            images.wait_seconds = 0.0
            seconds = self._seconds(lambda: self._step_on(images))
            yield "together", seconds
            waited = max(world.gather(images.wait_seconds)) / self._window
            yield "data_wait", min(1.0, waited / seconds)

    def _step_on(self, images: TimedImages) -> None:
        self._ours.step(itertools.islice(images, self._num_micro))

    def _seconds(self, step: Callable[[], object]) -> float:
        """Of one of the steps of a window."""

        def window() -> None:
            for _ in range(self._window):
                step()

        return self._clock.seconds(window) / self._window
