"""What became of the stages of an experiment, from their files, their jobs' logs and SLURM's queue.

Nothing here imports torch, and nothing is written; it may be asked at any time, from any machine
that sees the experiment's folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from vggdist.artifacts import run_files
from vggdist.artifacts.paths import quote
from vggdist.artifacts.run_files import RESULT_FILE, read_result
from vggdist.errors import EXIT_NOT_REQUEUED, EXIT_STOPPED, DistributedError
from vggdist.experiments import job_log
from vggdist.experiments.job_log import LoggedJob
from vggdist.experiments.stages import JOB_FOLDER, Evaluation, Experiment, Report, Stage, Training
from vggdist.slurm import attempts, queue
from vggdist.slurm.attempts import Attempt
from vggdist.slurm.queue import QueuedJob

State = Literal["waiting", "queued", "running", "stopped", "done", "failed"]
_LOG_TAIL_BYTES = 65536
_OWN_ERROR = re.compile(r"(?:^|\s)(?:error:|ERROR) (.+)")
_EXCEPTION = re.compile(r"[\w.]*(?:Error|Exception|Interrupt|Exit): .+")
_SLURM_ERROR = re.compile(r"(?:slurmstepd|srun): error: (.+)")


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
    """What its log says last, where it failed."""

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)


def read_status(experiment: Experiment) -> dict[str, StageStatus]:
    """Every stage, in the experiment's order."""
    records = job_log.read(experiment.folder)
    try:
        queued = queue.job_states(one.job for one in records.values() if not one.here)
    except DistributedError:
        queued = None
    looker = _Look(experiment, records, queued)
    return {name: looker.at(stage) for name, stage in experiment.stages.items()}


def is_done(experiment: Experiment, stage: str) -> bool:
    """Whether a stage has its result."""
    return _result(experiment, experiment.stages[stage]) is not None


def definition(stage: Evaluation | Report) -> dict[str, Any]:
    """What its result is of, ready for JSON: another definition makes it anew."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(stage).items()
    }


def changed_settings(experiment: Experiment) -> list[str]:
    """A sentence for each training that was begun with other settings than it has now."""
    sentences = []
    for stage in experiment.stages.values():
        if isinstance(stage, Training) and (text := _changes(experiment, stage)):
            sentences.append(f"stage {stage.name}: {text}")
    return sentences


class _Look:
    """One look at the files of all stages."""

    def __init__(
        self,
        experiment: Experiment,
        records: Mapping[str, LoggedJob],
        queued: Mapping[str, QueuedJob] | None,
    ) -> None:
        self._experiment, self._records, self._queued = experiment, records, queued
        self._is_held = job_log.is_held(experiment.folder)
        self._done: dict[str, bool] = {}
        self._job_folder = experiment.folder / JOB_FOLDER

    def at(self, stage: Stage) -> StageStatus:
        """The status; those that the stage needs were looked at before."""
        result = _result(self._experiment, stage)
        self._done[stage.name] = result is not None
        missing = tuple(name for name in stage.needs if not self._done[name])
        one = self._records.get(stage.name)
        history = () if one is None else attempts.read(self._job_folder, one.job)
        status = StageStatus(
            stage.name,
            "waiting",
            waits_for=missing,
            job=None if one is None else one.job,
            requeued=max((attempt.restarts for attempt in history), default=0),
        )
        if isinstance(stage, Training):
            status = _with_curves(status, self._experiment.folder_of(stage.name), stage)
        if result is not None:
            return replace(
                status,
                state="done",
                waits_for=(),
                top1_error=result.get("top1_error"),
                top5_error=result.get("top5_error"),
                seconds_left=None,
            )
        if isinstance(stage, Training) and (changes := _changes(self._experiment, stage)):
            return replace(status, state="failed", error=changes)
        if one is None:
            return status
        if one.here:
            return self._of_job_here(status, one)
        return self._of_slurm_job(status, one, history)

    def _of_job_here(self, status: StageStatus, one: LoggedJob) -> StageStatus:
        if one.exit_code is None and self._is_held:
            began = datetime.fromisoformat(one.at)
            return replace(status, state="running", is_live=True, elapsed_seconds=_since(began))
        return self._ended(status, one.exit_code)

    def _of_slurm_job(
        self, status: StageStatus, one: LoggedJob, history: tuple[Attempt, ...]
    ) -> StageStatus:
        if self._queued is None:
            # SLURM does not answer, and the files do not say that it has ended.
            if history and history[-1].ended_at is None:
                return self._running(status, history)
            queued = None
        else:
            queued = self._queued.get(one.job)
        if queued is not None:
            if queued.state == "PENDING":
                waiting: State = "waiting" if status.waits_for else "queued"
                return replace(status, state=waiting, is_live=True, reason=queued.reason)
            return self._running(status, history)
        if not history:
            if status.waits_for:  # SLURM takes away what waits for something that failed
                return status
            return replace(
                status,
                state="failed",
                error=self._last_error(status) or "the job was cancelled before it began.",
            )
        return self._ended(status, history[-1].exit_code)

    def _running(self, status: StageStatus, history: tuple[Attempt, ...]) -> StageStatus:
        began = datetime.fromisoformat(history[-1].started_at) if history else None
        elapsed = None if began is None else _since(began)
        return replace(status, state="running", is_live=True, elapsed_seconds=elapsed)

    def _ended(self, status: StageStatus, exit_code: int | None) -> StageStatus:
        """A job that is over, without a result that still counts."""
        if exit_code == 0:
            return status
        said = self._last_error(status)
        if exit_code in (EXIT_STOPPED, EXIT_NOT_REQUEUED):
            return replace(status, state="stopped", error=said if exit_code != EXIT_STOPPED else "")
        code = "it was killed" if exit_code is None else f"it ended with code {exit_code}"
        return replace(status, state="failed", error=said or f"{code}, and its log says nothing.")

    def _last_error(self, status: StageStatus) -> str:
        files = sorted(self._job_folder.glob(f"{status.job}_*log.err"))
        files.append(self._experiment.folder_of(status.stage) / run_files.LOG_FILE)
        return last_error(files)


def last_error(logs: list[Path]) -> str:
    """The last sentence about an error in any of the logs; those of ours before others'."""
    texts = [_tail(log) for log in logs]
    for pattern in (_OWN_ERROR, _EXCEPTION, _SLURM_ERROR):
        for text in texts:
            found = [
                match
                for line in text.splitlines()
                if (match := pattern.search(line))
                and (pattern is _SLURM_ERROR or not _SLURM_ERROR.search(line))
            ]
            if found:
                return found[-1][found[-1].re.groups].strip()
    return ""


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def _result(experiment: Experiment, stage: Stage) -> dict[str, Any] | None:
    """The result of a stage that is done."""
    folder = experiment.folder_of(stage.name)
    result = read_result(folder)
    if result is None or isinstance(stage, Training):
        return None if isinstance(stage, Training) and _changes(experiment, stage) else result
    if result.get("stage") != definition(stage):
        return None
    # As make does it: what is older than what it was made of is made again.
    made_at = (folder / RESULT_FILE).stat().st_mtime_ns
    for name in stage.needs:
        source = experiment.folder_of(name) / RESULT_FILE
        if source.exists() and source.stat().st_mtime_ns > made_at:
            return None
    return result


def _changes(experiment: Experiment, stage: Training) -> str:
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


def _with_curves(status: StageStatus, folder: Path, stage: Training) -> StageStatus:
    curves = run_files.read_curves(folder, stage.config)
    if curves is None:
        return status
    return replace(
        status,
        epoch=curves.epoch,
        train_error=curves.train_error,
        top1_error=curves.validation_error,
        seconds_left=curves.seconds_left,
    )


def _since(began: datetime) -> float:
    return (datetime.now(UTC) - began).total_seconds()
