"""An experiment for people: what it will take, how far each stage is, and its sweeps."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich import filesize
from rich.table import Table

from vggdist.artifacts.paths import quote
from vggdist.experiments.estimate import Estimate
from vggdist.experiments.stages import Evaluation, Experiment, Report, Stage, Training
from vggdist.experiments.status import StageStatus
from vggdist.terminal import duration, render

_WIDTH = 120
_FEW = 2


def render_estimate(
    experiment: Experiment, statuses: Mapping[str, StageStatus], estimate: Estimate
) -> str:
    """What is missing and what it will take, with all that is assumed; the caller prints it."""
    device = "GPU" if estimate.on_gpus else "rank"
    rows = [
        (
            stage.stage,
            _what(experiment.stages[stage.stage]),
            "" if stage.num_epochs is None else f"{stage.num_epochs:g}",
            f"{stage.device_hours:,.2f}" if stage.petaflop else "",
            filesize.decimal(stage.num_bytes) if stage.num_bytes else "",
        )
        for stage in estimate.stages
    ]
    hours, num_bytes = f"{estimate.device_hours:,.2f}", filesize.decimal(estimate.num_bytes)
    total = (f"{len(rows)} jobs", "", "", hours, num_bytes)
    columns = ("stage", "what", "epochs", f"{device} hours", "disk")
    title = f"Experiment {quote(experiment.name)}: what is missing"
    drawn = _draw(columns, rows, num_texts=2, total=total)
    return "\n".join([title, drawn, *_assumptions(experiment, statuses, estimate)])


def render_status(experiment: Experiment, statuses: Mapping[str, StageStatus]) -> str:
    """How far every stage is, and a table of results for each sweep; the caller prints it."""
    rows = [(name, status.state, _describe(status)) for name, status in statuses.items()]
    counts = Counter(status.state for status in statuses.values())
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    parts = [
        f"Experiment {quote(experiment.name)}: {quote(experiment.folder)}",
        _draw(("stage", "state", ""), rows, num_texts=3),
        f"{len(statuses)} stages: {summary}",
    ]
    columns = ("overrides", "state", "epochs", "top-1 error", "top-5 error")
    for name, sweep in sweeps(experiment, statuses).items():
        rows_of_sweep = [
            (
                row["overrides"],
                row["state"],
                "" if row["epoch"] is None else f"{row['epoch']:.2f}",
                _percent(row["top1_error"]),
                _percent(row["top5_error"]),
            )
            for row in sweep
        ]
        parts.append("\n" + _draw(columns, rows_of_sweep, num_texts=2, title=f"Sweep {name}"))
    return "\n".join(parts)


def status_to_dict(experiment: Experiment, statuses: Mapping[str, StageStatus]) -> dict[str, Any]:
    """The same, ready for JSON."""
    return {
        "experiment": experiment.name,
        "folder": str(experiment.folder),
        "counts": Counter(status.state for status in statuses.values()),
        "stages": {name: asdict(status) for name, status in statuses.items()},
        "sweeps": sweeps(experiment, statuses),
    }


def sweeps(
    experiment: Experiment, statuses: Mapping[str, StageStatus]
) -> dict[str, list[dict[str, Any]]]:
    """Sweep -> its trainings, the lowest top-1 error first; errors are fractions."""
    found: dict[str, list[dict[str, Any]]] = {}
    for stage in experiment.stages.values():
        if isinstance(stage, Training) and stage.sweep:
            status = statuses[stage.name]
            row = {
                "overrides": stage.overrides,
                "state": status.state,
                "epoch": status.epoch,
                "top1_error": status.top1_error,
                "top5_error": status.top5_error,
            }
            found.setdefault(stage.sweep, []).append(row)
    for rows in found.values():
        rows.sort(key=lambda row: 2.0 if row["top1_error"] is None else row["top1_error"])
    return found


def _describe(status: StageStatus) -> str:
    """What there is to say of a stage, in one line."""
    parts: list[str] = []
    is_running = status.state == "running"
    match status.state:
        case "waiting":
            parts = [f"for {_few(status.waits_for)}" if status.waits_for else "to be run"]
        case "queued":
            parts = [status.reason]
        case "done" if status.top1_error is not None:
            parts = [
                f"top-1 error {_percent(status.top1_error)}",
                f"top-5 error {_percent(status.top5_error)}",
            ]
        case "failed":
            parts = [status.error]
        case "running" | "stopped":
            if status.epoch is not None:
                parts.append(f"epoch {status.epoch:.2f}")
            if status.top1_error is not None:
                parts.append(f"top-1 error {_percent(status.top1_error)}")
            if status.train_error is not None:
                parts.append(f"in training {_percent(status.train_error)}")
            if is_running and status.seconds_left is not None:
                parts.append(f"about {duration(status.seconds_left)} left")
            if is_running and status.elapsed_seconds is not None:
                parts.append(f"for {duration(status.elapsed_seconds)}")
            if status.error:
                parts.append(status.error)
    if status.requeued:
        parts.append("requeued " + ("once" if status.requeued == 1 else f"{status.requeued} times"))
    if status.is_live and status.job:
        parts.append(f"job {status.job}")
    return ", ".join(parts)


def _assumptions(
    experiment: Experiment, statuses: Mapping[str, StageStatus], estimate: Estimate
) -> Iterator[str]:
    live = sum(status.is_live for status in statuses.values())
    done = sum(status.state == "done" for status in statuses.values())
    if live or done:
        yield f"Of {len(statuses)} stages {done} are done, and {live} run or are queued."
    device = "GPU" if estimate.on_gpus else "rank"
    yield (
        f"Assumed: {estimate.teraflops:g} TFLOP/s sustained by each {device} (--teraflops), "
        f"{estimate.images.num_train:,} training and {estimate.images.num_val:,} validation images "
        f"({estimate.images.note}), whole images of 4:3. Epochs are at most; checkpoints are those "
        "that stay."
    )
    yield (
        f"On {estimate.world_size} {device}{'s' * (estimate.world_size > 1)} for each job, the "
        f"stages that wait for each other take {estimate.longest_hours:,.2f} hours, if no job "
        "waits for its turn."
    )
    folder = experiment.folder.absolute()
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.is_dir())).free
    if free < estimate.num_bytes:
        yield (
            f"warning: {quote(experiment.folder)} has {filesize.decimal(free)} of free space, less "
            f"than the {filesize.decimal(estimate.num_bytes)} that are needed."
        )


def _what(stage: Stage) -> str:
    match stage:
        case Training(start=start):
            return "training" if start is None else f"training from {start}"
        case Evaluation(network=network, protocols=protocols, scales=scales):
            at_scales = f" at {', '.join(map(str, scales))}" if scales else ""
            return f"{' + '.join(protocols)}{at_scales} of {network}"
        case Report(evaluations=evaluations):
            return f"report on {_few(evaluations)}"


def _few(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:_FEW])
    return f"{shown} and {len(names) - _FEW} more" if len(names) > _FEW else shown


def _percent(error: float | None) -> str:
    return "" if error is None else f"{100 * error:.2f} %"


def _draw(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    num_texts: int,
    total: Sequence[str] = (),
    title: str | None = None,
) -> str:
    """A table as text.

    Args:
        num_texts: columns of words; the others hold numbers.
        total: the last row, behind a line.
    """
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        is_text = place < num_texts
        table.add_column(
            column,
            justify="left" if is_text else "right",
            no_wrap=column == "state",
            overflow="fold",  # the names of a sweep's stages differ at their ends
        )
    for row in rows:
        table.add_row(*row)
    if total:
        table.add_section()
        table.add_row(*total)
    return render(table, width=_WIDTH)
