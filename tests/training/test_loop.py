"""Whole trainings of a small engine, in one go or in parts; the oracle of the parts is one go."""

import errno
import itertools
import json
import logging
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.ranks import run_in_ranks
from tests.run_folders import read_events, records
from tests.training.small_engine import engine_step, equal, small_engine
from tests.training.small_training import Part, StopAfter
from vggdist.artifacts import checkpoint
from vggdist.artifacts.run_files import Best
from vggdist.distributed.process import Process
from vggdist.errors import CheckpointError, DataError, NumericError
from vggdist.evaluation.metrics import Errors
from vggdist.training.loop import Training
from vggdist.training.report import write_result
from vggdist.training.signals import StopSignal

pytestmark = pytest.mark.multi_process


def marks(folder: Path) -> list[tuple[int, str]]:
    """Texts of the schedule in TensorBoard, with their steps."""
    board = read_events(folder)
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
    shown = records(tmp_path / "parts", "validation")
    assert {20, 40} < {record["step"] for record in shown}, "each part ends with an evaluation"


def never_better(_: Training, stop: StopSignal) -> Errors:
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
    write_result(one.training, tuple("abcde"), folder)
    newest = checkpoint.newest(folder / "checkpoints")
    assert newest is not None
    saved, state = checkpoint.load(newest), one.training.schedule.state()
    # As format 1 has it, which this version still reads.
    of_before = {**saved.state, "schedule": {"errors": state["errors"]}}
    of_before["errors"] = {**saved.state["errors"]}
    del of_before["errors"]["classes"]
    del of_before["evaluated_step"]
    one.training.load(replace(saved, state=of_before))
    assert one.training.schedule.state() == state
    assert one.training.evaluated_step == saved.step
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


SEVEN_STEPS = {
    "batch_norm": True,
    "schedule": {"num_steps": 7},
    "evaluation": EVERY_THREE_STEPS,
}


class SignalInEvaluation(StopSignal):
    """A signal that comes to rank 1 in the middle of the evaluation after some step."""

    def __init__(self, process: Process, step: int) -> None:
        super().__init__()
        self._comes_here, self._step = process.rank == 1, step
        self.training: Training | None = None
        self._asked = 0

    @property
    def requested(self) -> bool:  # type: ignore[override]
        assert self.training is not None
        if self._comes_here and self.training.step == self._step and not self._in_training:
            self._asked += 1
        return self._asked > 1

    @requested.setter
    def requested(self, value: bool) -> None:
        pass

    @property
    def _in_training(self) -> bool:
        assert self.training is not None
        return self.training.engine.module.training


def interrupted_evaluation(
    process: Process, folder: Path, step: int, every_steps: int
) -> dict[str, Any]:
    """A training whose evaluation after `step` is interrupted, and then goes on."""
    changes = {**SEVEN_STEPS, "checkpoint": {"every_steps": every_steps}}
    whole = Part(process, folder / "whole", **changes)
    whole.train()
    first = Part(process, folder / "parts", **changes)
    stop = SignalInEvaluation(process, step)
    stop.training = first.training
    ended = first.train(stop)
    saved = checkpoint.newest(folder / "parts" / "checkpoints")
    assert saved is not None
    second = Part(process, folder / "parts", **changes)
    return {
        "stopped": (not ended, first.training.step, saved.name, first.training.evaluated_step),
        "ended": second.train(),
        "weights": equal(whole.weights(), second.weights()),
        "momentum": equal(whole.momentum(), second.momentum()),
        "schedules": (whole.training.schedule.state(), second.training.schedule.state()),
        "errors": (whole.training.errors, second.training.errors),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("step", "every_steps"), [(3, 100), (3, 3), (7, 100)])
def test_a_signal_in_an_evaluation_saves_on_all_ranks_and_the_evaluation_is_made_up_for(
    tmp_path: Path, step: int, every_steps: int
) -> None:
    for result in run_in_ranks(interrupted_evaluation, 2, tmp_path, step, every_steps):
        assert result["stopped"] == (True, step, f"step-{step:08d}", -1 if step == 3 else 6)
        assert result["ended"]
        assert result["weights"]
        assert result["momentum"]
        for whole, parts in (result["schedules"], result["errors"]):
            assert whole == parts
    evaluated = [record["step"] for record in records(tmp_path / "parts", "validation")]
    assert evaluated == [3, 6, 7]


# Each schedule and its changes. In the last, no evaluation but the first is a new low: a decrease
# comes after every further one, and the training ends at step 9 or 12.
LONGER: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    (PLATEAU | {"patience": 1, "num_decreases": 9}, {"num_epochs": 3.0}, {"num_epochs": 4.0}),
    (
        {"name": "step", "step_epochs": 1.5, "warmup_epochs": 0.75},
        {"num_epochs": 3.0},
        {"num_epochs": 4.0},
    ),
    (
        PLATEAU | {"patience": 1, "num_epochs": 20.0},
        {"num_decreases": 1},
        {"num_decreases": 2},
    ),
]


def made_longer(process: Process, folder: Path, case: int) -> dict[str, Any]:
    """A training that is made longer once it has ended, and one that was so from the start."""
    usual, shorter, longer = LONGER[case]

    def part(name: str, changes: dict[str, Any]) -> Part:
        return Part(
            process,
            folder / name,
            never_better if case == 2 else None,
            batch_norm=True,
            dropout=0.5,
            schedule=usual | changes,
            evaluation=EVERY_THREE_STEPS,
            checkpoint={"every_steps": 5},
        )

    first = part("parts", shorter)
    assert first.train()
    second, whole = part("parts", longer), part("whole", longer)
    assert second.train()
    assert whole.train()
    return {
        "steps": (first.training.step, second.training.step, whole.training.step),
        "falls": [each.training.schedule.decreases(99) for each in (whole, second)],
        "weights": equal(whole.weights(), second.weights()),
        "momentum": equal(whole.momentum(), second.momentum()),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "steps"), [(0, (12, 16, 16)), (1, (12, 16, 16)), (2, (9, 12, 12))]
)
def test_a_training_that_is_made_longer_is_to_the_bit_one_that_was_so_from_the_start(
    tmp_path: Path, case: int, steps: tuple[int, ...]
) -> None:
    (found,) = run_in_ranks(made_longer, 1, tmp_path, case)
    assert found["steps"] == steps
    whole, parts = found["falls"]
    assert whole == parts
    assert whole, "else the learning rate proves nothing"
    assert found["weights"]
    assert found["momentum"]


ERRORS = {3: 60, 6: 40, 9: 40, 12: 50, 15: 30, 18: 30}
"""Images of 100 that an evaluation errs on, after each step."""


def scripted(training: Training, stop: StopSignal) -> Errors:
    return Errors(100, ERRORS[training.step] / 100, 0.25, 1.0)


def best_network(process: Process, folder: Path) -> list[tuple[Any, ...]]:
    """Parts of a training: what is best after each, and whether its weights are kept."""

    def train_until(num_steps: int, at: int) -> tuple[Any, ...]:
        part = Part(
            process,
            folder,
            scripted,
            schedule={"num_steps": num_steps},
            evaluation=EVERY_THREE_STEPS,
            checkpoint={"every_steps": 5},
        )
        if part.training.step == 0:
            snapshot(part, at)
        part.train()
        best = part.training.best.known
        assert best is not None
        assert best.folder is not None
        kept = load_file(best.folder / "weights.safetensors")
        return best.step, best.top1_error, equal(kept, weights), names_of(folder)

    def snapshot(part: Part, at: int) -> None:
        def evaluate(stop: StopSignal) -> Errors:
            if part.training.step == at:
                weights.update({n: t.clone() for n, t in part.weights().items()})
            return scripted(part.training, stop)

        part.training.evaluate = evaluate

    weights: dict[str, Any] = {}
    first = train_until(12, at=6)
    again = train_until(12, at=6)
    shutil.rmtree(folder / "checkpoints" / "best-00000006")  # as an earlier version leaves it
    older = Part(
        process,
        folder,
        scripted,
        schedule={"num_steps": 18},
        evaluation=EVERY_THREE_STEPS,
        checkpoint={"every_steps": 5},
    )
    known = older.training.best.known
    older.train()
    best = older.training.best.known
    return [first, again, (known,), (best,)]


def names_of(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_the_best_network_is_that_of_the_lowest_error_and_the_first_of_equal_ones(
    tmp_path: Path,
) -> None:
    (result,) = run_in_ranks(best_network, 1, tmp_path)
    first, again, (older,), (best,) = result
    names = ["best-00000006", "step-00000010", "step-00000012"]
    assert first == (6, 0.4, True, names)
    assert again == first, "a start that has nothing to do leaves it"
    assert older == Best(6, 1.5, 0.4)
    assert best == Best(15, 3.75, 0.3, tmp_path / "checkpoints" / "best-00000015")


def lower_at_the_end_of_a_part(process: Process, folder: Path) -> None:
    errors = {3: 0.6, 5: 0.2, 6: 0.5, 9: 0.4}
    for num_steps in (5, 9):
        part = Part(
            process,
            folder,
            lambda training, _: Errors(100, errors[training.step], 0.25, 1.0),
            schedule={"num_steps": num_steps},
            evaluation=EVERY_THREE_STEPS,
        )
        part.train()


def test_the_curve_of_the_best_error_never_rises(tmp_path: Path) -> None:
    run_in_ranks(lower_at_the_end_of_a_part, 1, tmp_path)
    points = records(tmp_path, "validation")
    assert [(p["step"], p["best_top1_error"]) for p in points] == [
        (3, 0.6),
        (5, 0.2),
        (6, 0.2),
        (9, 0.2),
    ]


def broken_evaluation(_: Training, stop: StopSignal) -> Errors:
    raise DataError("The image cat.jpg cannot be used.")


def save_before_evaluation(process: Process, folder: Path) -> tuple[int, bool, list[int]]:
    changes = {**SEVEN_STEPS, "checkpoint": {"every_steps": 3}}
    with pytest.raises(DataError):
        Part(process, folder, broken_evaluation, **changes).train()
    saved = [int(path.name[-8:]) for path in checkpoint.committed(folder / "checkpoints")]
    mended = Part(process, folder, **changes)
    begun = mended.training.step
    return begun, mended.train(), saved


def test_an_evaluation_that_fails_costs_no_step_and_is_made_when_it_can_be(
    tmp_path: Path,
) -> None:
    assert run_in_ranks(save_before_evaluation, 1, tmp_path) == [(3, True, [3])]
    assert [r["step"] for r in records(tmp_path, "validation")] == [3, 6, 7]


def repeated_evaluation(process: Process, folder: Path) -> None:
    """Killed soon after an evaluation whose checkpoint had been saved before it."""
    changes = {
        "schedule": {**PLATEAU, "num_steps": 12},
        "evaluation": EVERY_THREE_STEPS,
        "checkpoint": {"every_steps": 9},
    }
    killed = Part(process, folder, never_better, **changes)
    killed.train(StopAfter(killed.training, 10))
    shutil.rmtree(max((folder / "checkpoints").iterdir()))
    Part(process, folder, never_better, **changes).train()


def test_an_evaluation_that_is_made_again_is_written_once(tmp_path: Path) -> None:
    run_in_ranks(repeated_evaluation, 1, tmp_path)
    assert [r["step"] for r in records(tmp_path, "validation")] == [3, 6, 9, 12]
    board = read_events(tmp_path)
    assert [event.step for event in board.Scalars("validation/top1_error")] == [3, 6, 9, 12]
    assert [step for step, _ in marks(tmp_path)] == [9, 12]


def finite(process: Process) -> dict[str, bool]:
    """What an engine says of itself with one bad number in each of its parts."""
    found = {}
    for stage in (0, 1):
        engine = small_engine(process, batch_norm=True, zero_stage=stage)
        engine_step(engine, process, step=0)
        found[f"good {stage}"] = engine.is_finite()
        state = engine.module.state_dict()
        (momentum, *_) = (each["momentum_buffer"] for each in engine.optimizer.state.values())
        parts = {
            "weight": state["features.block1.conv1.weight"],
            "bias": state["fc8.linear.bias"],
            "running variance": state["features.block1.norm1.running_var"],
            "momentum": momentum,
        }
        for name, part in parts.items():
            for value in (math.nan, math.inf, -3e38):
                kept = part.clone()
                part[(0,) * part.dim()] = value
                found[f"{name} {value} {stage}"] = engine.is_finite()
                part.copy_(kept)
        found[f"mended {stage}"] = engine.is_finite()
    return found


def test_one_number_that_is_not_finite_shows_in_whatever_a_checkpoint_holds() -> None:
    (found,) = run_in_ranks(finite, 1)
    assert {name for name, good in found.items() if good} == {
        f"{name} {stage}" for name in ("good", "mended") for stage in (0, 1)
    }
    assert len(found) == 28


def explode(training: Training, factor: float = 1e13) -> None:
    """The weights stay finite, with three layers of `factor` the logits do not."""
    with torch.no_grad():
        for name in ("fc6", "fc7", "fc8"):
            training.engine.module.get_parameter(f"{name}.linear.weight").mul_(factor)


def diverged(process: Process, folder: Path) -> dict[str, str]:
    """What trainings say that explode, by where it shows first."""
    told: dict[str, str] = {}

    def train(name: str, where: str, at: int, factor: float = 1e13, every_steps: int = 3) -> None:
        """`where`: before the evaluation after `at` steps, or behind it."""

        def evaluate(training: Training, stop: StopSignal) -> Errors:
            before = where == "before" and training.step == at
            if before:
                explode(training, factor)
            errors = part._evaluate(process, stop)
            if where == "behind" and training.step == at:
                explode(training, factor)
            return errors

        part = Part(
            process,
            folder / name,
            evaluate,
            schedule={"num_steps": 12},
            evaluation=EVERY_THREE_STEPS,
            checkpoint={"every_steps": every_steps},
        )
        with pytest.raises(NumericError) as caught:
            part.train()
        told[name] = str(caught.value)

    train("evaluation", "before", at=6)
    train("first evaluation", "before", at=3)
    train("step", "behind", at=6)
    train("weights", "behind", at=6, factor=1e25, every_steps=1)
    train("no checkpoint", "behind", at=3, every_steps=100)
    # The next start of the same training, from a checkpoint that was saved just before.
    (folder / "again").mkdir()
    shutil.copytree(folder / "evaluation" / "checkpoints", folder / "again" / "checkpoints")
    train("again", "before", at=6)
    return told


@pytest.mark.slow
def test_a_network_that_explodes_ends_the_training_with_the_newest_good_checkpoint(
    tmp_path: Path,
) -> None:
    (told,) = run_in_ranks(diverged, 1, tmp_path)
    good = {"evaluation": 3, "again": 3, "step": 3, "weights": 5}
    for name, text in told.items():
        checkpoints = tmp_path / name / "checkpoints"
        if name in good:
            path = checkpoints / f"step-{good[name]:08d}"
            end = f"The newest good checkpoint is {path}; run.resume={path} continues from there."
            assert checkpoint.verify(path) is None
        else:
            end = f"No checkpoint in {checkpoints} is known to be good."
        assert text.endswith(f"the curves show what led to it. {end}"), (name, text)
    for name, step in (("evaluation", 6), ("first evaluation", 3), ("again", 6)):
        assert told[name].startswith(
            f"step {step}: the validation loss is infinite or not a number"
        )
    for name, step in (("step", 7), ("weights", 7), ("no checkpoint", 4)):
        assert told[name].startswith(f"step {step}: the loss or a gradient is infinite or not")
    assert [r["step"] for r in records(tmp_path / "evaluation", "validation")] == [3]


def too_large(process: Process, folder: Path) -> str:
    part = Part(process, folder, schedule={"num_steps": 6}, checkpoint={"every_steps": 2})
    take_step = part.training._take_step

    def take_step_and_explode(batches: Any, stop: StopSignal) -> Any:
        flags = take_step(batches, stop)
        if part.training.step == 4:
            explode(part.training, 1e22)
        return flags

    part.training._take_step = take_step_and_explode  # type: ignore[method-assign]
    with pytest.raises(NumericError) as caught:
        part.train()
    return str(caught.value)


def test_weights_that_are_not_finite_are_not_committed(tmp_path: Path) -> None:
    (told,) = run_in_ranks(too_large, 1, tmp_path)
    assert told.startswith("step 4: the weights are infinite, not numbers, or so large that")
    assert "no checkpoint was made of them" in told
    (good,) = checkpoint.committed(tmp_path / "checkpoints")
    assert told.endswith(
        f"The newest good checkpoint is {good}; run.resume={good} continues from there."
    )
    assert good.name == "step-00000002"


def no_room(process: Process, folder: Path) -> tuple[list[str], str, int]:
    """A disk that has room for one checkpoint, and a training of three."""
    logged = Logged()
    part = Part(process, folder, schedule={"num_steps": 6}, checkpoint={"every_steps": 2})
    save, calls = checkpoint.save, itertools.count(1)

    def save_once(*arguments: Any) -> Path:
        if next(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(*arguments)

    checkpoint.save = save_once
    with pytest.raises(CheckpointError) as caught:
        part.train()
    return logged.about("could not be written"), str(caught.value), part.training.step


def test_a_checkpoint_that_cannot_be_written_ends_no_training_but_the_last_one_all_ranks(
    tmp_path: Path,
) -> None:
    (told, error, step), (_, _, other_step) = run_in_ranks(no_room, 2, tmp_path)
    assert step == other_step == 6
    folder = tmp_path / "checkpoints"
    sentence = (
        "could not be written: No space left on device. Free space or fix the "
        f"permissions of {folder}. The one before it, {folder}/step-00000002, is kept."
    )
    assert told == [f"the checkpoint of step 4 {sentence} Training continues."]
    assert error == f"the checkpoint of step 6 {sentence}"


def test_a_checkpoint_is_as_large_as_the_engine_says(tmp_path: Path) -> None:
    (expected,) = run_in_ranks(checkpoint_bytes, 1, tmp_path)
    (saved,) = checkpoint.committed(tmp_path / "checkpoints")
    assert sum(file.stat().st_size for file in saved.iterdir()) == pytest.approx(expected, rel=0.25)


def checkpoint_bytes(process: Process, folder: Path) -> int:
    """Of a network that is large enough for headers not to count."""
    part = Part(process, folder, batch_norm=True, schedule={"num_steps": 1})
    part.train()
    return part.training.engine.checkpoint_bytes
