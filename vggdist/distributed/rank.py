"""What every rank does around its work: speak to the terminal, end with a sentence, act as one."""

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import distributed

from vggdist.distributed import process as world
from vggdist.distributed.entry import end_of_full_disk
from vggdist.distributed.process import Process
from vggdist.errors import (
    EXIT_INTERRUPTED,
    DataError,
    DistributedError,
    StoppedError,
    VggdistError,
)
from vggdist.terminal import training_progress

T = TypeVar("T")

MEETING_SECONDS = 5.0
"""How often the ranks meet while the main one acts: if it lists or hashes images for longer than a
collective may last, it would be taken for lost."""


def run_rank(work: Callable[[], int]) -> int:
    """Does a rank's work; prints what a user can solve, and returns the exit code.

    Every rank may meet the same problem; those that all ranks meet are printed by the main one.
    """
    rank = world.announced_rank()  # a number, if the launcher is right
    log_to_terminal(rank == "0")
    try:
        return work()
    except StoppedError as stopped:
        logging.getLogger("vggdist").info("%s", stopped)
        return stopped.exit_code
    except KeyboardInterrupt:  # the second one, where the first waits for a checkpoint
        return EXIT_INTERRUPTED
    except VggdistError as error:
        if rank == "0" or isinstance(error, DataError | DistributedError):
            where = f"rank {rank}: " if rank != "0" else ""
            sys.stderr.write(f"error: {where}{error}\n")
        return error.exit_code
    except OSError as error:
        return end_of_full_disk(error)
    except SystemExit as end:  # of `on_main`, where the main rank speaks
        return int(end.code or 0)
    except RuntimeError as error:
        if "Connection closed by peer" not in str(error) and "Connection reset" not in str(error):
            raise
        sys.stderr.write(f"error: rank {rank}: another rank has ended; its message says why.\n")
        return DistributedError.exit_code


def leave(exit_code: int) -> int:
    """Passes the exit code on, unless an error has left the world standing (`world.joined`).

    Then the process ends here, with all said: in order it would wait for the other ranks.
    """
    if exit_code and distributed.is_initialized():
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    return exit_code


def on_main(process: Process, action: Callable[[], T | None]) -> T | None:
    """Runs `action` on the main rank only; where it fails, all ranks end, and only it speaks."""
    result, problem = None, None
    with _meeting(process):
        if process.is_main:
            try:
                result = action()
            except VggdistError as error:
                problem = error
    exit_code = world.from_main(problem.exit_code if problem else 0, process.device)
    if problem is not None:
        raise problem
    if exit_code:
        # Launchers end with the code of any rank.
        raise SystemExit(exit_code)
    return result


@contextlib.contextmanager
def _meeting(process: Process) -> Iterator[None]:
    """All ranks meet every few seconds until the main one has done what is inside; collective.

    It meets in a thread: what is inside stays in the main thread, where signals arrive.
    """
    if process.world_size == 1:
        yield
        return
    done = threading.Event()

    def meet() -> None:
        if process.device.type == "cuda":
            torch.cuda.set_device(process.device)  # a thread starts on GPU 0
        while not world.all_agree(
            not process.is_main or done.wait(MEETING_SECONDS), process.device
        ):
            pass

    if not process.is_main:
        yield
        meet()
        return
    with ThreadPoolExecutor(1) as pool:
        meetings = pool.submit(meet)
        try:
            yield
        finally:
            done.set()
        meetings.result()


def log_to_terminal(is_main: bool = True) -> None:
    """Sends what is logged to stderr; of ranks that are not the main one, errors only."""
    logger = logging.getLogger("vggdist")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    if sys.stderr.isatty():
        handler.addFilter(lambda record: record.name != training_progress.name)
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if is_main else logging.ERROR)
    logger.propagate = False
