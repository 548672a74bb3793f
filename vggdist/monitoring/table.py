"""The table of runs."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from vggdist.artifacts.paths import quote
from vggdist.monitoring.folders import Run
from vggdist.terminal import duration, render_table

HEAD = (
    "run",
    "configuration",
    "state",
    "step",
    "epoch",
    "train error",
    "validation",
    "best",
    "at epoch",
    "images/s",
    "left",
    "last point",
)


def render_runs(runs: Sequence[Run]) -> str:
    """A row for each run; errors are top-1."""
    now = time.time()
    rows = [
        (
            name,
            run.configuration,
            run.state,
            f"{run.step:,}" + ("" if run.num_steps is None else f" of {run.num_steps:,}"),
            f"{run.epoch:.1f}",
            percent(run.train_error),
            percent(run.validation_error),
            "" if run.best is None else percent(run.best.top1_error),
            "" if run.best is None else f"{run.best.epoch:.1f}",
            rate(run.images_per_second),
            "" if run.seconds_left is None else duration(run.seconds_left),
            f"{age(now - run.modified_at)} ago",
        )
        for run, name in zip(runs, names_of(runs), strict=True)
    ]
    return render_table(HEAD, rows)


def names_of(runs: Sequence[Run]) -> list[str]:
    """Short names, all different: the folders without what they have in common in front."""
    folders = [os.path.abspath(run.folder) for run in runs]
    parents = {os.path.dirname(folder) for folder in folders}
    common = os.path.commonpath(parents) if parents else ""
    return [quote(os.path.relpath(folder, common)) for folder in folders]


def percent(error: float | None) -> str:
    """A fraction in percent; nothing where there is none."""
    return "" if error is None else f"{100 * error:.2f} %"


def rate(images_per_second: float | None) -> str:
    """Images per second; nothing where they were not measured."""
    return "" if images_per_second is None else f"{images_per_second:,.1f}"


def age(seconds: float) -> str:
    """`93.4` -> `1 min`."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length or (unit != "days" and seconds >= length):
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
