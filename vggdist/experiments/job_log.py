"""Which job does which stage: a line in the experiment's folder whenever one is submitted.

A stage's newest line counts. A stage that is run here, without SLURM, has a line when it begins and
another one when it ends.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from vggdist.artifacts import files
from vggdist.artifacts.files import JsonLines
from vggdist.artifacts.paths import quote
from vggdist.errors import ConfigError
from vggdist.slurm.attempts import now

JOB_LOG_FILE = "jobs.jsonl"
LOCK_FILE = "lock"
_PATIENCE_SECONDS = 2.0
"""`is_held` has the lock for an instant."""


@dataclass(frozen=True)
class LoggedJob:
    """The newest job of a stage."""

    stage: str
    job: str
    """SLURM's id, `12_0` in an array; submitit's for a job that is run here."""
    at: str
    """When, ISO 8601, UTC."""
    host: str
    """Where it was submitted, or is run."""
    here: bool = False
    """Whether `vggdist experiment run` runs it itself; else SLURM has it."""
    exit_code: int | None = None
    """Once a job that is run here has ended."""


def note(
    folder: Path, stage: str, job: str, here: bool = False, exit_code: int | None = None
) -> None:
    """Adds a line on a stage.

    Raises:
        ConfigError: it cannot be written.
    """
    entry = LoggedJob(stage, job, now(), os.uname().nodename, here, exit_code)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        JsonLines(folder / JOB_LOG_FILE).append(asdict(entry), durable=True)
    except OSError as error:
        raise not_writable(folder, error) from error


def read(folder: Path) -> dict[str, LoggedJob]:
    """Stage -> its newest job."""
    jobs = {}
    for entry in JsonLines(folder / JOB_LOG_FILE).read():
        with contextlib.suppress(TypeError):
            jobs[entry["stage"]] = LoggedJob(**entry)
    return jobs


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keeps everyone else from running this experiment meanwhile.

    Raises:
        ConfigError: somebody runs it, or the folder cannot be written.
    """
    try:
        held = files.lock(folder / LOCK_FILE, _PATIENCE_SECONDS, "start it only once")
    except files.LockedError as holder:
        raise ConfigError(
            f"{holder} is running the experiment in {quote(folder)}; wait for it, or choose "
            "another folder."
        ) from None
    except OSError as error:
        raise not_writable(folder, error) from error
    with held:
        yield


def is_held(folder: Path) -> bool:
    """Whether somebody runs this experiment now."""
    return files.is_locked(folder / LOCK_FILE)


def not_writable(folder: Path, error: OSError) -> ConfigError:
    """The error for an experiment's folder that cannot be written."""
    return ConfigError(
        f"the experiment's folder {quote(folder)} cannot be written: {error}. Choose another "
        "folder."
    )
