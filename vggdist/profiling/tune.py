"""The loader's fastest settings on this machine, found by trying.

One setting after the other is changed, and a change is kept only if it wins clearly: a candidate
and the best so far take turns, so that a machine whose speed drifts slows both alike. Ties go to
what is cheaper. The loader is measured alone; whether it holds the training up is the question of
`step.py`.
"""

from __future__ import annotations

import math
import platform
import statistics
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vggdist.artifacts.paths import quote
from vggdist.config import Config
from vggdist.distributed import process as world
from vggdist.errors import ConfigError
from vggdist.profiling.images import TimedImages, open_training_images
from vggdist.profiling.outputs import require_own_file
from vggdist.profiling.timing import Bench, open_bench, ratios, require_rounds, take_turns
from vggdist.terminal import counted, render_table

CLEAR_GAIN = 1.03
"""Ratio of images/s, the median over rounds, from which a change is kept."""
HEADER = "# vggdist tune data"
"""How a file of settings begins."""

_WINDOW_SECONDS = 1.0
_FEWEST_BATCHES = 4
_SHARES = (0.0, 0.35, 0.65, 0.9, 1.0)

Settings = dict[str, int | float]
"""Key of section `data` -> value."""
Trial = dict[str, Any]
"""`settings`; `images_per_second` of all ranks, the median of all measurements; `ratio` to the best
before, the median of the pairs, none for what came first; `taken`, whether it was the best then."""


def tune_data(config: Config, rounds: int) -> dict[str, Any] | None:
    """Tries decoding threads, queue depths and, on a GPU, the hardware decoder's share.

    Collective: every rank that a launcher started loads its share at the same time, so that the
    ranks of a node compete as they will in training, and the slowest counts.

    Args:
        config: of the training; `data.root` holds its images.
        rounds: pairs of measurements of each candidate and the best so far.

    Returns:
        On the main rank, else none: `settings` (the best, key of section data -> value),
        `images_per_second` (of all ranks with them), `tried` (the trials in order), `machine`,
        `world_size`, `micro_batch`, `rounds`, `measured_at`.

    Raises:
        VggdistError: the configuration cannot be run here, or the images cannot be read.
    """
    require_rounds(rounds)
    with open_bench(config) as bench:
        best, tried = _Search(bench, rounds).run()
        machine = _machine(bench.process)
    if not bench.process.is_main:
        return None
    return {
        "settings": best["settings"],
        "images_per_second": best["images_per_second"],
        "tried": tried,
        "machine": machine,
        "world_size": bench.process.world_size,
        "micro_batch": bench.split.micro,
        "rounds": rounds,
        "measured_at": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def render_tuned(result: dict[str, Any]) -> str:
    """A table of everything that was tried, the chosen settings marked."""
    names = list(result["settings"])
    rows = []
    for trial in result["tried"]:
        chosen = trial["taken"] and trial["settings"] == result["settings"]
        values = (f"{trial['settings'][name]:g}" for name in names)
        ratio = "" if trial["ratio"] is None else f"{trial['ratio']:.3f} x"
        rate = f"{trial['images_per_second']:.0f}"
        rows.append(("*" if chosen else "", *values, rate, ratio))
    return "\n".join(
        [
            f"settings of section data; {_ranks(result)} on {result['machine']}",
            render_table(("", *names, "images/s", "to the best before"), rows),
            f"* chosen; a change is kept if it gains {100 * (CLEAR_GAIN - 1):.0f} % or more, "
            "twice.",
        ]
    )


def require_writable(out: Path) -> None:
    """Raises a ConfigError if `out` is anything but a new file or an earlier `write_tuned`'s."""
    require_own_file(out, lambda: out.read_bytes().startswith(HEADER.encode()), "vggdist tune data")


def write_tuned(result: dict[str, Any], out: Path) -> None:
    """Writes the best settings as lines that `@FILE` reads, below a comment on their origin."""
    lines = [
        f"{HEADER}: {result['images_per_second']:.0f} images/s, {_ranks(result)}, "
        f"micro batch {result['micro_batch']}",
        f"# {result['machine']}, {result['measured_at']}",
        *(f"data.{name}={value}" for name, value in result["settings"].items()),
    ]
    try:
        out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {quote(out)} cannot be written: {error}.") from error


def ladders(config: Config, process: world.Process) -> dict[str, list[int | float]]:
    """Key -> values to try, the one to begin with first.

    Threads go up from 1. Queues are only made deeper than configured: a consumer that does nothing
    but take batches cannot see the pauses that a short queue would not bridge.
    """
    threads = [2**k for k in range(process.num_cores.bit_length()) if 2**k < process.num_cores]
    values: dict[str, list[int | float]] = {"num_threads": [*threads, process.num_cores]}
    for name in ("prefetch", "read_ahead"):
        depth = getattr(config.data, name)
        values[name] = [depth, 2 * depth, 4 * depth]
    if process.device.type == "cuda":
        own = config.data.hardware_decoder_share
        values["hardware_decoder_share"] = [own, *(share for share in _SHARES if share != own)]
    return values


def wins(pairs: Sequence[float]) -> bool:
    """Whether a candidate is clearly faster, given its images/s over the best's, pair by pair.

    The median must be `CLEAR_GAIN` or more, and at most one pair in five may say the opposite, so
    that single slow measurements do not choose.
    """
    losses = sum(ratio <= 1 for ratio in pairs)
    return statistics.median(pairs) >= CLEAR_GAIN and losses <= len(pairs) // 5


class _Search:
    """Tries settings; does the same on all ranks."""

    def __init__(self, bench: Bench, rounds: int) -> None:
        self._bench, self._rounds, self._step = bench, rounds, 0
        self._manifest = open_training_images(bench.config)
        self._rates: defaultdict[str, list[float]] = defaultdict(list)

    def run(self) -> tuple[Trial, list[Trial]]:
        """The best trial, and all of them in order."""
        values = ladders(self._bench.config, self._bench.process)
        start: Settings = {name: ladder[0] for name, ladder in values.items()}
        self._turns(start, {"start": start})
        best: Trial = {"settings": start, "ratio": None, "taken": True}
        trials = [best]
        # The second pass is for settings that were tried before a later one changed.
        for name, ladder in [*values.items(), *values.items()]:
            for value in ladder:
                settings = best["settings"] | {name: value}
                if all(settings != trial["settings"] for trial in trials):
                    trials.append(self._compare(settings, best["settings"]))
                    best = trials[-1] if trials[-1]["taken"] else best
        # The best of a time were measured again with every later candidate.
        for trial in trials:
            trial["images_per_second"] = statistics.median(self._rates[str(trial["settings"])])
        return best, trials

    def _compare(self, settings: Settings, best: Settings) -> Trial:
        pairs = self._ratios(settings, best)
        if taken := wins(pairs):  # one lucky win in so many trials is to be expected, two are not
            again = self._ratios(settings, best)
            taken, pairs = wins(again), pairs + again
        return {"settings": settings, "ratio": statistics.median(pairs), "taken": taken}

    def _ratios(self, settings: Settings, best: Settings) -> list[float]:
        """A candidate's images per second over the best's, pair by pair."""
        rates = self._turns(settings, {"new": settings, "best": best})
        return ratios(rates["new"], rates["best"])

    def _turns(self, shown: Settings, ways: dict[str, Settings]) -> dict[str, list[float]]:
        """Images per second of settings in every round."""
        title = " ".join(f"data.{name}={value}" for name, value in shown.items()) + "  "
        measures = {name: partial(self._rate, settings) for name, settings in ways.items()}
        rates = take_turns(measures, self._rounds, self._bench.status, title)
        for name, settings in ways.items():
            self._rates[str(settings)] += rates[name]
        return rates

    def _rate(self, settings: Settings) -> float:
        """Images per second of all ranks, on images that were not loaded just before."""
        process, split = self._bench.process, self._bench.split
        data = self._bench.config.data.model_copy(update=settings)
        config = self._bench.config.model_copy(update={"data": data})
        # Opened anew every time: a loader that pauses works on, and would slow down the other.
        with TimedImages(self._manifest, config, split, process, self._step) as images:
            images.drain()
            num_batches, seconds = 0, 0.0
            while num_batches < _FEWEST_BATCHES or seconds < _WINDOW_SECONDS:
                seconds += images.take(1)
                num_batches += 1
            begun = 2 * images.num_queued + num_batches
        ranks = world.gather((num_batches * split.micro / seconds, begun))
        self._step += math.ceil(max(begun for _, begun in ranks) / split.accumulation_steps)
        return min(rate for rate, _ in ranks) * process.world_size


def _ranks(result: dict[str, Any]) -> str:
    return counted(result["world_size"], "rank")


def _machine(process: world.Process) -> str:
    gpu = process.device.type == "cuda"
    device = torch.cuda.get_device_name(process.device) if gpu else "no GPU"
    return f"{platform.node()}, {process.num_cores} cores per rank, {device}"
