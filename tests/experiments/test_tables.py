"""An experiment as text."""

import re
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from tests.experiments.made_experiments import finish, make_experiment
from vggdist.experiments.estimate import estimate
from vggdist.experiments.runner import missing
from vggdist.experiments.schema import load_experiment
from vggdist.experiments.stages import Experiment
from vggdist.experiments.status import read_status
from vggdist.experiments.tables import render_estimate, render_status

PAPER = Path(__file__).parents[2] / "configs" / "experiments" / "paper.yaml"
Usage = namedtuple("Usage", "total used free")


def estimated(experiment: Experiment, world_size: int = 1, on_gpus: bool = False) -> str:
    statuses = read_status(experiment)
    costs = estimate(experiment, missing(statuses), world_size, on_gpus)
    text = render_estimate(experiment, statuses, costs)
    return re.sub(r"[│┃\s]+", " ", text)


def test_the_estimate_names_every_missing_stage_and_what_it_is(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path)
    finish(experiment, "a")
    text = estimated(experiment)
    assert " a training " not in text, "it is done"
    assert " b training from a 74 " in text
    assert " test_a dense at 32, 40 of a " in text
    assert " tables report on test_a, test_b " in text
    assert " 7 jobs " in text
    assert "Of 8 stages 1 are done, and 0 run or are queued." in text


def test_hours_are_of_gpus_or_of_ranks_and_the_assumed_speed_is_said(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path)
    on_cpus, on_gpus = estimated(experiment), estimated(experiment, 4, on_gpus=True)
    assert " rank hours " in on_cpus
    assert "Assumed: 0.2 TFLOP/s sustained by each rank (--teraflops)" in on_cpus
    assert " GPU hours " in on_gpus
    assert "Assumed: 100 TFLOP/s sustained by each GPU (--teraflops)" in on_gpus
    assert "On 4 GPUs for each job" in on_gpus


def test_a_disk_that_is_too_small_is_told_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_experiment(tmp_path)
    assert "warning" not in estimated(experiment)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 1500, 1500))
    text = estimated(experiment)
    # 2 checkpoints of 5 trainings, and three posteriors files of 50,000 x 3 numbers
    assert f"warning: {tmp_path}/it has 1.5 kB of free space, less than the " in text


def test_a_stage_that_waits_for_many_names_two(tmp_path: Path) -> None:
    experiment = load_experiment(PAPER, [f"folder={tmp_path}/it"])
    text = re.sub(r"[│\s]+", " ", render_status(experiment, read_status(experiment)))
    assert " a_256 waiting to be run " in text
    assert " b_256 waiting for a_256 " in text
    assert " report waiting for evaluate_a_256, evaluate_a_lrn_256 and 10 more " in text


def test_names_of_a_sweep_s_stages_are_whole_in_a_narrow_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vggdist.experiments.tables._WIDTH", 60)
    experiment = load_experiment(PAPER.with_name("sweep.yaml"), [f"folder={tmp_path}/it"])
    text = render_status(experiment, read_status(experiment))
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    stages = re.sub(r"[│\s]+", "", text.replace("waiting", "").replace("to be run", ""))
    for stage in experiment.stages:
        assert stage in stages
