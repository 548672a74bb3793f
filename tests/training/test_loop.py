"""Whole trainings of a small engine, in one go or in parts; the oracle of the parts is one go."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.ranks import run_in_ranks
from tests.run_folders import records
from tests.training.small_engine import equal
from tests.training.small_training import Part
from vggdist.distributed.process import Process
from vggdist.evaluation.metrics import Errors
from vggdist.run_report import write_result
from vggdist.training.loop import Training
from vggdist.training.stop import StopSignal

pytestmark = pytest.mark.multi_process


class StopAfter(StopSignal):
    """A signal that has come once `step` steps are finished."""

    def __init__(self, training: Training, step: int) -> None:
        super().__init__()
        self._training, self._step = training, step

    @property
    def requested(self) -> bool:  # type: ignore[override]
        return self._training.step >= self._step

    @requested.setter
    def requested(self, value: bool) -> None:
        pass


def marks(folder: Path) -> list[tuple[int, str]]:
    """Texts of the schedule in TensorBoard, with their steps."""
    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    if "schedule/text_summary" not in board.Tags()["tensors"]:
        return []
    return [
        (event.step, event.tensor_proto.string_val[0].decode().strip())
        for event in board.Tensors("schedule/text_summary")
    ]



class Logged(logging.Handler):
    """What a training says."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        logger = logging.getLogger("vggdist")
        logger.setLevel(logging.INFO)
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def about(self, text: str) -> list[str]:
        return [line for line in self.lines if text in line]


PLATEAU = {"name": "plateau", "patience": 2, "num_decreases": 2, "factor": 0.5}
EVERY_THREE_STEPS = {"every_epochs": 0.75}


def in_parts(process: Process, folder: Path) -> dict[str, Any]:
    """One go of 40 steps; and five parts, of which two are stopped and two have fewer steps."""

    def part(name: str, num_steps: int) -> Part:
        return Part(
            process,
            folder / name,
            batch_norm=True,
            dropout=0.5,
            schedule={**PLATEAU, "num_steps": num_steps, "patience": 3, "num_decreases": 9},
            evaluation=EVERY_THREE_STEPS,
            checkpoint={"every_steps": 6},
        )

    whole = part("whole", 40)
    assert whole.train()
    for num_steps, stop_at in ((5, None), (40, 10), (20, None), (40, 31), (40, None)):
        one = part("parts", num_steps)
        ended = one.train(StopAfter(one.training, stop_at) if stop_at else None)
        assert ended == (stop_at is None)
    return {
        "steps": (whole.training.step, one.training.step),
        "schedules": (whole.training.schedule.state(), one.training.schedule.state()),
        "falls": len(whole.training.schedule.decreases(40)),
        "weights": equal(whole.weights(), one.weights()),
        "momentum": equal(whole.momentum(), one.momentum()),
    }


@pytest.mark.slow
def test_a_training_in_five_parts_is_to_the_bit_the_one_in_one_go(tmp_path: Path) -> None:
    (result,) = run_in_ranks(in_parts, 1, tmp_path)
    whole, parts = result["schedules"]
    assert result["steps"] == (40, 40)
    assert whole == parts
    assert whole["steps"] == list(range(3, 40, 3))
    assert result["falls"] >= 1, "else the learning rate proves nothing"
    assert result["weights"]
    assert result["momentum"]
    shown = [record for record in records(tmp_path / "parts", "validation")]
    assert {20, 40} < {record["step"] for record in shown}, "each part ends with an evaluation"


def never_better(_: Training) -> Errors:
    return Errors(100, 0.5, 0.25, 1.0)


def plateaus(process: Process, folder: Path) -> list[str]:
    logged = Logged()
    one = Part(
        process,
        folder,
        never_better,
        schedule={**PLATEAU, "num_steps": 100},
        evaluation=EVERY_THREE_STEPS,
    )
    assert one.train()
    write_result(one.training, folder)
    return logged.about("learning rate")


def test_a_plateau_that_ends_a_training_is_told_as_is_each_fall_of_the_rate(
    tmp_path: Path,
) -> None:
    (lines,) = run_in_ranks(plateaus, 1, tmp_path)
    cause = "no new low of the top-1 error for 2 evaluations"
    # The first evaluation is a low; each plateau is two more.
    falls = {9: "0.05", 15: "0.025"}
    told = [f"the learning rate falls to {r} at step {s}: {cause}." for s, r in falls.items()]
    end = (
        f"{cause} (schedule.patience), and the learning rate has fallen 2 times "
        "(schedule.num_decreases); the lowest error, 50.00 %, was that of step 3"
    )
    assert lines == [*told, f"training ends at step 21: {end}."]
    assert marks(tmp_path) == list(zip([9, 15, 21], lines, strict=True))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["ended"] == end
    assert result["decreases"] == [
        {"step": 9, "learning_rate": 0.05},
        {"step": 15, "learning_rate": 0.025},
    ]
