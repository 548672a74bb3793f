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
    """Where a training is, by the last points of its curves; errors are fractions."""

    step: int
    epoch: float
    train_error: float | None
    """Top-1, on the training images since the point before."""
    validation_error: float | None
    """Top-1, of the latest evaluation."""
    seconds_left: float | None
    """At the speed of the last point, without evaluations to come."""


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
    with contextlib.suppress(OSError):
        for point in JsonLines(folder / METRICS_FILE).read():
            with contextlib.suppress(KeyError, TypeError):
                if point["split"] == "validation":
                    yield Best(
                        int(point["step"]), float(point["epoch"]), float(point["top1_error"])
                    )


def read_curves(folder: Path, config: Config) -> Curves | None:
    """The last points of the curves; None before the first step."""
    last = {split: points[-1] for split, points in read_points(folder).items()}
    if not last:
        return None
    train, validation = last.get("train", {}), last.get("validation", {})
    newest = max(last.values(), key=lambda point: int(point["step"]))
    step, epoch = int(newest["step"]), float(newest["epoch"])
    seconds_left = None
    if speed := train.get("images_per_second"):
        num_images = round(step * config.batch.global_ / epoch)
        steps_left = max(0, total_steps(config, num_images) - step)
        seconds_left = steps_left * config.batch.global_ / float(speed)
    return Curves(step, epoch, train.get("top1_error"), validation.get("top1_error"), seconds_left)


def read_points(folder: Path) -> dict[str, list[Point]]:
    """Split -> the points of its curves in the order of their steps; none before the first step."""
    points: dict[str, list[Point]] = {}
    with contextlib.suppress(OSError):
        for point in JsonLines(folder / METRICS_FILE).read():
            with contextlib.suppress(KeyError, TypeError):
                if point["step"] > 0 and point["epoch"] > 0:
                    points.setdefault(point["split"], []).append(point)
    return points
