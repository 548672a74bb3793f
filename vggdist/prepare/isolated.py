"""A function called on many things in processes that may crash, hang or eat memory without harm.

Whatever kills a process is found and named; the others' results are not lost. Results come in the
order of the things, however many processes there are.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context, resource_tracker
from typing import Any, Generic, TypeVar

from pebble import ProcessExpired, ProcessPool

from vggdist.errors import DataError

Thing = TypeVar("Thing")
Result = TypeVar("Result")

MEMORY_GIGABYTES = 6
"""Most that a process may take: enough for the largest image that Pillow does not call a bomb."""

_CHUNK = 32  # things of a task: an image takes 4 ms, handing over a task 1 ms
_AHEAD = 4  # tasks per process that wait, so that no process does
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Casualty:
    """In place of the result of a thing that ended its process."""

    reason: str


class Isolated(Generic[Thing, Result]):
    """Processes that call a function; use it in `with`, which ends them.

    Args:
        function: what to call; importable by name, as are its arguments and results.
        num_processes: how many.
        timeout_seconds: longest time for one thing.
        prepare: called once in each process.
    """

    def __init__(
        self,
        function: Callable[[Thing], Result],
        num_processes: int,
        timeout_seconds: float,
        prepare: Callable[[], None],
    ) -> None:
        self._function = function
        self._timeout = timeout_seconds
        self._ahead = _AHEAD * num_processes
        self._pool = ProcessPool(
            num_processes,
            initializer=_prepare,
            initargs=[os.getpid(), prepare],
            context=get_context("spawn"),  # a fork would inherit the caller's threads and locks
        )

    def __enter__(self) -> Isolated[Thing, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()

    def map(self, things: Iterable[Thing]) -> Iterator[Result | Casualty]:
        """The result for each thing, in order.

        Raises:
            DataError: the processes do not even start.
        """
        remaining = iter(things)
        waiting: deque[tuple[list[Thing], Future[list[Result]]]] = deque()
        while True:
            while len(waiting) < self._ahead and (chunk := list(islice(remaining, _CHUNK))):
                waiting.append((chunk, self._start(chunk)))
            if not waiting:
                return
            yield from self._results(*waiting.popleft())

    def _start(self, chunk: list[Thing]) -> Future[list[Result]]:
        arguments = [self._function, chunk]
        with _interrupts_held_back():
            return self._pool.schedule(_call_each, args=arguments, timeout=self._timeout)

    def _results(
        self, chunk: list[Thing], future: Future[list[Result]]
    ) -> Iterator[Result | Casualty]:
        try:
            yield from future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "The processes that decode images end before they begin; what they said stands "
                "above. Install what is missing, or give the machine more memory."
            ) from error
        except (ProcessExpired, TimeoutError) as error:
            if len(chunk) == 1:
                yield Casualty(self._cause(error))
                return
            alone = [(thing, self._start([thing])) for thing in chunk]
            for thing, its_future in alone:
                yield from self._results([thing], its_future)

    def _cause(self, error: ProcessExpired | TimeoutError) -> str:
        if isinstance(error, TimeoutError):
            return f"decoding took longer than {self._timeout:g} seconds"
        if (exitcode := error.exitcode) is not None and exitcode < 0:
            return f"the decoder crashed (signal {-exitcode})"
        return f"the decoder ended its process (exit code {exitcode})"


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Whatever thread or process is started here never sees Ctrl-C; this process ends them."""
    resource_tracker.ensure_running()  # as it starts, it lets signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _call_each(function: Callable[[Thing], Result], chunk: list[Thing]) -> list[Result]:
    return [function(thing) for thing in chunk]


def _prepare(parent: int, prepare: Callable[[], Any]) -> None:
    """Sets the limits of a process: its memory, and that it dies with its parent."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call above
        os._exit(1)
    _, largest = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = MEMORY_GIGABYTES << 30
    soft = wanted if largest == resource.RLIM_INFINITY else min(wanted, largest)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, largest))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is expected, not worth a dump
    prepare()
