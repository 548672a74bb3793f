"""A signal is only a flag: the handler notes it, the loop asks all ranks at the end of a step."""

import signal
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class StopSignal:
    """While entered, SIGTERM, SIGINT (Ctrl-C) and SIGUSR2 set `requested` and nothing else.

    A second SIGINT acts as usual, for a person who does not want to wait for the checkpoint.

    Attributes:
        requested: whether any of them has come.
        interrupted: whether SIGINT has.
        terminated: whether SIGTERM has.
    """

    def __init__(self) -> None:
        self.requested = self.interrupted = self.terminated = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
        self.terminated |= number == signal.SIGTERM
        self.requested = True
