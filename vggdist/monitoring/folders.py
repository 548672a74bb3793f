"""The trainings below a folder: where each is, how good, how fast, and how long it still takes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vggdist.artifacts.files import is_locked
from vggdist.artifacts.paths import quote
from vggdist.artifacts.run_files import (
    CONFIG_FILE,
    LOCK_FILE,
    METRICS_FILE,
    Best,
    Curves,
    read_best,
    read_config,
    read_curves,
    read_result,
)
from vggdist.errors import ConfigError
from vggdist.model.configurations import configuration_name

State = Literal["running", "finished", "stopped"]


@dataclass(frozen=True)
class Run(Curves):
    """A run folder; errors are top-1, as fractions."""

    folder: Path
    state: State
    """running: a process trains there. stopped: the same command continues it."""
    result: dict[str, Any] | None
    """`result.json`, of a finished training."""
    best: Best | None
    """The evaluation with the least error, the first of several."""
    modified_at: float
    """When the last point was written, in seconds since 1970."""

    @property
    def configuration(self) -> str:
        """A column of Table 1, or `custom`."""
        return configuration_name(self.config.model.configuration)

    @property
    def images_per_second(self) -> float | None:
        """Of all ranks: while it runs at the last point, afterwards over the whole training."""
        if self.result is not None:
            return self.result.get("images_per_second")
        return super().images_per_second

    @property
    def seconds_left(self) -> float | None:
        """At the speed of the last point, without evaluations to come; None unless it runs."""
        return super().seconds_left if self.state == "running" else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "folder": str(self.folder),
            "configuration": self.configuration,
            "state": self.state,
            "step": self.step,
            "num_steps": self.num_steps,
            "epoch": self.epoch,
            "train_error": self.train_error,
            "validation_error": self.validation_error,
            "best_error": None if self.best is None else self.best.top1_error,
            "best_step": None if self.best is None else self.best.step,
            "best_epoch": None if self.best is None else self.best.epoch,
            "images_per_second": self.images_per_second,
            "seconds_left": self.seconds_left,
            "age_seconds": time.time() - self.modified_at,
        }


def find_runs(folder: Path) -> list[Run]:
    """The runs in a folder and below it, those with the newest points first.

    Raises:
        ConfigError: there is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"{quote(folder)} is no folder; give one that holds run folders.")
    runs = [run for found in _run_folders(folder) if (run := read_run(found)) is not None]
    return sorted(runs, key=lambda run: run.modified_at, reverse=True)


def open_runs(folders: Iterable[Path]) -> list[Run]:
    """These runs, in this order.

    Raises:
        ConfigError: some are no run folders; all are named.
    """
    runs = {folder: read_run(folder) for folder in folders}
    if none := [quote(folder) for folder, run in runs.items() if run is None]:
        raise ConfigError(
            f"{', '.join(none)}: no training has begun there. A run folder holds {CONFIG_FILE} and "
            f"{METRICS_FILE}; `vggdist runs DIR` lists those below a folder."
        )
    return [run for run in runs.values() if run is not None]


def read_run(folder: Path) -> Run | None:
    """The training in a folder; None if there is none, or its configuration cannot be read."""
    metrics = folder / METRICS_FILE
    config = read_config(folder)
    if config is None or not metrics.is_file():
        return None
    curves = read_curves(folder, config)
    run = Run(
        config,
        curves.train if curves else (),
        curves.validation if curves else (),
        folder,
        "running" if is_locked(folder / LOCK_FILE) else "stopped",
        None,
        read_best(folder),
        metrics.stat().st_mtime,
    )
    result = read_result(folder)
    # A training that is made longer has the result of its first part until it is finished again.
    if run.state == "running" or result is None or result.get("steps") != run.step:
        return run
    return replace(run, state="finished", result=result)


def _run_folders(folder: Path) -> Iterator[Path]:
    """Does not look into run folders, nor into hidden ones."""
    for path, names, files in os.walk(folder):
        names[:] = [name for name in names if not name.startswith(".")]
        if CONFIG_FILE in files and METRICS_FILE in files:
            names.clear()
            yield Path(path)
