"""The attempts of a job: a line when one begins and a line when it ends.

SLURM forgets a job minutes after its end; `JOB_attempts.jsonl` in the job folder does not. Only the
main rank writes it.
"""

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path


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
    _append(
        folder,
        job,
        {"restarts": restarts, "host": os.uname().nodename, "started_at": _now()},
    )


def end(folder: Path, job: str, exit_code: int, met_time_limit: bool = False) -> None:
    """Notes that the attempt that began last has ended."""
    _append(
        folder,
        job,
        {"ended_at": _now(), "exit_code": exit_code, "met_time_limit": met_time_limit},
    )


def read(folder: Path, job: str) -> tuple[Attempt, ...]:
    """All attempts so far, the first one first; none where the job has never begun."""
    try:
        lines = _file(folder, job).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return ()
    records: list[dict[str, object]] = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # cut short by a kill
            continue
        if "started_at" in record:
            records.append(record)
        elif records:
            records[-1] |= record
    return tuple(Attempt(**record) for record in records)  # type: ignore[arg-type]


def _append(folder: Path, job: str, record: dict[str, object]) -> None:
    with _file(folder, job).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _file(folder: Path, job: str) -> Path:
    return folder / f"{job}_attempts.jsonl"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
