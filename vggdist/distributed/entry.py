"""What runs first in every command, before anything else is imported: Ctrl-C, output, errors."""

import io
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from vggdist.errors import EXIT_INTERRUPTED, VggdistError, no_space_left


def run(main: Callable[[], int]) -> int:
    """Runs a command that imports what it needs itself; returns the exit code.

    What a user can solve ends with a sentence, and Ctrl-C without a word. While modules are
    imported it ends the process on the spot: compiled modules make other errors of a
    KeyboardInterrupt, or lose it with a trace, and nothing has to be cleaned up yet.
    """
    # A process in the background of a script ignores Ctrl-C, and goes on doing so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may be any bytes
    try:
        return main()
    except VggdistError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except OSError as error:
        return end_of_full_disk(error)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def end_of_full_disk(error: OSError) -> int:
    """Says that a disk is full, where nothing more specific was said; returns the exit code.

    Raises:
        OSError: `error`, which is about something else.
    """
    if (sentence := no_space_left(error)) is None:
        raise error
    sys.stderr.write(f"error: {sentence}\n")
    return VggdistError.exit_code


def _interrupt(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os._exit(EXIT_INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt
