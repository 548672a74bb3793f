"""Runs what is missing of an experiment: as SLURM jobs that wait for each other, or here, in order.

What is done, runs or is queued is left alone, so the same command may be given again at any time.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vggdist.artifacts.paths import quote
from vggdist.config import split_batch
from vggdist.errors import EXIT_STOPPED, ConfigError
from vggdist.experiments import job_log
from vggdist.experiments.payloads import EvaluationPayload, ReportPayload
from vggdist.experiments.stages import (
    EXPERIMENT_FILE,
    JOB_FOLDER,
    Evaluation,
    Experiment,
    Report,
    Stage,
    Training,
)
from vggdist.experiments.status import (
    StageStatus,
    changed_settings,
    definition,
    is_done,
)
from vggdist.slurm.job import Payload, TrainingPayload
from vggdist.slurm.settings import ClusterSettings
from vggdist.slurm.submit import Layout, Submission, run_local, submit
from vggdist.terminal import duration

ALONE = Layout(nodes=1, ranks_per_node=1, gpus_per_node=0)
"""A report adds up files."""


@dataclass(frozen=True)
class Resources:
    """What jobs are given, whatever their stage."""

    layout: Layout
    settings: ClusterSettings
    command: str
    """What was typed, and what continues it."""
    allow_code_change: bool = False


@dataclass(frozen=True)
class Array:
    """Stages that were submitted together, and their jobs."""

    stages: tuple[str, ...]
    jobs: tuple[str, ...]
    after: tuple[str, ...]
    """Stages whose jobs they wait for."""


def missing(statuses: Mapping[str, StageStatus]) -> tuple[str, ...]:
    """The stages to run now."""
    return tuple(
        name for name, status in statuses.items() if status.state != "done" and not status.is_live
    )


def problems(experiment: Experiment, wanted: Sequence[str], layout: Layout) -> list[str]:
    """What jobs would meet only after hours of waiting, as sentences."""
    sentences = changed_settings(experiment)
    trainings = [stage for name in wanted if isinstance(stage := experiment.stages[name], Training)]
    if any(stage.config.data.root is None for stage in trainings):
        sentences.append("data is not set; give the folder of the data set: data=/data/imagenet.")
    batches: dict[str, list[str]] = defaultdict(list)
    for stage in trainings:
        try:
            split_batch(stage.config.batch, layout.world_size)
        except ConfigError as error:
            batches[str(error)].append(stage.name)
    return sentences + [f"{', '.join(names)}: {text}" for text, names in batches.items()]


def submit_missing(
    experiment: Experiment, statuses: Mapping[str, StageStatus], resources: Resources
) -> tuple[Array, ...]:
    """Submits all stages that are missing, each after those that it needs.

    Stages that are alike, with the same ranks after the same jobs, are one array.

    Raises:
        DistributedError: there is no SLURM here, or it refuses; what it took is recorded.
        ConfigError: somebody else submits at the moment, or the folder cannot be written.
    """
    waiting = [experiment.stages[name] for name in missing(statuses)]
    jobs = {name: str(one.job) for name, one in statuses.items() if one.is_live}
    arrays = []
    with job_log.hold(experiment.folder):
        _write_experiment(experiment)
        while waiting:
            left = {stage.name for stage in waiting}
            ready = [stage for stage in waiting if left.isdisjoint(stage.needs)]
            waiting = [stage for stage in waiting if stage not in ready]
            for after, alike in _alike(ready, jobs):
                before = [jobs[name] for name in after]
                ids = submit(_submission(experiment, alike, resources, before))
                for stage, job in zip(alike, ids, strict=True):
                    job_log.note(experiment.folder, stage.name, job)
                    jobs[stage.name] = job
                names = tuple(stage.name for stage in alike)
                arrays.append(Array(names, ids, after))
    return tuple(arrays)


def run_here(
    experiment: Experiment,
    statuses: Mapping[str, StageStatus],
    resources: Resources,
    say: Callable[[str], None],
    expected_seconds: Mapping[str, float],
) -> int:
    """Runs all stages that are missing one after the other in processes of this machine.

    A stage that fails holds back only what needs it.

    Args:
        say: is told what happens, in sentences.
        expected_seconds: of each stage, for the time that is left; how they compare counts.

    Returns:
        0 if every stage is done, `EXIT_STOPPED` after a signal, else the code of the first that
        failed.
    """
    names = missing(statuses)
    clock = _Clock({name: expected_seconds[name] for name in names})
    exit_code = 0
    with job_log.hold(experiment.folder):
        _write_experiment(experiment)
        for number, name in enumerate(names, start=1):
            stage = experiment.stages[name]
            lacking = [other for other in stage.needs if not is_done(experiment, other)]
            if lacking:
                say(f"stage {name} is held back: {', '.join(lacking)} is not done.")
                clock.leave_out(name)
                continue
            say(f"stage {name}, {number} of {len(names)}{clock.left()}")
            code = _run_one(experiment, stage, resources)
            clock.finish(name)
            if code == EXIT_STOPPED:
                say("stopped; the same command continues.")
                return code
            exit_code = exit_code or code
    return exit_code


def _run_one(experiment: Experiment, stage: Stage, resources: Resources) -> int:
    started: list[str] = []

    def note_start(job: str) -> None:
        started.append(job)
        job_log.note(experiment.folder, stage.name, job, here=True)

    code = run_local(_submission(experiment, [stage], resources), started=note_start)
    job_log.note(experiment.folder, stage.name, started[0], here=True, exit_code=code)
    return code


def _alike(
    stages: Sequence[Stage], jobs: Mapping[str, str]
) -> list[tuple[tuple[str, ...], list[Stage]]]:
    """Stages of one kind that wait for the same jobs, with the stages that these are of."""
    groups: dict[tuple[str, tuple[str, ...]], list[Stage]] = defaultdict(list)
    for stage in stages:
        after = tuple(name for name in stage.needs if name in jobs)
        groups[type(stage).__name__, after].append(stage)
    return [(after, alike) for (_, after), alike in groups.items()]


def _submission(
    experiment: Experiment,
    stages: Sequence[Stage],
    resources: Resources,
    jobs_before: Sequence[str] = (),
) -> Submission:
    """The job of a stage, or an array of several that are alike."""
    kind = type(stages[0])
    name = stages[0].name if len(stages) == 1 else f"{kind.__name__.lower()}s"
    return Submission(
        name=f"{experiment.name}.{name}",
        payloads=tuple(_payload(experiment, stage) for stage in stages),
        layout=ALONE if kind is Report else resources.layout,
        settings=resources.settings,
        folder=experiment.folder / JOB_FOLDER,
        command=resources.command,
        dependency=":".join(["afterok", *jobs_before]) if jobs_before else None,
        allow_code_change=resources.allow_code_change,
    )


def _payload(experiment: Experiment, stage: Stage) -> Payload:
    folder = str(experiment.folder_of(stage.name))
    match stage:
        case Training():
            return TrainingPayload(stage.config.model_dump(mode="json"))
        case Evaluation():
            training = experiment.stages[stage.network]
            assert isinstance(training, Training)
            return EvaluationPayload(
                network=str(experiment.folder_of(stage.network)),
                root=str(training.config.data.root),
                protocols=stage.protocols,
                scales=stage.scales,
                settings=stage.settings,
                folder=folder,
                definition=definition(stage),
            )
        case Report():
            evaluations = tuple(str(experiment.folder_of(name)) for name in stage.evaluations)
            return ReportPayload(evaluations, folder, definition(stage))


def _write_experiment(experiment: Experiment) -> None:
    """Keeps what is run beside what comes of it."""
    temporary = experiment.folder / f"{EXPERIMENT_FILE}.tmp"
    try:
        temporary.write_text(experiment.to_yaml(), encoding="utf-8")
        os.replace(temporary, experiment.folder / EXPERIMENT_FILE)
    except OSError as error:
        raise ConfigError(f"{quote(experiment.folder)} cannot be written: {error}.") from error


class _Clock:
    """The time that stages will take, by that of those before."""

    START_SECONDS = 20.0
    """What every job takes beside its work."""

    def __init__(self, expected: Mapping[str, float]) -> None:
        self._expected = {name: seconds + self.START_SECONDS for name, seconds in expected.items()}
        self._finished = 0.0
        self._began_at = time.monotonic()

    def finish(self, name: str) -> None:
        self._finished += self._expected.pop(name)

    def leave_out(self, name: str) -> None:
        del self._expected[name]

    def left(self) -> str:
        """`, about 0:12:00 left`, once something is known."""
        if not self._finished:
            return ""
        pace = (time.monotonic() - self._began_at) / self._finished
        return f", about {duration(pace * sum(self._expected.values()))} left"
