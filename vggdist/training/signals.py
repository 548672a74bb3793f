"""A signal only sets a flag, which the loop shares with all ranks at the end of a step."""

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, ParamSpec, Self, TypeVar

from vggdist.errors import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)

P = ParamSpec("P")
T = TypeVar("T")

NOTHING_SAVED = "stopped before a step was taken; the same command starts again."


class StopSignal:
    """Within `with`, SIGTERM, SIGINT (Ctrl-C), SIGUSR2 and SIGHUP (a closed terminal, a lost
    connection) set `requested`; the first is reported. Under nohup, SIGHUP stays ignored.

    A second SIGINT acts as usual, for a user who does not want to wait for the checkpoint. Signals
    blocked by the parent process are delivered on entry.

    Args:
        speaks: whether this rank reports signals; one rank is enough.

    Attributes:
        requested: whether any signal was received.
        interrupted: whether SIGINT was.
        terminated: whether SIGTERM was.
    """

    def __init__(self, speaks: bool = True) -> None:
        self.requested = self.interrupted = self.terminated = False
        self._speaks = speaks
        self._ends_at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        under_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        self._before = {
            number: signal.signal(number, self._note)
            for number in SIGNALS
            if number != signal.SIGHUP or not under_nohup
        }
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs an action that a signal may end at once, since it loses no work and is not
        collective.

        Raises:
            StoppedError: a signal was received, before or meanwhile.
        """
        self._ends_at_once = True
        try:
            self._end()
            return action(*args, **kwargs)
        finally:
            self._ends_at_once = False

    def _end(self) -> None:
        if self.requested and self._ends_at_once:
            self._ends_at_once = False
            raise StoppedError(NOTHING_SAVED)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
        self.terminated |= number == signal.SIGTERM
        if not self.requested:
            self.requested = True
            self._report(number)
        self._end()

    def _report(self, number: int) -> None:
        """Reports the signal at once: the current step may take long."""
        if not self._speaks:
            return
        line = (
            f"{time.strftime('%H:%M:%S')} {signal.Signals(number).name} received: stopping after "
        )
        line += "the work so far is saved."
        if number == signal.SIGINT:
            line += " Ctrl-C again does not wait."
        if sys.stderr.isatty():
            line = f"\r\x1b[K{line}"  # replaces the live line
        # Not `sys.stderr`: the signal may arrive in the middle of its `write`.
        with suppress(OSError):
            os.write(2, f"{line}\n".encode())
