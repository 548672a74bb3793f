"""The attempts of a job: a line when one begins and a line when it ends.

SLURM forgets a job minutes after its end; `JOB_attempts.jsonl` in the job folder does not. Only the
main rank writes it.
"""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vggdist.artifacts.files import JsonLines


@dataclass(frozen=True)
class Attempt:
    """One attempt, from its start to its end; both times are ISO 8601, UTC."""

    restarts: int
    """How often SLURM had started the job before."""
    host: str
    started_at: str
    ended_at: str | None = None
    exit_code: int | None = None
    """None where it was killed, or still runs."""
    met_time_limit: bool = False
    """Whether it asked to start again because its time was up."""


def begin(folder: Path, job: str, restarts: int) -> None:
    """Notes that an attempt begins."""
    entry = {"restarts": restarts, "host": os.uname().nodename, "started_at": now()}
    _lines(folder, job).append(entry, durable=True)


def end(folder: Path, job: str, exit_code: int, met_time_limit: bool = False) -> None:
    """Notes that the attempt that began last has ended."""
    entry = {"ended_at": now(), "exit_code": exit_code, "met_time_limit": met_time_limit}
    _lines(folder, job).append(entry, durable=True)


def read(folder: Path, job: str) -> tuple[Attempt, ...]:
    """All attempts so far, the first one first; none where the job has never begun."""
    attempts: list[dict[str, Any]] = []
    for entry in _lines(folder, job).read():
        if "started_at" in entry:
            attempts.append(entry)
        elif attempts:
            attempts[-1] |= entry
    return tuple(Attempt(**attempt) for attempt in attempts)


def now() -> str:
    """The time, ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _lines(folder: Path, job: str) -> JsonLines:
    return JsonLines(folder / f"{job}_attempts.jsonl")
