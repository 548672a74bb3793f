"""A signal is only a flag: the handler notes it, the loop asks all ranks at the end of a step."""

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Self, TypeVar

from vggdist.errors import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)

T = TypeVar("T")


class StopSignal:
    """While entered, SIGTERM, SIGINT (Ctrl-C) and SIGUSR2 set `requested`, and the first is told.

    A second SIGINT acts as usual, for a person who does not want to wait for the checkpoint. Those
    that were blocked until then, by whoever started this process, come as soon as it is entered.

    Args:
        speaks: whether this rank tells that a signal was seen; one of them is enough.

    Attributes:
        requested: whether any of them has come.
        interrupted: whether SIGINT has.
        terminated: whether SIGTERM has.
    """

    def __init__(self, speaks: bool = True) -> None:
        self.requested = self.interrupted = self.terminated = False
        self._speaks = speaks
        self._ends_at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, action: Callable[[], T]) -> T:
        """Does what a signal may end at once: nothing is lost by it, and no other rank takes part.

        Raises:
            StoppedError: a signal has come, before or meanwhile.
        """
        self._ends_at_once = True
        try:
            self._end()
            return action()
        finally:
            self._ends_at_once = False

    def _end(self) -> None:
        if self.requested and self._ends_at_once:
            self._ends_at_once = False
            raise StoppedError("stopped before a step was taken; the same command starts again.")

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
        self.terminated |= number == signal.SIGTERM
        if not self.requested:
            self.requested = True
            self._tell(number)
        self._end()

    def _tell(self, number: int) -> None:
        """Says so at once: whoever sent the signal may have to wait for a long step."""
        if not self._speaks:
            return
        line = (
            f"{time.strftime('%H:%M:%S')} {signal.Signals(number).name} was seen: stopping, once "
        )
        line += "what is done is saved."
        if number == signal.SIGINT:
            line += " Ctrl-C again does not wait."
        if sys.stderr.isatty():
            line = f"\r\x1b[K{line}"  # in place of the live line
        # Not through `sys.stderr`, in the middle of whose `write` this may come.
        with suppress(OSError):
            os.write(2, f"{line}\n".encode())
