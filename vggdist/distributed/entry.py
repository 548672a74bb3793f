"""Runs first in every command, before other imports: Ctrl-C, output, errors."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from vggdist.errors import (
    EXIT_INTERRUPTED,
    ConfigError,
    VggdistError,
    missing_library,
    no_space_left,
    old_python,
)
from vggdist.terminal import fresh_line

PYTHON_WARNINGS = logging.getLogger("py.warnings")
"""Has what `warnings.warn` says after `quiet_libraries`."""


def run(main: Callable[[], int]) -> int:
    """Runs a command that imports what it needs itself; returns the exit code.

    Errors that a user can solve end with a sentence, Ctrl-C without a message. During imports
    Ctrl-C ends the process at once: compiled modules turn a KeyboardInterrupt into other errors, or
    swallow it after a traceback, and there is nothing to clean up yet.
    """
    if (sentence := old_python()) is not None:
        sys.stderr.write(f"error: {sentence}\n")
        return ConfigError.exit_code
    # A background process of a script ignores Ctrl-C, and keeps ignoring it.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may be any bytes
    try:
        return main()
    except VggdistError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except ModuleNotFoundError as error:
        if (sentence := missing_library(error)) is None:
            raise
        sys.stderr.write(f"error: {sentence}\n")
        return ConfigError.exit_code
    except OSError as error:
        return end_of_full_disk(error)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def quiet_libraries() -> None:
    """Keeps warnings of torch and others off the terminal, as those of Python for the log file.

    Before they are imported. Settings of the environment stand: `TORCH_CPP_LOG_LEVEL=INFO`,
    `PYTHONWARNINGS=default`.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if not sys.warnoptions:
        logging.captureWarnings(True)
        PYTHON_WARNINGS.propagate = False
        PYTHON_WARNINGS.addHandler(logging.NullHandler())


def end_of_full_disk(error: OSError) -> int:
    """Reports a full disk for which there is no more specific message; returns the exit code.

    Raises:
        OSError: `error`, if it has another cause.
    """
    if (sentence := no_space_left(error)) is None:
        raise error
    sys.stderr.write(f"{fresh_line(sys.stderr)}error: {sentence}\n")
    return VggdistError.exit_code


def _interrupt(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os._exit(EXIT_INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt
