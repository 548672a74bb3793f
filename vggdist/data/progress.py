"""How far a long pass over many things is: one renewed line on a terminal, rare lines in a log."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

_SECONDS_LIVE = 0.2  # a terminal shows no more than a person reads
_SECONDS_LOGGED = 30.0


class Progress:
    """Things done, their rate, and the time that is left.

    Args:
        total: how many there are, as far as is known.
        done: how many were done before this start; they do not count for the rate.
        stream: where the line goes.
        unit: what they are.
        is_usual: whether a pass is always told of; else one that was soon over is not.
    """

    def __init__(
        self,
        total: int,
        done: int = 0,
        stream: TextIO | None = None,
        unit: str = "images",
        is_usual: bool = True,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._total, self._unit, self._is_told = total, unit, is_usual
        self._before = self._done = done
        self._started_at = self._shown_at = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """After `count` more; shows them if the last line is old enough."""
        self._done += count
        now = time.monotonic()
        if now - self._shown_at > (_SECONDS_LIVE if self._live else _SECONDS_LOGGED):
            self._shown_at, self._is_told = now, True
            self._show(now)

    def close(self) -> None:
        """Shows where it ended, and leaves the cursor on a new line."""
        if not self._is_told:
            return
        self._show(time.monotonic())
        if self._live:
            self._stream.write("\n")
            self._stream.flush()

    def _show(self, now: float) -> None:
        rate = (self._done - self._before) / max(now - self._started_at, 1e-9)
        line = f"{self._done:,} of {self._total:,} {self._unit}, {rate:,.0f} {self._unit}/s"
        left = self._total - self._done
        if left > 0 and rate > 0:
            line += f", {duration(left / rate)} left"
        if self._live:
            # A line that wraps could not be renewed.
            self._stream.write(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}")
        else:
            self._stream.write(line + "\n")
        self._stream.flush()


def duration(seconds: float) -> str:
    """`93.4` -> `0:01:33`, with days where there are any."""
    whole = round(seconds)
    days, rest = divmod(whole, 86400)
    clock = f"{rest // 3600}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days}d {clock}" if days else clock
