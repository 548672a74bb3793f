"""How far a measurement is: on the main rank, one renewed line on a terminal, or lines in a log."""

from __future__ import annotations

import shutil
import sys

from vggdist.distributed.process import Process


class StatusLine:
    """A line on stderr that takes the place of the one before.

    Args:
        process: only the main rank speaks; none: there is one process.
    """

    def __init__(self, process: Process | None = None) -> None:
        self._speaks = process is None or process.is_main
        self._live = sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Shows `text` in place of what was shown before."""
        if self._live:
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
        if self._live:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        if self._speaks:
            sys.stderr.write(text)
            sys.stderr.flush()
