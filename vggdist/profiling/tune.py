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
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from vggdist.artifacts.paths import quote
from vggdist.config import Config, split_batch
from vggdist.distributed import process as world
from vggdist.distributed.precision import resolve_precision
from vggdist.errors import ConfigError
from vggdist.profiling.images import TimedImages, open_training_images
from vggdist.profiling.outputs import require_own_file
from vggdist.profiling.timing import ratios, require_rounds, take_turns
from vggdist.terminal import StatusLine, render_table

CLEAR_GAIN = 1.03
"""Ratio of images/s, the median over rounds, from which a change is kept."""
HEADER = "# vggdist tune data"
"""How a file of settings begins."""

_WINDOW_SECONDS = 1.0
_FEWEST_BATCHES = 4
_SHARES = (0.0, 0.35, 0.65, 0.9, 1.0)

Settings = dict[str, int | float]
"""Key of section `data` -> value."""


@dataclass(frozen=True)
class Trial:
    """What was tried against the best settings before it."""

    settings: Settings
    images_per_second: float
    """All ranks, median of all its measurements."""
    ratio: float | None
    """To the best before, median of the pairs; none for the settings that came first."""
    taken: bool


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
    process = world.start(config.device)
    try:
        config, _ = resolve_precision(config, process)
        bench = _Bench(config, process, rounds)
        best, trials = bench.search()
        machine = _machine(process)
    finally:
        world.stop()
    if not process.is_main:
        return None
    return {
        "settings": best.settings,
        "images_per_second": best.images_per_second,
        "tried": [asdict(trial) for trial in trials],
        "machine": machine,
        "world_size": process.world_size,
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


class _Bench:
    """Measures settings; does the same on all ranks."""

    def __init__(self, config: Config, process: world.Process, rounds: int) -> None:
        self.split = split_batch(config.batch, process.world_size)
        self._config, self._process, self._rounds = config, process, rounds
        self._manifest = open_training_images(config)
        self._status, self._step = StatusLine(speaks=process.is_main), 0
        self._measured: defaultdict[str, list[float]] = defaultdict(list)

    def search(self) -> tuple[Trial, list[Trial]]:
        """The best settings, and everything that was tried."""
        values = ladders(self._config, self._process)
        start: Settings = {name: ladder[0] for name, ladder in values.items()}
        take_turns(
            {"start": lambda: self._measure(start)}, self._rounds, self._status, _title(start)
        )
        best = Trial(start, self._median(start), None, True)
        trials = [best]
        # The second pass is for settings that were tried before a later one changed.
        for name, ladder in [*values.items(), *values.items()]:
            for value in ladder:
                settings = best.settings | {name: value}
                if all(settings != trial.settings for trial in trials):
                    trials.append(self._compare(settings, best))
                    best = trials[-1] if trials[-1].taken else best
        self._status.clear()
        # The best of a time were measured again beside every later candidate.
        final = {
            str(t.settings): replace(t, images_per_second=self._median(t.settings)) for t in trials
        }
        return final[str(best.settings)], list(final.values())

    def _compare(self, settings: Settings, best: Trial) -> Trial:
        pairs = self._ratios(settings, best)
        taken = wins(pairs)
        if taken:  # one lucky win in so many trials is to be expected, two in a row are not
            again = self._ratios(settings, best)
            taken = wins(again)
            pairs += again
        return Trial(settings, self._median(settings), statistics.median(pairs), taken)

    def _ratios(self, settings: Settings, best: Trial) -> list[float]:
        """A candidate's images per second over the best's, pair by pair."""
        ways = {
            "new": lambda: self._measure(settings),
            "best": lambda: self._measure(best.settings),
        }
        rates = take_turns(ways, self._rounds, self._status, _title(settings))
        return ratios(rates["new"], rates["best"])

    def _measure(self, settings: Settings) -> float:
        rate = self._rate(settings)
        self._measured[str(settings)].append(rate)
        return rate

    def _median(self, settings: Settings) -> float:
        return statistics.median(self._measured[str(settings)])

    def _rate(self, settings: Settings) -> float:
        """Images per second of all ranks, on images that were not loaded just before."""
        data = self._config.data.model_copy(update=settings)
        config = self._config.model_copy(update={"data": data})
        # Opened anew every time: a loader that pauses works on, and would slow down the other.
        with TimedImages(self._manifest, config, self.split, self._process, self._step) as images:
            images.drain()
            num_batches, seconds = 0, 0.0
            while num_batches < _FEWEST_BATCHES or seconds < _WINDOW_SECONDS:
                seconds += images.take(1)
                num_batches += 1
            begun = 2 * images.num_queued + num_batches
        ranks = world.gather((num_batches * self.split.micro / seconds, begun))
        self._step += math.ceil(max(begun for _, begun in ranks) / self.split.accumulation_steps)
        return min(rate for rate, _ in ranks) * self._process.world_size


def _title(settings: Settings) -> str:
    return " ".join(f"data.{name}={value}" for name, value in settings.items()) + "  "


def _ranks(result: dict[str, Any]) -> str:
    return "1 rank" if result["world_size"] == 1 else f"{result['world_size']} ranks"


def _machine(process: world.Process) -> str:
    gpu = process.device.type == "cuda"
    device = torch.cuda.get_device_name(process.device) if gpu else "no GPU"
    return f"{platform.node()}, {process.num_cores} cores per rank, {device}"
