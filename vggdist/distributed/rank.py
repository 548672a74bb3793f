"""What every rank does around its work: log, report errors, act on the main rank only."""

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import torch
from torch import distributed

from vggdist.distributed import process as world
from vggdist.distributed.entry import end_of_full_disk
from vggdist.distributed.process import Process
from vggdist.errors import (
    EXIT_INTERRUPTED,
    ConfigError,
    DataError,
    DistributedError,
    StoppedError,
    VggdistError,
)
from vggdist.terminal import fresh_line, training_progress

P = ParamSpec("P")
T = TypeVar("T")

MEETING_SECONDS = 5.0
"""Interval of the collectives while the main rank acts: if it listed or hashed images for longer
than a collective's timeout, it would be presumed dead."""


def run_rank(work: Callable[[], int]) -> int:
    """Does a rank's work; prints errors that a user can solve, and returns the exit code.

    Errors that all ranks raise are printed by the main rank only.
    """
    rank = world.announced_rank()  # a number, if the launcher is correct
    log_to_terminal(rank == "0")
    try:
        return work()
    except StoppedError as stopped:
        logging.getLogger("vggdist").info("%s", stopped)
        return stopped.exit_code
    except KeyboardInterrupt:  # the second; the first waits for a checkpoint
        return EXIT_INTERRUPTED
    except VggdistError as error:
        if rank == "0" or isinstance(error, DataError | DistributedError):
            where = f"rank {rank}: " if rank != "0" else ""
            sys.stderr.write(f"{fresh_line(sys.stderr)}error: {where}{error}\n")
        return error.exit_code
    except OSError as error:
        return end_of_full_disk(error)
    except torch.OutOfMemoryError as error:
        return _end_of_full_gpu(error, rank)
    except SystemExit as end:  # from `on_main`, where the main rank prints
        return int(end.code or 0)
    except RuntimeError as error:
        if "Connection closed by peer" not in str(error) and "Connection reset" not in str(error):
            raise
        sys.stderr.write(
            f"{fresh_line(sys.stderr)}error: rank {rank}: another rank has ended; its message says "
            "why.\n"
        )
        return DistributedError.exit_code


def _end_of_full_gpu(error: torch.OutOfMemoryError, rank: str) -> int:
    """Says what to set; returns the exit code."""
    where = f"rank {rank}: " if rank != "0" else ""
    # Its first sentence; those about torch's allocator follow.
    problem = " ".join(str(error).split(". ")[0].split())
    sys.stderr.write(
        f"{fresh_line(sys.stderr)}error: {where}{problem}: the GPU's memory does not suffice. Set "
        "batch.micro lower than it is (in an evaluation evaluation.micro and "
        "evaluation.max_megapixels); `nvidia-smi` shows who else uses the GPU.\n"
    )
    return ConfigError.exit_code


def leave(exit_code: int) -> int:
    """Returns the exit code, unless an error has left the world standing (`world.joined`).

    Then the process ends here, after flushing its output: an orderly exit would wait for the other
    ranks.
    """
    if exit_code and distributed.is_initialized():
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    return exit_code


def on_main(
    process: Process, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T | None:
    """Runs `action` on the main rank only; if it fails, all ranks end and only it prints."""
    result, problem = None, None
    with _meeting(process):
        if process.is_main:
            try:
                result = action(*args, **kwargs)
            except VggdistError as error:
                problem = error
    exit_code = world.from_main(problem.exit_code if problem else 0)
    if problem is not None:
        raise problem
    if exit_code:
        # Launchers return the exit code of any rank.
        raise SystemExit(exit_code)
    return result


@contextlib.contextmanager
def _meeting(process: Process) -> Iterator[None]:
    """Synchronizes all ranks every few seconds until the main rank has left the block; collective.
    This runs in a thread: the block stays in the main thread, where signals arrive.
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
    """Logs to stderr; ranks other than the main one log errors only.

    What is below INFO is for the log file alone.
    """
    logger = logging.getLogger("vggdist")
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.INFO)
    line = f"{fresh_line(sys.stderr)}%(asctime)s %(message)s"
    handler.setFormatter(logging.Formatter(line, "%H:%M:%S"))
    if sys.stderr.isatty():
        handler.addFilter(lambda record: record.name != training_progress.name)
    logger.handlers = [handler]
    logger.setLevel(logging.DEBUG if is_main else logging.ERROR)
    logger.propagate = False
