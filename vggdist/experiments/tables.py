"""An experiment for people: what it will take, how far each stage is, and its sweeps."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vggdist.artifacts.paths import quote
from vggdist.experiments.estimate import Estimate, StageEstimate
from vggdist.experiments.stages import Evaluation, Experiment, Report, Stage, Training
from vggdist.experiments.status import StageStatus
from vggdist.terminal import duration

_WIDTH = 120
_FEW = 2


def render_estimate(
    experiment: Experiment, statuses: Mapping[str, StageStatus], estimate: Estimate
) -> str:
    """What is missing and what it will take, with all that is assumed; the caller prints it."""
    device = "GPU" if estimate.on_gpus else "rank"
    table = Table()
    table.add_column("stage")
    table.add_column("what")
    for name in ("epochs", f"{device} hours", "disk"):
        table.add_column(name, justify="right")
    for one in estimate.stages:
        stage = experiment.stages[one.stage]
        table.add_row(one.stage, _what(stage), *_costs(one))
    total = f"{estimate.device_hours:,.2f}", _bytes(estimate.num_bytes)
    table.add_section()
    table.add_row(f"{len(estimate.stages)} jobs", "", "", *total)
    title = f"Experiment {quote(experiment.name)}: what is missing"
    return "\n".join([title, _drawn(table), *_assumptions(experiment, statuses, estimate)])


def render_status(experiment: Experiment, statuses: Mapping[str, StageStatus]) -> str:
    """How far every stage is, and a table of results for each sweep; the caller prints it."""
    table = Table()
    table.add_column("stage")
    table.add_column("state", no_wrap=True)
    table.add_column("")
    for name, status in statuses.items():
        table.add_row(name, status.state, escape(_said(status)))
    counts = Counter(status.state for status in statuses.values())
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    title = f"Experiment {quote(experiment.name)}: {quote(experiment.folder)}"
    parts = [title, _drawn(table), f"{len(statuses)} stages: {summary}"]
    for name, rows in sweeps(experiment, statuses).items():
        parts.append("\n" + _drawn(_sweep_table(name, rows)))
    return "\n".join(parts)


def status_to_dict(experiment: Experiment, statuses: Mapping[str, StageStatus]) -> dict[str, Any]:
    """The same, ready for JSON."""
    return {
        "experiment": experiment.name,
        "folder": str(experiment.folder),
        "counts": Counter(status.state for status in statuses.values()),
        "stages": {name: status.to_dict() for name, status in statuses.items()},
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


def _sweep_table(name: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=f"Sweep {name}", title_justify="left")
    table.add_column("overrides")
    table.add_column("state")
    for column in ("epochs", "top-1 error", "top-5 error"):
        table.add_column(column, justify="right")
    for row in rows:
        epoch = "" if row["epoch"] is None else f"{row['epoch']:.2f}"
        errors = _percent(row["top1_error"]), _percent(row["top5_error"])
        table.add_row(escape(row["overrides"]), row["state"], epoch, *errors)
    return table


def _said(status: StageStatus) -> str:
    """What there is to say of a stage, in one line."""
    parts = list(_parts(status))
    if status.requeued:
        times = "once" if status.requeued == 1 else f"{status.requeued} times"
        parts.append(f"requeued {times}")
    if status.is_live and status.job:
        parts.append(f"job {status.job}")
    return ", ".join(parts)


def _parts(status: StageStatus) -> Iterator[str]:
    match status.state:
        case "waiting":
            waits_for = f"for {_few(status.waits_for)}" if status.waits_for else "to be run"
            yield waits_for
        case "queued":
            yield status.reason
        case "done":
            if status.top1_error is not None:
                yield f"top-1 error {_percent(status.top1_error)}"
                yield f"top-5 error {_percent(status.top5_error)}"
        case "failed":
            yield status.error
        case "running" | "stopped":
            yield from _progress(status)
            if status.error:
                yield status.error


def _progress(status: StageStatus) -> Iterator[str]:
    if status.epoch is not None:
        yield f"epoch {status.epoch:.2f}"
    if status.top1_error is not None:
        yield f"top-1 error {_percent(status.top1_error)}"
    if status.train_error is not None:
        yield f"in training {_percent(status.train_error)}"
    if status.state == "running" and status.seconds_left is not None:
        yield f"about {duration(status.seconds_left)} left"
    if status.state == "running" and status.elapsed_seconds is not None:
        yield f"for {duration(status.elapsed_seconds)}"


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
    free = _free_bytes(experiment.folder)
    if free < estimate.num_bytes:
        yield (
            f"warning: {quote(experiment.folder)} has {_bytes(free)} of free space, less than the "
            f"{_bytes(estimate.num_bytes)} that are needed."
        )


def _what(stage: Stage) -> str:
    match stage:
        case Training(start=None):
            return "training"
        case Training(start=start):
            return f"training from {start}"
        case Evaluation(network=network, protocols=protocols, scales=scales):
            at = f" at {', '.join(map(str, scales))}" if scales else ""
            return f"{' + '.join(protocols)}{at} of {network}"
        case Report(evaluations=evaluations):
            return f"report on {_few(evaluations)}"


def _costs(one: StageEstimate) -> tuple[str, str, str]:
    epochs = "" if one.num_epochs is None else f"{one.num_epochs:g}"
    hours = f"{one.device_hours:,.2f}" if one.petaflop else ""
    return epochs, hours, _bytes(one.num_bytes) if one.num_bytes else ""


def _few(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:_FEW])
    return f"{shown} and {len(names) - _FEW} more" if len(names) > _FEW else shown


def _percent(error: float | None) -> str:
    return "" if error is None else f"{100 * error:.2f} %"


def _bytes(count: float) -> str:
    """`2213720704` -> `2.2 GB`, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if count >= 100 else f"{count:.2g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _free_bytes(folder: Path) -> int:
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(there).free


def _drawn(table: Table) -> str:
    console = Console(width=None if Console().is_terminal else _WIDTH)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip("\n")
