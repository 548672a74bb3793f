"""How far the stages of an experiment are, from their files and SLURM's queue.

A stage is done when its `result.json` is there, of the stage as it is now. Logs only tell why one
failed. Nothing here imports torch, and nothing is written; it may be asked at any time, from any
machine that sees the experiment's folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from vggdist.artifacts import run_files
from vggdist.artifacts.paths import quote
from vggdist.artifacts.run_files import RESULT_FILE, read_result
from vggdist.errors import EXIT_NOT_REQUEUED, EXIT_STOPPED, DistributedError
from vggdist.experiments import job_log
from vggdist.experiments.job_log import LoggedJob
from vggdist.experiments.stages import JOB_FOLDER, Experiment, Stage, Training, definition
from vggdist.slurm import attempts, queue
from vggdist.slurm.attempts import Attempt
from vggdist.slurm.queue import QueuedJob

State = Literal["waiting", "queued", "running", "stopped", "done", "failed"]
_LOG_TAIL_BYTES = 65536
_NOT_OF_SLURM = r"^(?!.*(?:slurmstepd|srun): error:).*?"
_ERRORS = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        _NOT_OF_SLURM + r"(?:^|\s)(?:error:|ERROR) (.+)",
        _NOT_OF_SLURM + r"([\w.]*(?:Error|Exception|Interrupt|Exit): .+)",
        r"(?:slurmstepd|srun): error: (.+)",
    )
)
"""Lines of a log that say why a job failed, the best first: ours, a traceback's last, SLURM's."""


@dataclass(frozen=True)
class StageStatus:
    """A stage, as far as it got; errors are fractions."""

    stage: str
    state: State
    """waiting: for other stages, or to be run. queued: in SLURM's queue. stopped: it goes on when
    the experiment is run again."""
    waits_for: tuple[str, ...] = ()
    """Stages that are not done."""
    job: str | None = None
    """Of a stage whose job runs or waits; or the last one."""
    is_live: bool = False
    """Whether the job is still to come, or runs."""
    reason: str = ""
    """Why SLURM lets it wait."""
    requeued: int = 0
    """How often SLURM has started the job again."""
    epoch: float | None = None
    train_error: float | None = None
    """Top-1, of the last point of the curves."""
    top1_error: float | None = None
    """Of the validation images: the latest, and at the end the result."""
    top5_error: float | None = None
    seconds_left: float | None = None
    elapsed_seconds: float | None = None
    """Of a running attempt."""
    error: str = ""
    """Why it failed."""


def read_status(experiment: Experiment) -> dict[str, StageStatus]:
    """Every stage, in the experiment's order."""
    jobs = job_log.read(experiment.folder)
    queued: Mapping[str, QueuedJob] | None
    try:
        queued = queue.job_states(job.job for job in jobs.values() if not job.here)
    except DistributedError:
        queued = None
    statuses: dict[str, StageStatus] = {}
    for name, stage in experiment.stages.items():
        waits_for = tuple(need for need in stage.needs if statuses[need].state != "done")
        status = _with_files(StageStatus(name, "waiting", waits_for), experiment, stage)
        if name in jobs:
            status = _with_job(status, experiment, jobs[name], queued)
        statuses[name] = status
    return statuses


def read_stage_result(experiment: Experiment, stage: Stage) -> dict[str, Any] | None:
    """The result of a stage that is done."""
    folder = experiment.folder_of(stage.name)
    result = read_result(folder)
    if result is None:
        return None
    if isinstance(stage, Training):
        return None if settings_problem(experiment, stage) else result
    # As make does it: what is older than what it was made of is made again.
    made_at = (folder / RESULT_FILE).stat().st_mtime_ns
    sources = [experiment.folder_of(name) / RESULT_FILE for name in stage.needs]
    is_old = any(file.exists() and file.stat().st_mtime_ns > made_at for file in sources)
    return None if is_old or result.get("stage") != definition(stage) else result


def settings_problem(experiment: Experiment, stage: Training) -> str:
    """How the training in the stage's folder differs from the stage; empty where it does not."""
    folder = experiment.folder_of(stage.name)
    before = run_files.read_config(folder)
    if before is None or not run_files.has_begun(folder):
        return ""
    changed = run_files.changed_settings(before, stage.config)
    if not changed:
        return ""
    listing = ", ".join(f"{key} {old!r} -> {new!r}" for key, (old, new) in changed.items())
    return (
        f"{quote(folder)} holds a training with other settings ({listing}); take these changes "
        "back, or move that folder away to train again."
    )


def last_error(logs: list[Path]) -> str:
    """The last line of logs that says why a job failed; empty where there is none."""
    texts = [_tail(log) for log in logs]
    for pattern in _ERRORS:
        for text in texts:
            if found := pattern.findall(text):
                return str(found[-1]).strip()
    return ""


def _with_files(status: StageStatus, experiment: Experiment, stage: Stage) -> StageStatus:
    """Results, and of a training where it is."""
    if isinstance(stage, Training):
        folder = experiment.folder_of(stage.name)
        if (curves := run_files.read_curves(folder, stage.config)) is not None:
            status = replace(
                status,
                epoch=curves.epoch,
                train_error=curves.train_error,
                top1_error=curves.validation_error,
                seconds_left=curves.seconds_left,
            )
        if problem := settings_problem(experiment, stage):
            return replace(status, state="failed", error=problem)
    result = read_stage_result(experiment, stage)
    if result is None:
        return status
    return replace(
        status,
        state="done",
        waits_for=(),
        top1_error=result.get("top1_error"),
        top5_error=result.get("top5_error"),
        seconds_left=None,
    )


def _with_job(
    status: StageStatus,
    experiment: Experiment,
    job: LoggedJob,
    queued: Mapping[str, QueuedJob] | None,
) -> StageStatus:
    """The newest job of a stage, and what became of it where no result counts.

    Args:
        queued: jobs in SLURM's queue; None where SLURM does not answer, and the files are believed.
    """
    job_folder = experiment.folder / JOB_FOLDER
    if not job.here:
        history = attempts.read(job_folder, job.job)
    else:  # its only attempt is what the job log says
        history = (Attempt(restarts=0, host=job.host, started_at=job.at, exit_code=job.exit_code),)
    requeued = max((attempt.restarts for attempt in history), default=0)
    status = replace(status, job=job.job, requeued=requeued)
    if status.state != "waiting":
        return status
    last = history[-1] if history else None
    exit_code = last.exit_code if last else None
    in_queue = None if job.here or queued is None else queued.get(job.job)
    if in_queue is not None and in_queue.state == "PENDING":
        state: State = "waiting" if status.waits_for else "queued"
        return replace(status, state=state, is_live=True, reason=in_queue.reason)
    if job.here:
        is_running = exit_code is None and job_log.is_held(experiment.folder)
    elif queued is None:
        is_running = last is not None and last.ended_at is None
    else:
        is_running = in_queue is not None
    if is_running:
        seconds = None
        if last is not None:
            began = datetime.fromisoformat(last.started_at)
            seconds = (datetime.now(UTC) - began).total_seconds()
        return replace(status, state="running", is_live=True, elapsed_seconds=seconds)
    if exit_code == 0 or (last is None and status.waits_for):
        return status  # SLURM takes away what waits for something that failed
    if exit_code == EXIT_STOPPED:
        return replace(status, state="stopped")
    logs = sorted(job_folder.glob(f"{job.job}_*log.err"))
    error = last_error([*logs, experiment.folder_of(status.stage) / run_files.LOG_FILE])
    if exit_code == EXIT_NOT_REQUEUED:
        return replace(status, state="stopped", error=error)
    if last is None:
        reason = "the job was cancelled before it began."
    elif exit_code is None:
        reason = "it was killed, and its log says nothing."
    else:
        reason = f"it ended with code {exit_code}, and its log says nothing."
    return replace(status, state="failed", error=error or reason)


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
