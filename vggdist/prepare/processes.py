"""Examines images in processes that may crash, hang or run out of memory without harm.

Whatever ends a process is found and named; the results of the others are not lost. Results come in
the order of the images, however many processes there are.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context, resource_tracker

from pebble import ProcessExpired, ProcessPool

from vggdist.data.examine import prepare_process
from vggdist.data.manifest import Place
from vggdist.data.pillow import Examined
from vggdist.errors import DataError

Examine = Callable[[Place], Examined]

MEMORY_GIGABYTES = 6
"""Most that a process may take: enough for the largest image that Pillow does not call a bomb."""

_CHUNK = 32  # images of a task: an image takes 4 ms, handing over a task 1 ms
_AHEAD = 4  # tasks per process that wait, so that no process does
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def examine_all(
    examine: Examine, places: Iterable[Place], num_processes: int, longest_seconds: float
) -> Generator[Examined, None, None]:
    """What is found out about each image, in order; closing the generator ends the processes.

    Args:
        examine: what is done to an image; importable by name.
        places: where the images are.
        num_processes: how many.
        longest_seconds: an image that takes longer is given up.

    Raises:
        DataError: the processes do not even start.
    """
    pool = ProcessPool(
        num_processes,
        initializer=_limit,
        initargs=[os.getpid()],
        context=get_context("spawn"),  # a fork would inherit the caller's threads and locks
    )

    def start(chunk: list[Place]) -> Future[list[Examined]]:
        with _interrupts_held_back():
            return pool.schedule(_call_each, args=[examine, chunk], timeout=longest_seconds)

    def results(chunk: list[Place], future: Future[list[Examined]]) -> Iterator[Examined]:
        try:
            yield from future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "The processes that decode images end before they begin; what they said stands "
                "above. Install what is missing, or give the machine more memory."
            ) from error
        except (ProcessExpired, TimeoutError) as error:
            if len(chunk) == 1:
                yield Examined(_cause(error, longest_seconds))
                return
            alone = [([place], start([place])) for place in chunk]
            for task in alone:
                yield from results(*task)

    remaining = iter(places)
    waiting: deque[tuple[list[Place], Future[list[Examined]]]] = deque()
    try:
        while True:
            while len(waiting) < _AHEAD * num_processes and (
                chunk := list(islice(remaining, _CHUNK))
            ):
                waiting.append((chunk, start(chunk)))
            if not waiting:
                return
            yield from results(*waiting.popleft())
    finally:
        pool.stop()  # type: ignore[no-untyped-call]
        pool.join()


def _cause(error: ProcessExpired | TimeoutError, longest_seconds: float) -> str:
    if isinstance(error, TimeoutError):
        return f"decoding took longer than {longest_seconds:g} seconds"
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


def _call_each(examine: Examine, chunk: list[Place]) -> list[Examined]:
    return [examine(place) for place in chunk]


def _limit(parent: int) -> None:
    """Makes a process one that examines: its memory is limited, and it dies with its parent."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call above
        os._exit(1)
    _, largest = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = MEMORY_GIGABYTES << 30
    soft = wanted if largest == resource.RLIM_INFINITY else min(wanted, largest)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, largest))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is expected, not worth a dump
    prepare_process()
