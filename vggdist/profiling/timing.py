"""Timing that a drifting machine does not bias: what is compared takes turns, and pairs count."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch

from vggdist.config import Config
from vggdist.distributed import process as world
from vggdist.errors import ConfigError
from vggdist.terminal import StatusLine, duration

T = TypeVar("T")

_LEARNING_RATE = 1e-6


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


class Clock:
    """Times what all ranks do at the same time.

    Attributes:
        process: this rank.
    """

    def __init__(self, process: world.Process) -> None:
        self.process = process

    def seconds(self, work: Callable[[], object]) -> float:
        """Of the slowest rank."""
        return max(self.of_ranks(work))

    def of_ranks(self, work: Callable[[], object]) -> list[float]:
        """Seconds of each rank."""
        self._finish()
        world.all_agree(True, self.process.device)
        started_at = time.perf_counter()
        work()
        self._finish()
        return world.gather(time.perf_counter() - started_at)

    def _finish(self) -> None:
        if self.process.device.type == "cuda":
            torch.cuda.synchronize(self.process.device)


def with_small_steps(config: Config) -> Config:
    """With a learning rate that keeps the weights where they are.

    From the first infinite gradient on, updates would be left out, and steps be faster.
    """
    optimizer = config.optimizer.model_copy(update={"learning_rate": _LEARNING_RATE})
    return config.model_copy(update={"optimizer": optimizer})
