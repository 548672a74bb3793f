"""Errors that a user can cause, each with its exit code.

A message is one or more whole sentences: the value, the rule, the remedy. Commands print the
message without a traceback; any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from traceback import walk_tb

OLDEST_PYTHON = (3, 11)

EXTRAS = (
    "convert",
    "doctor",
    "experiments",
    "monitoring",
    "planning",
    "prepare",
    "profiling",
    "reports",
    "slurm",
    "transfer",
)
"""Rooms whose libraries `pip install vggdist` leaves out; `setup.py` lists them."""
EXIT_INTERRUPTED = 130
"""Ended by Ctrl-C before there was anything to save; the shells' convention, 128 + SIGINT."""
EXIT_STOPPED = 75
"""Stopped by a signal, after a checkpoint: the same command continues (EX_TEMPFAIL, sysexits.h)."""
EXIT_NOT_REQUEUED = 76
"""The same in a job that does not restart by itself: its requeues are used up, or the request to
SLURM failed."""


def in_words(problem: object) -> str:
    """A problem as text, without the numbers with which those of an operating system begin."""
    return re.sub(r"\[Errno -?\d+\] ", "", str(problem))


def first_line(error: Exception) -> str:
    """What an error of a library says first, as a sentence; its type where it says nothing."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if line.endswith((".", "!", "?")) else f"{line}."


def no_space_left(error: OSError) -> str | None:
    """The message for a full disk if there is no more specific one; None for other errors."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    file = f"{error.filename} cannot be written: " if error.filename else ""
    return f"{file}{error.strerror}. Free space there, and start the same command again."


def missing_library(error: ModuleNotFoundError) -> str | None:
    """The message for a library that is not installed; None where a module of ours is missing."""
    if error.name is None or error.name.startswith("vggdist"):
        return None
    names = (frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__))
    ours = [name.split(".") for name in names if name.startswith("vggdist.")]
    room = ours[-1][1] if ours else ""
    library = error.name.partition(".")[0]
    if room in EXTRAS and find_spec("torch") is not None:
        return (
            f"the library {library} is not installed; install all that this command needs with "
            f"pip install 'vggdist[{room}]'."
        )
    return f"{sys.executable} lacks the library {library}, which vggdist needs. {_environment()}"


def old_python() -> str | None:
    """The message for a Python that is too old; None for others."""
    if sys.version_info >= OLDEST_PYTHON:
        return None
    own, needed = (".".join(map(str, version[:2])) for version in (sys.version_info, OLDEST_PYTHON))
    return (
        f"{sys.executable} is Python {own}, and vggdist needs {needed} or newer. {_environment()}"
    )


def _environment() -> str:
    """How to get a Python that has all that is needed."""
    root = Path(__file__).resolve().parent.parent
    environment = root / ".venv"
    activate = f"source {shlex.quote(str(environment / 'bin' / 'activate'))}"
    if (environment / "bin" / "activate").is_file() and Path(sys.prefix) != environment:
        return f"Activate the environment first: {activate}"
    if (root / "Makefile").is_file():
        return (
            f"Make the environment with `make setup` in {shlex.quote(str(root))}, and activate it: "
            f"{activate}"
        )
    return "Activate the environment in which vggdist was installed, or install it in this one."


class VggdistError(Exception):
    """A problem that the user can solve; the command ends with `exit_code`."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(in_words(message))


class ConfigError(VggdistError):
    """The configuration is invalid; the message lists every problem."""

    exit_code = 2


class DataError(VggdistError):
    """Images or class folders are missing, unreadable, or not those that this run started with."""

    exit_code = 3


class NumericError(VggdistError):
    """A loss, a gradient or the weights were not finite."""

    exit_code = 4


class CheckpointError(VggdistError):
    """No usable checkpoint, or one that belongs to another training."""

    exit_code = 5


class WeightsError(VggdistError):
    """A weights or posteriors file that is invalid, or of another network or data set."""

    exit_code = 5


class DistributedError(VggdistError):
    """The ranks cannot be started or do not belong together."""

    exit_code = 6


class StoppedError(VggdistError):
    """Not a failure: a signal has asked a rank to stop, and there is nothing left to save."""

    exit_code = EXIT_STOPPED
