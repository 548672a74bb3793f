"""What a training waits for: images, arithmetic or the exchange of gradients; and what to change.

Judges measurements and makes none: `step.py` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from vggdist.config import BatchSplit
from vggdist.distributed.precision import is_native
from vggdist.profiling.timing import Bench
from vggdist.terminal import counted, render_table

Bound = Literal["input", "compute", "exchange"]

MEASURED = {
    "loader": "loader alone",
    "step": "step on synthetic images",
    "no_exchange": "step without exchange",
    "together": "both together",
}
"""Seconds among `Timings` -> what people are shown."""
LARGEST_WAIT = 0.2
"""Data wait above which a training is input-bound even if the loader alone is faster than a step:
the two get into each other's way."""
_WORTH_SAYING = 0.1
_LARGE_EXCHANGE = 0.25


@dataclass(frozen=True)
class Timings:
    """Seconds that one step's images or work take on the slowest rank; none: not measured."""

    step: float
    """On synthetic images, exchange included."""
    loader: float | None = None
    """Images of a step from the loader alone."""
    together: float | None = None
    """A step on the loader's images."""
    no_exchange: float | None = None
    """On synthetic images; every rank keeps its gradients."""
    data_wait: float | None = None
    """Share of `together` in which the network waits for images."""
    resized: bool = False
    """Whether the images were made smaller when they were prepared."""

    @property
    def exchange(self) -> float:
        """Seconds by which the exchange makes a step longer; what is hidden does not count."""
        return 0.0 if self.no_exchange is None else max(0.0, self.step - self.no_exchange)


def find_bound(timings: Timings) -> Bound:
    """What makes a step as long as it is.

    Input, if the loader alone needs longer for a step's images than the step does, or the network
    waits for more than `LARGEST_WAIT` of the time. Else the longer one of exchange (as far as it
    does not hide behind the backward pass) and arithmetic.
    """
    waits = timings.data_wait is not None and timings.data_wait > LARGEST_WAIT
    if waits or (timings.loader is not None and timings.loader > timings.step):
        return "input"
    return "exchange" if timings.exchange > timings.step / 2 else "compute"


def advise(timings: Timings, bench: Bench) -> str:
    """The bound in plain sentences: the figures that show it, and which setting to change."""
    bound = find_bound(timings)
    sentences = {"input": _input, "exchange": _exchange, "compute": _compute}
    text = f"This training is {bound}-bound: {sentences[bound](timings, bench)}"
    if timings.no_exchange is None and bench.split.world_size > 1:
        stage = bench.config.zero_stage
        whose = f"of zero_stage {stage} is DeepSpeed's" if stage else "is part of the CUDA graph"
        text += f" The exchange {whose} and cannot be left out, so it counts as compute."
    if timings.loader is None:
        text += " data.root is not set, so only compute and exchange were compared."
    return text


def describe(timings: Timings, bench: Bench) -> dict[str, Any]:
    """The entries of `measure_step` that answer what binds; rates are images/s of all ranks."""
    seconds = {name: getattr(timings, name) for name in MEASURED}
    return {
        "world_size": bench.split.world_size,
        **{
            f"{name}_images_per_second": None if own is None else bench.split.global_batch / own
            for name, own in seconds.items()
        },
        "data_wait": timings.data_wait,
        "bound": find_bound(timings),
        "advice": advise(timings, bench),
    }


def render_bound(result: dict[str, Any]) -> list[str]:
    """The rows of `describe`, and its advice as the last line."""
    world_size = result["world_size"]
    images = result["micro_batch"] * result["accumulation_steps"] * world_size
    rates = ((label, result[f"{name}_images_per_second"]) for name, label in MEASURED.items())
    rows = [
        (label, f"{images / rate:.4f}", f"{rate / world_size:.2f}", f"{rate:.2f}")
        for label, rate in rates
        if rate is not None
    ]
    head = ("", "seconds/step", "images/s/rank", "images/s, all ranks")
    lines = render_table(head, rows).splitlines()
    if result["data_wait"] is not None:
        lines.append(f"both together: data wait {100 * result['data_wait']:.1f} %")
    return [*lines, result["advice"]]


def _input(timings: Timings, bench: Bench) -> str:
    assert timings.loader is not None
    config, process = bench.config, bench.process
    text = (
        f"the loader makes {_rate(bench, timings.loader)} images/s, the step takes "
        f"{_rate(bench, timings.step)}"
    )
    if timings.data_wait is not None:
        text += (
            f", and together the network waits for images {_percent(timings.data_wait)} of the time"
        )
    remedies = []
    threads = config.data.num_threads or process.num_cores
    if threads < process.num_cores:
        remedies.append(f"raise data.num_threads (now {threads} of {process.num_cores} cores)")
    else:
        cores = "1 core decodes" if threads == 1 else f"{threads} threads decode on all cores"
        remedies.append(f"give each rank more cores ({cores} of this rank already)")
    if process.device.type == "cuda":
        share = config.data.hardware_decoder_share
        remedies.append(f"try another data.hardware_decoder_share (now {share:g})")
    if not timings.resized:
        side = config.data.train_scale_max
        remedies.append(
            f"make the images smaller once (vggdist prepare folder --shorter-side {side})"
        )
    advice = ", or ".join(remedies)
    return (
        f"{text}. {advice[0].upper()}{advice[1:]}; `vggdist tune data` finds the loader's fastest "
        "settings."
    )


def _exchange(timings: Timings, bench: Bench) -> str:
    assert timings.no_exchange is not None
    config, split = bench.config, bench.split
    cheaper = []
    if config.exchange != "auto":
        cheaper.append(f"exchange=auto (now {config.exchange})")
    if config.sent_precision == "fp32":
        cheaper.append(f"exchange_precision=bf16 (now {config.exchange_precision})")
    text = (
        f"{_percent(timings.exchange / timings.step)} of a step is the exchange of gradients "
        f"between {_ranks(split)}; with it the ranks take {_rate(bench, timings.step)} "
        f"images/s, without it {_rate(bench, timings.no_exchange)}. Raise batch.global (now "
        f"{split.global_batch}), so that there are more images to an exchange, or put the ranks "
        "on fewer nodes or a faster network"
    )
    return text + "".join(f", or set {change}" for change in cheaper) + "."


def _compute(timings: Timings, bench: Bench) -> str:
    config, split = bench.config, bench.split
    text = f"the step takes {_rate(bench, timings.step)} images/s"
    if timings.loader is not None:
        text += f", and the loader makes {_rate(bench, timings.loader)}"
        text += f" ({_number(timings.step / timings.loader)} times as many)"
        text += f"; {_input_cost(timings)}"
    text += "."
    if timings.no_exchange is not None:
        text += f" {_percent(timings.exchange / timings.step)} of a step is exchange."
    gpu = bench.process.device.type == "cuda"
    remedies = [f"more {'or faster GPUs' if gpu else 'ranks, or GPUs'} (now {_ranks(split)})"]
    precision = config.resolved_precision
    if precision in ("fp32", "tf32") and is_native("bf16", bench.process.device):
        remedies.append(f"precision=auto (now {precision})")
    if split.accumulation_steps > 1:
        remedies.append(
            f"a larger batch.micro, if memory allows (now {split.micro}, in "
            f"{split.accumulation_steps} accumulation steps)"
        )
    if timings.exchange > _LARGE_EXCHANGE * timings.step:
        remedies.append(f"a larger batch.global (now {split.global_batch}), for fewer exchanges")
    return f"{text} What would help: {'; '.join(remedies)}."


def _input_cost(timings: Timings) -> str:
    """What the images cost a training whose loader is fast enough."""
    assert timings.loader is not None
    if timings.together is None or timings.together < (1 + _WORTH_SAYING) * timings.step:
        return "there is nothing to gain in the input"
    longer = timings.together / timings.step - 1
    return (
        f"yet with both at work a step takes {_percent(longer)} longer, because they share the "
        "same cores, or the same GPU"
    )


def _rate(bench: Bench, seconds: float) -> str:
    """Seconds per step as images per second of all ranks, to be read."""
    return _number(bench.split.global_batch / seconds)


def _ranks(split: BatchSplit) -> str:
    return counted(split.world_size, "rank")


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
