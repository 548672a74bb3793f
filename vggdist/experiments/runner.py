"""Runs what is missing of an experiment: as SLURM jobs that wait for each other, or here, in order.

What is done, runs or is queued is left alone, so the same command may be given again at any time.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from vggdist.artifacts import files
from vggdist.config import split_batch
from vggdist.errors import EXIT_STOPPED, ConfigError
from vggdist.experiments import job_log
from vggdist.experiments.payloads import EvaluationPayload, ReportPayload
from vggdist.experiments.stages import (
    EXPERIMENT_FILE,
    Evaluation,
    Experiment,
    Report,
    Stage,
    Training,
)
from vggdist.experiments.status import StageStatus, read_stage_result, settings_problem
from vggdist.slurm.job import Payload, TrainingPayload
from vggdist.slurm.submit import Layout, Submission, run_local, submit
from vggdist.terminal import duration

ALONE = Layout(nodes=1, ranks_per_node=1, gpus_per_node=0)
"""A report adds up files."""
START_SECONDS = 20.0
"""What every job takes beside its work."""


def missing(statuses: Mapping[str, StageStatus]) -> tuple[str, ...]:
    """The stages to run now."""
    return tuple(
        name for name, status in statuses.items() if status.state != "done" and not status.is_live
    )


def problems(experiment: Experiment, wanted: Sequence[str], layout: Layout) -> list[str]:
    """What jobs would meet only after hours of waiting, as sentences."""
    sentences = [
        f"stage {stage.name}: {problem}"
        for stage in experiment.trainings
        if (problem := settings_problem(experiment, stage))
    ]
    trainings = [stage for stage in experiment.trainings if stage.name in wanted]
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
    experiment: Experiment,
    statuses: Mapping[str, StageStatus],
    template: Submission,
    say: Callable[[str], None],
) -> dict[str, str]:
    """Submits all stages that are missing, each after those that it needs.

    Stages that are alike, with the same ranks after the same jobs, are one array.

    Args:
        template: what all jobs have in common.
        say: is told of every job that SLURM took, in a line.

    Returns:
        Stage -> its job, of those that were submitted.

    Raises:
        DistributedError: there is no SLURM here, or it refuses; what it took is recorded.
        ConfigError: somebody else submits at the moment, or the folder cannot be written.
    """
    waiting = [experiment.stages[name] for name in missing(statuses)]
    jobs = {name: str(status.job) for name, status in statuses.items() if status.is_live}
    submitted: dict[str, str] = {}
    with job_log.hold(experiment.folder):
        _write_experiment(experiment)
        while waiting:
            left = {stage.name for stage in waiting}
            alike: dict[tuple[type[Stage], tuple[str, ...]], list[Stage]] = defaultdict(list)
            for stage in waiting:
                if left.isdisjoint(stage.needs):
                    after = tuple(name for name in stage.needs if name in jobs)
                    alike[type(stage), after].append(stage)
            for (_, after), stages in alike.items():
                before = [jobs[name] for name in after]
                ids = submit(_submission(experiment, stages, template, before))
                new = dict(zip([stage.name for stage in stages], ids, strict=True))
                for name, job in new.items():
                    job_log.note(experiment.folder, name, job)
                jobs |= new
                submitted |= new
                behind = f" after {', '.join(after)}" if after else ""
                say(f"job {', '.join(ids)}: {', '.join(new)}{behind}")
            waiting = [stage for stage in waiting if stage.name not in jobs]
    return submitted


def run_here(
    experiment: Experiment,
    statuses: Mapping[str, StageStatus],
    template: Submission,
    say: Callable[[str], None],
    expected_seconds: Mapping[str, float],
) -> int:
    """Runs all stages that are missing one after the other in processes of this machine.

    A stage that fails holds back only what needs it.

    Args:
        template: what all jobs have in common.
        say: is told what happens, in sentences.
        expected_seconds: of each stage, for the time that is left; how they compare counts.

    Returns:
        0 if every stage is done, `EXIT_STOPPED` after a signal, else the code of the first that
        failed.
    """
    names = missing(statuses)
    left = {name: START_SECONDS + expected_seconds[name] for name in names}
    began, finished, exit_code = time.monotonic(), 0.0, 0
    with job_log.hold(experiment.folder):
        _write_experiment(experiment)
        for number, name in enumerate(names, start=1):
            stage = experiment.stages[name]
            lacking = [
                need
                for need in stage.needs
                if read_stage_result(experiment, experiment.stages[need]) is None
            ]
            if lacking:
                say(f"stage {name} is held back: {', '.join(lacking)} is not done.")
                del left[name]
                continue
            text = f"stage {name}, {number} of {len(names)}"
            if finished:
                seconds = (time.monotonic() - began) * sum(left.values()) / finished
                text += f", about {duration(seconds)} left"
            say(text)
            code = _run_one(experiment, stage, template)
            finished += left.pop(name)
            if code == EXIT_STOPPED:
                say("stopped; the same command continues.")
                return code
            exit_code = exit_code or code
    return exit_code


def _run_one(experiment: Experiment, stage: Stage, template: Submission) -> int:
    started: list[str] = []

    def note_start(job: str) -> None:
        started.append(job)
        job_log.note(experiment.folder, stage.name, job, here=True)

    code = run_local(_submission(experiment, [stage], template), started=note_start)
    job_log.note(experiment.folder, stage.name, started[0], here=True, exit_code=code)
    return code


def _submission(
    experiment: Experiment,
    stages: Sequence[Stage],
    template: Submission,
    jobs_before: Sequence[str] = (),
) -> Submission:
    """The job of a stage, or an array of several that are alike."""
    kind = type(stages[0])
    name = stages[0].name if len(stages) == 1 else f"{kind.__name__.lower()}s"
    return replace(
        template,
        name=f"{experiment.name}.{name}",
        payloads=tuple(_payload(experiment, stage) for stage in stages),
        layout=ALONE if kind is Report else template.layout,
        dependency=":".join(["afterok", *jobs_before]) if jobs_before else None,
    )


def _payload(experiment: Experiment, stage: Stage) -> Payload:
    folder = str(experiment.folder_of(stage.name))
    match stage:
        case Training(config=config):
            return TrainingPayload(config.model_dump(mode="json"))
        case Evaluation(network=network):
            root = str(experiment.training(network).config.data.root)
            return EvaluationPayload(stage, str(experiment.folder_of(network)), root, folder)
        case Report(evaluations=evaluations):
            sources = tuple(str(experiment.folder_of(name)) for name in evaluations)
            return ReportPayload(stage, sources, folder)


def _write_experiment(experiment: Experiment) -> None:
    """Keeps the experiment with its results."""
    try:
        files.write_text(experiment.folder / EXPERIMENT_FILE, experiment.to_yaml())
    except OSError as error:
        raise job_log.not_writable(experiment.folder, error) from error
