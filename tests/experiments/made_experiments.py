"""An experiment whose stages a test finishes by hand."""

import json
import os
from pathlib import Path
from typing import Any

from vggdist.config_file import to_yaml
from vggdist.experiments.schema import load_experiment
from vggdist.experiments.stages import Evaluation, Experiment, Report, Training, definition

TEXT = """
folder: {folder}
data: /images
stages:
  a: {{config: net.yaml}}
  b: {{config: net.yaml, start: a}}
  c: {{config: net.yaml, start: a}}
  rates:
    config: net.yaml
    sweep: [optimizer.learning_rate=0.5, optimizer.learning_rate=0.25]
  test_a: {{evaluate: a, scales: [32, 40]}}
  test_b: {{evaluate: b, scales: [32]}}
  tables: {{report: [test_a, test_b]}}
"""
NET = "model: {configuration: [[3-8], [3-16]], num_classes: 3}\ndata: {crop_size: 32}\n"


def make_experiment(folder: Path, *overrides: str) -> Experiment:
    """The experiment, in `folder/it`."""
    (folder / "net.yaml").write_text(NET)
    (folder / "it.yaml").write_text(TEXT.format(folder=folder / "it"))
    return load_experiment(folder / "it.yaml", overrides)


def begin(experiment: Experiment, name: str) -> None:
    """What a training leaves after its first epoch: 10 of 740 steps, at 64 images/s."""
    stage, folder = experiment.stages[name], experiment.folder_of(name)
    assert isinstance(stage, Training)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(stage.config))
    train = {"split": "train", "top1_error": 0.75, "images_per_second": 64.0}
    points = [{"step": 10, "epoch": 1.0} | point for point in (train, VALIDATION)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))


VALIDATION: dict[str, Any] = {"split": "validation", "top1_error": 0.5, "top5_error": 0.25}


def finish(experiment: Experiment, name: str, top1_error: float = 0.125, at: float = 0.0) -> None:
    """What a stage leaves when it is done, `at` seconds after the epoch."""
    stage, folder = experiment.stages[name], experiment.folder_of(name)
    result: dict[str, Any] = {"top1_error": top1_error, "top5_error": 0.0}
    if isinstance(stage, Training):
        begin(experiment, name)
    if isinstance(stage, Evaluation | Report):
        folder.mkdir(parents=True, exist_ok=True)
        result = {"stage": definition(stage)} | (result if isinstance(stage, Evaluation) else {})
    file = folder / "result.json"
    file.write_text(json.dumps(result))
    os.utime(file, (at, at))
