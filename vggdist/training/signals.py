"""A signal only sets a flag, which the loop shares with all ranks at the end of a step.

Python's handlers run between two calls into a library, and a backward pass is one call, which may
take a minute on a CPU. So a thread reports a signal: the kernel's handler wakes it at once.
"""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, ParamSpec, Self, TypeVar

from vggdist.errors import EXIT_INTERRUPTED, StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)

P = ParamSpec("P")
T = TypeVar("T")

NOTHING_SAVED = "stopped before there was anything to save; the same command starts again."
STARTING = "stopping as soon as possible"
SAVING = "saving after this step"
REPEATING = "stopping after these images; the evaluation is repeated later"
_PATIENCE_SECONDS = 2.0
"""For the main thread to leave a library and end the process itself after a second SIGINT."""
_END = 0  # no signal's number


class StopSignal:
    """Within `with`, SIGTERM, SIGINT (Ctrl-C), SIGUSR2 and SIGHUP (a closed terminal, a lost
    connection) set `requested`; the first is reported at once. Under nohup, SIGHUP stays ignored.

    A second SIGINT acts as usual, for a user who does not want to wait for the checkpoint, and two
    seconds later the process ends, wherever it is. Signals blocked by the parent process are
    delivered on entry.

    Args:
        speaks: whether this rank reports signals; one rank is enough.

    Attributes:
        requested: whether any signal was received.
        interrupted: whether SIGINT was.
        terminated: whether SIGTERM was.
        answer: what follows from a signal now, as it is reported.
    """

    def __init__(self, speaks: bool = True) -> None:
        self.requested = self.interrupted = self.terminated = False
        self.answer = STARTING
        self._given = ""
        self._speaks = speaks
        self._ends_at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._woken, self._wakes = os.pipe()
        os.set_blocking(self._wakes, False)
        self._reporting = threading.Thread(target=self._report_all, name="signals", daemon=True)
        self._reporting.start()
        self._woken_before = signal.set_wakeup_fd(self._wakes, warn_on_full_buffer=False)
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
        signal.set_wakeup_fd(self._woken_before)
        os.write(self._wakes, bytes([_END]))
        self._reporting.join()
        os.close(self._woken)
        os.close(self._wakes)

    @contextmanager
    def answering(self, answer: str) -> Iterator[None]:
        """While this is what follows from a signal."""
        before, self.answer = self.answer, answer
        try:
            yield
        finally:
            self.answer = before

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
            # Before what it ends takes back the answer.
            self.requested, self._given = True, self.answer
        self._end()

    def _report_all(self) -> None:
        """Reports the first signal; ends the process some time after a second SIGINT."""
        num_signals, num_interrupts, patience = 0, 0, None
        while select.select([self._woken], [], [], patience)[0]:
            number = os.read(self._woken, 1)[0]
            if number == _END:
                return
            if number not in SIGNALS:
                continue
            num_signals += 1
            if num_signals == 1 and self._speaks:
                self._report(number)
            num_interrupts += number == signal.SIGINT
            if num_interrupts > 1:
                patience = _PATIENCE_SECONDS
        os._exit(EXIT_INTERRUPTED)

    def _report(self, number: int) -> None:
        answer = self._given or self.answer
        line = f"{time.strftime('%H:%M:%S')} {signal.Signals(number).name} received: {answer}."
        if number == signal.SIGINT:
            line += " Ctrl-C again ends at once"
            line += ", losing it." if answer == SAVING else "."
        if sys.stderr.isatty():
            line = f"\r\x1b[K{line}"  # replaces the live line
        # Not `sys.stderr`: the main thread may be in the middle of its `write`.
        with suppress(OSError):
            os.write(2, f"{line}\n".encode())
