"""The errors that a user can cause, each with the exit code of the process that meets it.

A message is one or more whole sentences: the value, the rule, the remedy. Commands print the
message without a traceback; anything that is not a `VggdistError` is a mistake of ours and keeps
its traceback.
"""

import errno

EXIT_INTERRUPTED = 130
"""Ended by Ctrl-C before there was anything to save, as shells say it: 128 + SIGINT."""
EXIT_STOPPED = 75
"""Stopped by a signal, after a checkpoint: the same command continues (EX_TEMPFAIL, sysexits.h)."""
EXIT_NOT_REQUEUED = 76
"""The same in a job that does not start again by itself: its budget of requeues is used up, or
SLURM could not be asked."""


def no_space_left(error: OSError) -> str | None:
    """What to say where nothing more specific was said of a full disk; none: that is not it."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    file = f"{error.filename} cannot be written: " if error.filename else ""
    return f"{file}{error.strerror}. Free space there, and start the same command again."


class VggdistError(Exception):
    """A problem that the user can solve; `exit_code` is what the command ends with."""

    exit_code = 1


class ConfigError(VggdistError):
    """The configuration cannot be used; the message lists every problem found."""

    exit_code = 2


class DataError(VggdistError):
    """Images or class folders are missing, unreadable or not the ones this run was started with."""

    exit_code = 3


class NumericError(VggdistError):
    """A loss, a gradient or the weights were not finite."""

    exit_code = 4


class CheckpointError(VggdistError):
    """No usable checkpoint, or one that belongs to another training."""

    exit_code = 5


class WeightsError(VggdistError):
    """A weights file or a posteriors file that cannot be used, or that belongs elsewhere."""

    exit_code = 5


class DistributedError(VggdistError):
    """The ranks cannot be started or do not belong together."""

    exit_code = 6


class StoppedError(VggdistError):
    """No problem: a signal has asked a rank to stop, and nothing is left to be saved."""

    exit_code = EXIT_STOPPED
