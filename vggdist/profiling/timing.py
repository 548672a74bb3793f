"""Timing that a drifting machine does not bias: what is compared takes turns, and pairs count.

All benchmarks use it. Each is a module with a function that measures and returns what goes into
JSON, and one that renders it as text.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from vggdist.config import BatchSplit, Config, split_batch
from vggdist.distributed import process as world
from vggdist.distributed.precision import resolve_precision
from vggdist.errors import ConfigError
from vggdist.terminal import StatusLine, duration
from vggdist.training.micro_batch import resolve_micro

T = TypeVar("T")

_LEARNING_RATE = 1e-6


@dataclass(frozen=True)
class Bench:
    """One rank of a benchmark: all ranks do the same at the same time.

    Attributes:
        config: what is measured, with the precision resolved, and on GPUs the micro batch.
        process: this rank.
        status: speaks on the main rank.
    """

    config: Config
    process: world.Process
    status: StatusLine

    @property
    def split(self) -> BatchSplit:
        """Images of a rank's step."""
        return split_batch(self.config.batch, self.process.world_size)

    def seconds(self, work: Callable[[], object]) -> float:
        """Of the slowest rank."""
        return max(self.seconds_of_ranks(work))

    def seconds_of_ranks(self, work: Callable[[], object]) -> list[float]:
        self._finish()
        world.all_agree(True, self.process.device)
        started_at = time.perf_counter()
        work()
        self._finish()
        return world.gather(time.perf_counter() - started_at)

    def _finish(self) -> None:
        if self.process.device.type == "cuda":
            torch.cuda.synchronize(self.process.device)


@contextmanager
def open_bench(config: Config) -> Iterator[Bench]:
    """Joins the world, and chooses the precision.

    The learning rate is one that keeps the weights where they are: from the first infinite gradient
    on, updates would be left out, and steps be faster.
    """
    optimizer = config.optimizer.model_copy(update={"learning_rate": _LEARNING_RATE})
    with world.joined(config.device) as process:
        config, why = resolve_precision(config.model_copy(update={"optimizer": optimizer}), process)
        config, _ = resolve_micro(config, process)
        bench = Bench(config, process, StatusLine(speaks=process.is_main))
        bench.status.note(why)
        yield bench


def require_rounds(rounds: int) -> None:
    """Raises a ConfigError if there are none."""
    if rounds < 1:
        raise ConfigError(f"--rounds is {rounds}; at least one round is needed.")


def take_turns(
    ways: Mapping[str, Callable[[], T]], rounds: int, status: StatusLine, title: str = ""
) -> dict[str, list[T]]:
    """What each way's function returned in each round.

    Every second round goes backwards, so that no way always finds the warmer cache.
    """
    found: dict[str, list[T]] = {name: [] for name in ways}
    began_at, done, total = time.monotonic(), 0, rounds * len(ways)
    for number in range(1, rounds + 1):
        for name, way in list(ways.items())[:: 1 if number % 2 else -1]:
            text = f"{title}round {number} of {rounds}: {name}"
            if done:
                text += f", {duration((time.monotonic() - began_at) / done * (total - done))} left"
            status.show(text)
            found[name].append(way())
            done += 1
    status.clear()
    return found


def ratios(numerators: Iterable[float], denominators: Iterable[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def median_ratio(numerators: Iterable[float], denominators: Iterable[float]) -> float:
    return statistics.median(ratios(numerators, denominators))
