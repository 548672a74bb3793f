"""What the files of a run folder say of its training, to programs without torch.

`vggdist/artifacts/run_folder.py` and others write them.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vggdist.artifacts.files import JsonLines, write_text
from vggdist.config import KNOBS, Config, total_steps
from vggdist.config_file import differences, load_config
from vggdist.errors import ConfigError

CONFIG_FILE = "config.yaml"
CHECKPOINTS = "checkpoints"
BEST_SUFFIX = "@best"
"""`RUN@best` is the best network of a run folder."""
BEST_FILE = "best.json"
_BEST_FOLDER = re.compile(r"best-(\d{8,})")
METRICS_FILE = "metrics.jsonl"
RESULT_FILE = "result.json"
LOG_FILE = "log.txt"
LOCK_FILE = "lock"
RUN_FILES = (CONFIG_FILE, METRICS_FILE, RESULT_FILE, LOG_FILE, "predictions.png", LOCK_FILE)
"""Files of a run folder that nothing else is written over."""


Point = dict[str, Any]
"""A line of `metrics.jsonl`."""


@dataclass(frozen=True)
class Curves:
    """The points of a training's curves, and where it is by the last ones; errors are fractions."""

    config: Config
    train: tuple[Point, ...]
    """In the order of their steps, as those of `validation`."""
    validation: tuple[Point, ...]

    @property
    def step(self) -> int:
        """The last that there is a point of."""
        return max((int(points[-1]["step"]) for points in self._begun()), default=0)

    @property
    def epoch(self) -> float:
        """The last that there is a point of."""
        return max((float(points[-1]["epoch"]) for points in self._begun()), default=0.0)

    @property
    def num_steps(self) -> int | None:
        """Of the whole training; None before its first point."""
        if not self.step:
            return None
        return total_steps(self.config, round(self.step * self.config.batch.global_ / self.epoch))

    @property
    def train_error(self) -> float | None:
        """Top-1, on the training images since the point before."""
        return self.train[-1].get("top1_error") if self.train else None

    @property
    def validation_error(self) -> float | None:
        """Top-1, of the last evaluation."""
        return self.validation[-1]["top1_error"] if self.validation else None

    @property
    def images_per_second(self) -> float | None:
        """Of all ranks, at the last point."""
        return self.train[-1].get("images_per_second") if self.train else None

    @property
    def seconds_left(self) -> float | None:
        """At that speed, without evaluations to come."""
        if self.num_steps is None or not self.images_per_second:
            return None
        steps = max(0, self.num_steps - self.step)
        return steps * self.config.batch.global_ / self.images_per_second

    def _begun(self) -> Iterator[tuple[Point, ...]]:
        return (points for points in (self.train, self.validation) if points)


@dataclass(frozen=True)
class Best:
    """The evaluation of a training with the lowest top-1 error, the earliest of several."""

    step: int
    epoch: float
    top1_error: float
    """A fraction."""
    folder: Path | None = None
    """Of its weights; None: they were not kept, as by earlier versions."""


def changed_settings(before: Config, now: Config) -> dict[str, tuple[object, object]]:
    """`section.key` -> (old, new), where a training would not be the same one any more."""
    return {
        key: values
        for key, values in differences(before, now).items()
        if not KNOBS[key].may_change_to(now, before)
    }


def has_begun(folder: Path) -> bool:
    """Whether a training has taken a step: its first one is a point of the curves."""
    metrics = folder / METRICS_FILE
    return metrics.exists() and metrics.stat().st_size > 0


def read_config(folder: Path) -> Config | None:
    """The configuration of the training in a run folder, if it can be read."""
    try:
        return load_config(folder / CONFIG_FILE)
    except ConfigError:
        return None


def read_result(folder: Path) -> dict[str, Any] | None:
    """`result.json`, which is there once all is done; None where it is not, or is damaged."""
    try:
        result = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) else None


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Writes `result.json` all at once: one that is there is whole.

    Raises:
        OSError: it cannot be written.
    """
    write_text(folder / RESULT_FILE, json.dumps(result, indent=1) + "\n")


def read_best(folder: Path) -> Best | None:
    """The best evaluation of the training in a run folder; None: there has been none.

    It is the network that was kept, or else the lowest point of the curves.
    """
    kept = [best for path in best_folders(folder / CHECKPOINTS) if (best := _read_kept(path))]
    return min(kept or _evaluations(folder), key=lambda b: (b.top1_error, b.step), default=None)


def best_folders(checkpoints: Path) -> list[Path]:
    """The folders of best networks: one, or two where a process was killed between them."""
    if not checkpoints.is_dir():
        return []
    return [path for path in checkpoints.iterdir() if _BEST_FOLDER.fullmatch(path.name)]


def _read_kept(path: Path) -> Best | None:
    try:
        told = json.loads((path / BEST_FILE).read_text())
        return Best(int(told["step"]), float(told["epoch"]), float(told["top1_error"]), path)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _evaluations(folder: Path) -> Iterator[Best]:
    for point in read_points(folder).get("validation", ()):
        with contextlib.suppress(KeyError, TypeError):
            yield Best(int(point["step"]), float(point["epoch"]), float(point["top1_error"]))


def read_curves(folder: Path, config: Config) -> Curves | None:
    """The curves of a training; None before the first step."""
    points = read_points(folder)
    if not points:
        return None
    validation = [p for p in points.get("validation", ()) if p.get("top1_error") is not None]
    return Curves(config, tuple(points.get("train", ())), tuple(validation))


def read_points(folder: Path) -> dict[str, list[Point]]:
    """Split -> the points of its curves in the order of their steps; none before the first step."""
    points: dict[str, list[Point]] = {}
    with contextlib.suppress(OSError):
        for point in JsonLines(folder / METRICS_FILE).read():
            with contextlib.suppress(KeyError, TypeError):
                if point["step"] > 0 and point["epoch"] > 0:
                    points.setdefault(point["split"], []).append(point)
    return points
