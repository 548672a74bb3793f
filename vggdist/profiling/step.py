"""What a training step costs compared with PyTorch loops, and what bounds the training.

The bare loop has the same network, precision, format and batch; the tuned one also what makes
PyTorch fast, since a bare one lacks whatever we lack. All loops run in one process of each rank, in
turn, so that a machine whose speed drifts slows all alike; the ratio is taken pair by pair. What
the figures say about the training is told by `bound.py`.
"""

from __future__ import annotations

import copy
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from vggdist.config import Config, with_classes
from vggdist.data.batch import Batch
from vggdist.data.classes import contradict_setting
from vggdist.data.manifest import Manifest
from vggdist.distributed import process as world
from vggdist.distributed.peak import peak_teraflops
from vggdist.errors import ConfigError
from vggdist.model.configurations import configuration_name
from vggdist.model.initialization import build_initialized
from vggdist.profiling.bound import Timings, describe, render_bound
from vggdist.profiling.images import TimedImages, open_training_images
from vggdist.profiling.loops import BareLoop, MatrixProduct, OurLoop, TunedLoop, synthetic_batch
from vggdist.profiling.timing import (
    Bench,
    median_ratio,
    open_bench,
    ratios,
    require_rounds,
    take_turns,
)
from vggdist.terminal import render_table
from vggdist.training.utilization import training_flops

# Seconds that the slower one of loader and step is timed in a round; short steps are repeated.
_WINDOW_SECONDS = 0.5
_LONGEST_WINDOW = 100  # steps
_STEPS_BEFORE_TOGETHER = 2
_FASTER = 1.02
"""By which the tuned loop has to be faster before its settings are advised."""
_SETTINGS = {"torch.compile": "compile", "a CUDA graph": "cuda_graph"}
"""What the tuned loop has, and the key with which a training has it."""


def measure_step(config: Config, rounds: int) -> dict[str, Any] | None:
    """Times the bare loop, our step and, if `data.root` is set, the loader and both at once.

    Collective: every rank that a launcher started takes part, and the slowest rank's time counts.

    Args:
        config: as of a training; its learning rate is not used.
        rounds: in each, everything is timed in turn, after one round of warming up.

    Returns:
        On the main rank, else none: `bare_seconds`, `tuned_seconds`, `vggdist_seconds` (medians per
        step; the two loops exchange nothing, and the tuned one is none where there is nothing to
        tune), `tuned_settings` and `tuned_missing` (what the tuned loop has, and why it lacks
        more), `settings_left` (that give a training what the tuned loop has), `ratio` and
        `ratio_tuned` (median of the pairs of vggdist and each loop),
        `ratio_fastest` (fastest step by fastest step: what is left where other work on the machine
        disturbed the rest),
        `images_per_second` (of vggdist, all ranks), `model_flop_utilization` (of vggdist, a
        fraction of `peak_teraflops`, which `peak` explains), what was measured, and the entries of
        `bound.describe`: `loader_`, `step_`, `together_` and `no_exchange_images_per_second` (all
        ranks; none where not measured), `data_wait` (share of the time in which the network waits
        for images), `bound` (input, compute or exchange) and `advice`.

    Raises:
        VggdistError: the configuration cannot be run here, or the images cannot be read.
    """
    require_rounds(rounds)
    with open_bench(config) as opened:
        manifest, bench = _open_images(config), opened
        if manifest is not None:
            bench = replace(opened, config=with_classes(opened.config, len(manifest.classes)))
        with (
            nullcontext()
            if manifest is None
            else TimedImages(manifest, bench.config, bench.split, bench.process)
        ) as images:
            steps = _Steps(bench, images)
            bench.status.show("warming up")
            steps.warm_up()
            turns = take_turns(steps.ways, rounds, bench.status)
    if not bench.process.is_main:
        return None
    times = {name: [row[name] for row in rows] for rows in turns.values() for name in rows[0]}
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    pairs = ratios(times["vggdist"], times["bare"])
    config, split = bench.config, bench.split
    peak, teraflops = _peak(bench, steps.product, times.get("product", []))
    flops = training_flops(config)
    timings = Timings(
        step=median["vggdist"],
        loader=median.get("loader"),
        together=median.get("together"),
        no_exchange=median.get("no_exchange"),
        data_wait=median.get("data_wait"),
        resized=manifest is not None and bool(manifest.resized),
    )
    return {
        "configuration": config.model.configuration,
        "crop_size": config.data.crop_size,
        "precision": config.resolved_precision,
        "micro_batch": split.micro,
        "accumulation_steps": split.accumulation_steps,
        "device": str(bench.process.device),
        "rounds": rounds,
        "bare_seconds": median["bare"],
        "tuned_seconds": median.get("tuned"),
        "tuned_settings": steps.tuned.settings,
        "tuned_missing": steps.tuned.missing,
        "settings_left": [
            f"{key}=true"
            for name, key in _SETTINGS.items()
            if name in steps.tuned.settings and not getattr(config, key)
        ],
        "vggdist_seconds": median["vggdist"],
        "ratio": statistics.median(pairs),
        "ratio_min": min(pairs),
        "ratio_max": max(pairs),
        "ratio_fastest": min(times["vggdist"]) / min(times["bare"]),
        "ratio_tuned": (
            median_ratio(times["vggdist"], times["tuned"]) if steps.tuned.settings else None
        ),
        "images_per_second": split.global_batch / median["vggdist"],
        "model_flop_utilization": split.per_rank * flops / median["vggdist"] / teraflops / 1e12,
        "peak_teraflops": teraflops,
        "peak": peak,
        **describe(timings, bench),
    }


def render_step(result: dict[str, Any]) -> str:
    """The tables of `measure_step`, and its advice as the last line."""
    images = result["micro_batch"] * result["accumulation_steps"]
    bare = "bare PyTorch" if result["world_size"] == 1 else "bare, no exchange"
    tuned = "tuned: " + ", ".join(result["tuned_settings"])
    loops = {bare: "bare_seconds", tuned: "tuned_seconds", "vggdist": "vggdist_seconds"}
    at_peak = result["model_flop_utilization"] * result["vggdist_seconds"]
    rows = [
        (
            name,
            f"{result[key]:.4f}",
            f"{images / result[key]:.2f}",
            f"{100 * at_peak / result[key]:.1f} %",
        )
        for name, key in loops.items()
        if result[key] is not None
    ]
    ratio = (
        f"vggdist / bare: {result['ratio']:.4f} (pairs {result['ratio_min']:.4f} to "
        f"{result['ratio_max']:.4f}); fastest by fastest: {result['ratio_fastest']:.4f}"
    )
    if result["ratio_tuned"] is not None:
        ratio += f"; vggdist / tuned: {result['ratio_tuned']:.4f}"
    return "\n".join(
        [
            f"configuration {configuration_name(result['configuration'])}, "
            f"{result['crop_size']} px, {result['precision']}, micro batch "
            f"{result['micro_batch']} x {result['accumulation_steps']}, {result['device']}, "
            f"{result['rounds']} interleaved rounds",
            render_table(("loop", "seconds/step", "images/s/rank", "of the peak"), rows),
            ratio,
            f"the peak is that of {result['peak']}: {result['peak_teraflops']:.3g} TFLOPS a rank",
            *result["tuned_missing"],
            *_advise(result),
            "",
            *render_bound(result),
        ]
    )


def _advise(result: dict[str, Any]) -> Iterator[str]:
    settings = " ".join(result["settings_left"])
    if settings and (result["ratio_tuned"] or 0.0) > _FASTER:
        yield f"The tuned loop is faster; {settings} gives this training what makes it so."


def _open_images(config: Config) -> Manifest | None:
    if config.data.root is None:
        return None
    manifest = open_training_images(config)
    given = config.model.num_classes
    if given is not None and len(manifest.classes) > given:
        raise ConfigError(contradict_setting(given, manifest, config.data.root))
    return manifest


def _peak(bench: Bench, product: MatrixProduct, seconds: list[float]) -> tuple[str, float]:
    """What stands for the peak of a rank's device, and its TFLOPS."""
    precision = bench.config.resolved_precision
    if not seconds:
        name = torch.cuda.get_device_name(bench.process.device)
        known = peak_teraflops(name, precision)
        assert known is not None
        return f"{name} in {precision}", known
    size = f"{product.side} x {product.side}"
    return f"a product of {size} matrices in {precision} here", product.flops / min(seconds) / 1e12


class _Steps:
    """Everything that is timed on one rank.

    Attributes:
        ways: what takes turns; each tells names and seconds of a step.
        tuned: the tuned loop; one of the ways, if anything could be tuned.
        product: one of the ways, where the peak of the device is not published.
    """

    def __init__(self, bench: Bench, images: TimedImages | None) -> None:
        config, split, device = bench.config, bench.split, bench.process.device
        network = build_initialized(config.model, config.data.crop_size, config.seed)
        bare = BareLoop(network, config, device)
        self.tuned = TunedLoop(copy.deepcopy(network), config, device)
        self.product = MatrixProduct(config, device)
        self._ours = OurLoop(config, split, bench.process)
        self._bench, self._num_micro = bench, split.accumulation_steps
        self._synthetic = [synthetic_batch(config, split.micro, device)] * self._num_micro
        self.ways: dict[str, Callable[[], dict[str, float]]] = {
            "bare": lambda: {"bare": self._seconds(bare.step)},
            "vggdist": lambda: {"vggdist": self._seconds(self._ours.step)},
        }
        bench.status.show("compiling the tuned loop, a minute or more")
        self.tuned.step(self._synthetic)
        if self.tuned.settings:
            self.ways["tuned"] = lambda: {"tuned": self._seconds(self.tuned.step)}
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        if peak_teraflops(name, config.resolved_precision) is None:
            self.ways["product"] = lambda: {"product": bench.seconds(self.product.run)}
        if self._ours.can_keep_gradients:
            self.ways["no_exchange"] = self._without_exchange
        if images is not None:
            self.ways["images"] = partial(self._with_images, images)
        self._window = 1

    def warm_up(self) -> None:
        """A round or two, from which the length of the next ones follows."""
        for _ in range(2):
            seconds = {name: own for way in self.ways.values() for name, own in way().items()}
            slowest = max(seconds["vggdist"], seconds.get("loader", 0.0))
            if slowest > _WINDOW_SECONDS:
                break
        self._window = min(_LONGEST_WINDOW, math.ceil(_WINDOW_SECONDS / slowest))

    def _without_exchange(self) -> dict[str, float]:
        with self._ours.gradients_kept():
            return {"no_exchange": self._seconds(self._ours.step)}

    def _with_images(self, images: TimedImages) -> dict[str, float]:
        """The loader alone, and with the network; and the share of a step that waits for it."""

        def step(_: object) -> None:
            self._ours.step(itertools.islice(images, self._num_micro))

        images.drain()
        loader = self._seconds(lambda _: images.take(self._num_micro))
        # The loader's queues are empty: only what it makes while the network works comes now.
        for _ in range(_STEPS_BEFORE_TOGETHER):
            step(None)
        images.wait_seconds = 0.0
        together = self._seconds(step)
        waited = max(world.gather(images.wait_seconds)) / self._window
        # While the loader fills its queues, it would slow down whatever is timed next.
        time.sleep(images.num_queued * loader / self._num_micro)
        return {"loader": loader, "together": together, "data_wait": min(1.0, waited / together)}

    def _seconds(self, step: Callable[[list[Batch]], object]) -> float:
        """Of one of the steps of a window."""

        def window() -> None:
            for _ in range(self._window):
                step(self._synthetic)

        return self._bench.seconds(window) / self._window
