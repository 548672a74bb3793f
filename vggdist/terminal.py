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
"""Has a line for each log step. The log file takes all of them, a terminal none, since it shows the
live line, and what stands in for a terminal only those above DEBUG."""

_SECONDS_LIVE = 0.2  # a terminal shows no more than a person reads
_SECONDS_LOGGED = 30.0
_SECONDS_TOLD = 1.0  # a rate over less than that says nothing
_WIDEST = 500  # characters of a table


_CLEAR = "\r\x1b[K"


def fresh_line(stream: TextIO) -> str:
    """What to write before a line that stays: it takes the place of a live line on a terminal."""
    return _CLEAR if stream.isatty() else ""


class StatusLine:
    """A line that takes the place of the one before; where that is impossible, a line every half
    minute.

    Args:
        stream: where it goes; none: stderr.
        speaks: false on the ranks that leave speaking to the main one.
    """

    def __init__(self, stream: TextIO | None = None, speaks: bool = True) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._speaks = speaks
        self.is_live = self._stream.isatty()
        self._seconds = _SECONDS_LIVE if self.is_live else _SECONDS_LOGGED
        self._shown_at = time.monotonic()
        self._left_out = ""

    @property
    def is_due(self) -> bool:
        """Whether what was shown last is old enough to be renewed."""
        return time.monotonic() - self._shown_at > self._seconds

    def show(self, text: str) -> None:
        """Shows `text` in place of what was shown before."""
        if self.is_live:
            # A line that wraps could not be renewed.
            self._write(f"{_CLEAR}{text[: shutil.get_terminal_size().columns - 1]}")
        elif self.is_due:
            self._write(text + "\n")
        else:
            self._left_out = text
            return
        self._shown_at, self._left_out = time.monotonic(), ""

    def note(self, text: str) -> None:
        """Shows `text` in a line that stays."""
        self.clear()
        self._write(text + "\n")

    def clear(self) -> None:
        """Before other lines are written."""
        self._left_out = ""
        if self.is_live:
            self._write(_CLEAR)

    def keep(self) -> None:
        """Leaves what is shown where it is."""
        if self.is_live:
            self._write("\n")
        elif self._left_out:
            self._write(self._left_out + "\n")

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
        self._started_at = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """After `count` more; shows them if the last line is old enough."""
        self._done += count
        if self._line.is_due:
            self._is_told = True
            self._show()

    def close(self) -> None:
        """Shows where it ended, and leaves the cursor on a new line."""
        if self._is_told:
            self._show()
            self._line.keep()

    def _show(self) -> None:
        line = f"{self._done:,} of {self._total:,} {self._unit}"
        seconds = time.monotonic() - self._started_at
        rate = (self._done - self._before) / max(seconds, 1e-9)
        if seconds >= _SECONDS_TOLD:
            line += f", {rate:,.0f} {self._unit}/s"
        left = self._total - self._done
        if left > 0 and rate > 0:
            line += f", {duration(left / rate)} left"
        self._line.show(line)


class TrainingProgress:
    """Where a training is: the live line of a terminal, and lines of the log at log steps.

    Args:
        total_steps: of the whole training.
        stream: where the live line goes, if it is a terminal; none: stderr.
        speaks: false on the ranks that leave speaking to the main one.
    """

    def __init__(self, total_steps: int, stream: TextIO | None = None, speaks: bool = True) -> None:
        self._line = StatusLine(stream, speaks)
        self._total = total_steps
        self._told_at = 0.0

    @property
    def is_due(self) -> bool:
        """Whether the live line is old enough to be renewed; there is none in a log."""
        return self._line.is_live and self._line.is_due

    def show(self, step: int, epoch: float, values: dict[str, float], seconds_left: float) -> None:
        """Renews the live line: the finished steps, and the latest numbers."""
        if self._line.is_live:
            self._line.show(self._text(step, epoch, values, seconds_left))

    def log(self, step: int, epoch: float, values: dict[str, float], seconds_left: float) -> None:
        """At a log step: a line of the log, and the live line with the numbers of all ranks."""
        now = time.monotonic()
        is_told = step in (1, self._total) or now - self._told_at > _SECONDS_LOGGED
        if is_told:
            self._told_at = now
        text = self._text(step, epoch, values, seconds_left)
        training_progress.log(logging.INFO if is_told else logging.DEBUG, "%s", text)
        self.show(step, epoch, values, seconds_left)

    def _text(self, step: int, epoch: float, values: dict[str, float], seconds_left: float) -> str:
        used = ""
        if "model_flop_utilization" in values:
            used = f" ({100 * values['model_flop_utilization']:.0f} % of the peak)"
        # What matters most comes first: a narrow terminal cuts the end.
        return (
            f"step {step}/{self._total}  left {duration(seconds_left)}  "
            f"loss {values['loss']:.4f}  top-1 error {100 * values['top1_error']:.1f} %  "
            f"{values.get('images_per_second', 0.0):.1f} images/s{used}  "
            f"data wait {100 * values.get('data_wait', 0.0):.0f} %  epoch {epoch:.2f}"
        )


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


def counted(number: int, noun: str, nouns: str = "") -> str:
    """`1, "rank"` -> `1 rank`, `2, "rank"` -> `2 ranks`; `nouns`: a plural that is not noun + s."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def duration(seconds: float) -> str:
    """`93.4` -> `0:01:33`, with days where there are any."""
    whole = round(seconds)
    days, rest = divmod(whole, 86400)
    clock = f"{rest // 3600}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days}d {clock}" if days else clock
