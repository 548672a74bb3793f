"""What people see of long work: one line that renews itself on a terminal, rare lines in a log."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import RenderableType

training_progress = logging.getLogger("vggdist.training_progress")
"""Has a line for each log step; a terminal, which shows the live line, leaves them out."""

_SECONDS_LIVE = 0.2  # a terminal shows no more than a person reads
_SECONDS_LOGGED = 30.0
_WIDEST = 500  # characters of a table


class StatusLine:
    """A line that takes the place of the one before; where that is impossible, a line each.

    Args:
        stream: where it goes; none: stderr.
        speaks: false on the ranks that leave speaking to the main one.
    """

    def __init__(self, stream: TextIO | None = None, speaks: bool = True) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._speaks = speaks
        self.is_live = self._stream.isatty()

    def show(self, text: str) -> None:
        """Shows `text` in place of what was shown before."""
        if self.is_live:
            # A line that wraps could not be renewed.
            self._write(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}")
        else:
            self._write(text + "\n")

    def note(self, text: str) -> None:
        """Shows `text` in a line that stays."""
        self.clear()
        self._write(text + "\n")

    def clear(self) -> None:
        """Before other lines are written."""
        if self.is_live:
            self._write("\r\x1b[K")

    def keep(self) -> None:
        """Leaves what is shown where it is."""
        if self.is_live:
            self._write("\n")

    def _write(self, text: str) -> None:
        if self._speaks:
            try:
                self._stream.write(text)
                self._stream.flush()
            except OSError:  # the terminal has been closed; the work behind the line goes on
                self._speaks = False


class Progress:
    """Things done, their rate, and the time that is left.

    Args:
        total: how many there are, as far as is known.
        done: how many were done before this start; they do not count for the rate.
        stream: where the line goes; none: stderr.
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
        self._line = StatusLine(stream)
        self._total, self._unit, self._is_told = total, unit, is_usual
        self._before = self._done = done
        self._started_at = self._shown_at = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """After `count` more; shows them if the last line is old enough."""
        self._done += count
        now = time.monotonic()
        if now - self._shown_at > (_SECONDS_LIVE if self._line.is_live else _SECONDS_LOGGED):
            self._shown_at, self._is_told = now, True
            self._show(now)

    def close(self) -> None:
        """Shows where it ended, and leaves the cursor on a new line."""
        if self._is_told:
            self._show(time.monotonic())
            self._line.keep()

    def _show(self, now: float) -> None:
        rate = (self._done - self._before) / max(now - self._started_at, 1e-9)
        line = f"{self._done:,} of {self._total:,} {self._unit}, {rate:,.0f} {self._unit}/s"
        left = self._total - self._done
        if left > 0 and rate > 0:
            line += f", {duration(left / rate)} left"
        self._line.show(line)


class TrainingProgress:
    """Where the training of the main rank is: the live line, and a line of the log at log steps.

    Args:
        total_steps: of the whole training.
        stream: where the live line goes, if it is a terminal; none: stderr.
    """

    def __init__(self, total_steps: int, stream: TextIO | None = None) -> None:
        self._line = StatusLine(stream)
        self._total = total_steps
        self._text = ""
        self._shown_at = 0.0

    def log(self, step: int, epoch: float, values: dict[str, float], seconds_left: float) -> None:
        """At a log step: a plain line, and the numbers that the live line shows from now on."""
        used = ""
        if "model_flop_utilization" in values:
            used = f" ({100 * values['model_flop_utilization']:.0f} % of the peak)"
        # What matters most comes first: a narrow terminal cuts the end.
        self._text = (
            f"left {duration(seconds_left)}  loss {values['loss']:.4f}  "
            f"top-1 error {100 * values['top1_error']:.1f} %  "
            f"{values.get('images_per_second', 0.0):.1f} images/s{used}  "
            f"data wait {100 * values.get('data_wait', 0.0):.0f} %  epoch {epoch:.2f}"
        )
        training_progress.info("step %d/%d  %s", step, self._total, self._text)
        self._show(step)

    def tick(self, step: int) -> None:
        """After every step: renews the live line, at most five times a second."""
        if time.monotonic() - self._shown_at > _SECONDS_LIVE:
            self._show(step)

    def clear(self) -> None:
        """Before other lines are written."""
        self._line.clear()

    def _show(self, step: int) -> None:
        if self._line.is_live:
            self._shown_at = time.monotonic()
            self._line.show(f"step {step}/{self._total}  {self._text}")


def render(*parts: RenderableType, width: int, fits: bool = True) -> str:
    """What rich draws, as text; in colours where stdout is a terminal.

    Args:
        width: characters of a line.
        fits: on a terminal lines are as wide as that instead.
    """
    from rich.console import Console  # here, since a command's help must not wait for it

    console = Console(markup=False, emoji=False, highlight=False)
    if not (fits and console.is_terminal):
        console.width = width
    with console.capture() as captured:
        console.print(*parts, sep="\n")
    # Not padded to the width of a log file.
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def render_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows below their head, in aligned columns: the first to the left, the others to the right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="none")
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # As wide as need be: what is cut off cannot be read in a file.
    return render(table, width=_WIDEST, fits=False)


def watch(current: Callable[[], str], seconds: float) -> None:
    """Shows a text until Ctrl-C, renewed in its place; without a terminal, one below the other.

    Args:
        current: the text as it is now.
        seconds: between two renewals.
    """
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            text = Text(current(), no_wrap=True, overflow="ellipsis")
            if console.is_terminal:
                live.update(text, refresh=True)
            else:
                console.print(text)
            time.sleep(seconds)


def plural(number: int, noun: str, ending: str = "s") -> str:
    """`1 rank`, `2 ranks`; `ending` makes the plural."""
    return f"{number:,} {noun}{'' if number == 1 else ending}"


def duration(seconds: float) -> str:
    """`93.4` -> `0:01:33`, with days where there are any."""
    whole = round(seconds)
    days, rest = divmod(whole, 86400)
    clock = f"{rest // 3600}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days}d {clock}" if days else clock
