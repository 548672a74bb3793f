"""SLURM's queue: what it knows of a job, and how a job asks to start again.

Commands are lists of words, never lines for a shell, and job ids are checked before they are used.
"""

import getpass
import math
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from vggdist.errors import DistributedError

_JOB = re.compile(r"\d+(_\d+)?")
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class QueuedJob:
    """A job as SLURM has it: `PENDING`, `RUNNING` and the like, and why it waits, or `None`."""

    state: str
    reason: str


def require_slurm() -> None:
    """Raises a DistributedError where SLURM's commands are missing, with the local way."""
    missing = [name for name in ("sbatch", "srun", "squeue") if shutil.which(name) is None]
    if missing:
        raise DistributedError(
            f"{missing[0]} is not on this machine, so it is no login node of a SLURM cluster. Add "
            "--local to run the same job in processes here, or --dry-run to see what would be "
            "submitted."
        )


def job_states(ids: Iterable[str]) -> dict[str, QueuedJob]:
    """Those of the jobs that SLURM still has in its queue; elements of arrays are `12_0`.

    Raises:
        DistributedError: SLURM does not answer.
    """
    wanted = {job for job in ids if _JOB.fullmatch(job)}
    if not wanted:
        return {}
    # All of the user's: SLURM takes a list with a finished job in it for a mistake.
    printed = _run(
        "squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i|%T|%r"
    )
    lines = (line.split("|", 2) for line in printed.splitlines())
    return {job: QueuedJob(state, reason) for job, state, reason in lines if job in wanted}


def details(job: str) -> dict[str, str]:
    """What `scontrol show job` says, by its names: `JobState`, `RunTime`, `TimeLimit` ...

    Raises:
        DistributedError: SLURM does not answer, or does not know the job.
    """
    printed = _run("scontrol", "--oneliner", "show", "job", _checked(job))
    return dict(word.partition("=")[::2] for word in printed.split() if "=" in word)


def requeue(job: str) -> None:
    """Asks SLURM to end the job and start it again; its id stays.

    Raises:
        DistributedError: SLURM does not answer, or does not want to.
    """
    _run("scontrol", "requeue", _checked(job))


def seconds(text: str) -> float:
    """A time as SLURM reads and prints it: m, m:s, h:m:s, d-h, d-h:m, d-h:m:s; else infinite."""
    match = _TIME.fullmatch(text)
    if match is None:
        return math.inf
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is None and len(numbers) < 3:
        numbers.insert(0, 0)  # without days, what stands alone or before seconds are minutes
    hours, minutes, rest = [*numbers, 0, 0][:3]
    return ((24 * int(days or 0) + hours) * 60 + minutes) * 60 + rest


def _checked(job: str) -> str:
    if not _JOB.fullmatch(job):
        raise DistributedError(f"{job!r} is no id of a SLURM job, such as 1234 or 1234_5.")
    return job


def _run(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DistributedError(f"{' '.join(command)} failed: {error}.") from error
    if done.returncode:
        message = " ".join((done.stderr or done.stdout).split())
        raise DistributedError(f"{' '.join(command)} failed: {message or done.returncode}")
    return done.stdout
