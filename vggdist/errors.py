"""Errors that a user can cause, each with its exit code.

A message is one or more whole sentences: the value, the rule, the remedy. Commands print the
message without a traceback; any other exception is a bug and keeps its traceback.
"""

import errno

EXIT_INTERRUPTED = 130
"""Ended by Ctrl-C before there was anything to save; the shells' convention, 128 + SIGINT."""
EXIT_STOPPED = 75
"""Stopped by a signal, after a checkpoint: the same command continues (EX_TEMPFAIL, sysexits.h)."""
EXIT_NOT_REQUEUED = 76
"""The same in a job that does not restart by itself: its requeues are used up, or the request to
SLURM failed."""


def no_space_left(error: OSError) -> str | None:
    """The message for a full disk if there is no more specific one; None for other errors."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    file = f"{error.filename} cannot be written: " if error.filename else ""
    return f"{file}{error.strerror}. Free space there, and start the same command again."


class VggdistError(Exception):
    """A problem that the user can solve; the command ends with `exit_code`."""

    exit_code = 1


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
