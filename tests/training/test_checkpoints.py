"""Checkpoints are written while training goes on; here a disk writes only once something else has
happened, so that a step that waited for it would wait forever."""

import errno
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.processes import interrupt_twice
from tests.ranks import run_in_ranks
from tests.training.small_engine import equal
from tests.training.small_training import Part, StopAfter
from tests.training.test_loop import EVERY_THREE_STEPS, Logged
from vggdist.artifacts import checkpoint
from vggdist.data.batch import Batch
from vggdist.distributed.process import Process
from vggdist.errors import DataError
from vggdist.evaluation.metrics import Errors
from vggdist.training.loop import Training
from vggdist.training.signals import StopSignal

pytestmark = pytest.mark.multi_process

PATIENCE_SECONDS = 60


class SlowDisk:
    """Writes the checkpoint of a step when its event is set; notes what happens, in its order.

    Attributes:
        written_after: step -> the event that it waits for; without one it does not wait.
        full: steps whose checkpoints cannot be written, each time that it is tried.
        story: such as `step 3`, `begin 2`, `end 2`, `evaluation 3`.
        weights: of the network after each step, with momentum.
    """

    def __init__(self, process: Process, folder: Path, **changes: Any) -> None:
        """Trains a `Part` on it; `changes` are those of its configuration."""
        self.written_after: dict[int, threading.Event] = {}
        self.full: list[int] = []
        self.story: list[str] = []
        self.weights: dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
        self._happened: defaultdict[str, threading.Event] = defaultdict(threading.Event)
        self._save, checkpoint.save = checkpoint.save, self.save
        self.part = Part(process, folder, self._evaluate, **changes)
        self._take_step = self.part.training._take_step
        self.part.training._take_step = self.take_step  # type: ignore[method-assign]

    def wait_until(self, step: int, event: str) -> None:
        """Has the checkpoint of a step written only after an event of the story."""
        self.written_after[step] = self._happened[event]

    def happen(self, event: str) -> None:
        self.story.append(event)
        self._happened[event].set()

    def came_in_order(self, *events: str) -> bool:
        """Whether each happened once and after those before it."""
        assert all(self.story.count(event) == 1 for event in events), self.story
        places = [self.story.index(event) for event in events]
        return places == sorted(places)

    def save(self, folder: Path, saved: checkpoint.Checkpoint, keep: int) -> Path:
        self.happen(f"begin {saved.step}")
        if (event := self.written_after.get(saved.step)) is not None:
            assert event.wait(PATIENCE_SECONDS), "the training waits for the disk"
        if saved.step in self.full:
            self.full.remove(saved.step)
            raise OSError(errno.ENOSPC, "No space left on device")
        path = self._save(folder, saved, keep)
        self.happen(f"end {saved.step}")
        return path

    def take_step(self, batches: Iterator[Batch], stop: StopSignal) -> Tensor:
        flags = self._take_step(batches, stop)
        step = self.part.training.step
        self.weights[step] = self.part.weights(), self.part.momentum()
        self.happen(f"step {step}")
        return flags

    def fail(self, stop: StopSignal) -> Errors:
        """An evaluation of an image that is gone."""
        self.happen(f"evaluation {self.part.training.step}")
        raise DataError("The image cat.jpg cannot be used.")

    def _evaluate(self, training: Training, stop: StopSignal) -> Errors:
        self.happen(f"evaluation {training.step}")
        return Errors(100, 1 / training.step, 0.0, 1.0)


def train_on_a_slow_disk(process: Process, folder: Path) -> list[bool]:
    disk = SlowDisk(
        process, folder, schedule={"num_steps": 6}, checkpoint={"every_steps": 2, "keep": 9}
    )
    disk.wait_until(2, "step 3")
    disk.wait_until(4, "step 5")
    disk.wait_until(6, "evaluation 6")
    assert disk.part.train()
    if not process.is_main:
        return [not [event for event in disk.story if "begin" in event]]
    return [
        disk.came_in_order("step 2", "step 3", "end 2", "begin 4", "end 4", "begin 6"),
        disk.came_in_order("step 4", "step 5", "end 4"),
        disk.came_in_order("step 6", "evaluation 6", "end 6"),
    ]


@pytest.mark.parametrize("world_size", [1, 2])
def test_training_goes_on_while_one_checkpoint_is_written(tmp_path: Path, world_size: int) -> None:
    main, *others = run_in_ranks(train_on_a_slow_disk, world_size, tmp_path)
    assert main == [True, True, True]
    assert others == [[True]] * (world_size - 1)
    saved = checkpoint.committed(tmp_path / "checkpoints")
    assert [path.name[-1] for path in saved] == ["6", "4", "2"]
    assert [checkpoint.verify(path) for path in saved] == [None] * 3


def train_and_save_each_step(
    process: Process, folder: Path, zero_stage: int
) -> dict[str, tuple[bool, bool]]:
    disk = SlowDisk(
        process,
        folder,
        batch_norm=True,
        zero_stage=zero_stage,
        schedule={"name": "plateau", "num_steps": 5},
        evaluation=EVERY_THREE_STEPS,
        checkpoint={"every_steps": 1, "keep": 9},
    )
    for step in range(1, 5):
        # Until the next step has changed the weights, and is going to wait for this checkpoint.
        disk.wait_until(step, f"step {step + 1}")
    disk.wait_until(3, "evaluation 3")
    assert disk.part.train()
    same = {}
    if process.is_main:
        for path in checkpoint.committed(folder / "checkpoints"):
            saved = checkpoint.load(path)
            weights, momentum = disk.weights[saved.step]
            same[path.name] = equal(saved.weights, weights), equal(saved.momentum, momentum)
    return same


@pytest.mark.parametrize(("world_size", "zero_stage"), [(1, 0), (2, 0), (2, 1)])
def test_a_checkpoint_has_what_was_there_at_its_step_though_training_has_gone_on(
    tmp_path: Path, world_size: int, zero_stage: int
) -> None:
    main, *_ = run_in_ranks(train_and_save_each_step, world_size, tmp_path, zero_stage)
    assert main == {f"step-{step:08d}": (True, True) for step in range(1, 6)}
    evaluated = {
        path.name: checkpoint.load(path).state["schedule"]["steps"]
        for path in checkpoint.committed(tmp_path / "checkpoints")
    }
    assert evaluated["step-00000003"] == [], "the evaluation came after this checkpoint"
    assert evaluated["step-00000004"] == [3]


def keep_the_best(process: Process, folder: Path, full: int) -> tuple[Any, ...]:
    disk = SlowDisk(
        process,
        folder,
        schedule={"num_steps": 4},
        evaluation=EVERY_THREE_STEPS,
        checkpoint={"every_steps": 3},
    )
    disk.wait_until(3, "step 4")
    disk.full = [full]
    # The last evaluation is no better than the first one.
    disk.part.training.evaluate = lambda _: Errors(100, 0.5, 0.0, 1.0)
    assert disk.part.train()
    best = disk.part.training.best.known
    assert best is not None
    kept = best.folder and load_file(best.folder / checkpoint.WEIGHTS)
    return best.step, kept and equal(kept, disk.weights[3][0])


def test_the_best_network_is_kept_when_its_checkpoint_is_written_long_after_its_evaluation(
    tmp_path: Path,
) -> None:
    assert run_in_ranks(keep_the_best, 2, tmp_path, -1) == [(3, True)] * 2


def test_the_best_network_is_not_kept_when_its_checkpoint_cannot_be_written(
    tmp_path: Path,
) -> None:
    assert run_in_ranks(keep_the_best, 2, tmp_path, 3) == [(3, None)] * 2
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]


def fill_the_disk(process: Process, folder: Path, evaluates: bool) -> tuple[list[str], str]:
    """What is told of a last checkpoint that cannot be written at first, and how it all ends."""
    logged = Logged()
    disk = SlowDisk(process, folder, schedule={"num_steps": 4})
    disk.full = [4]
    if not evaluates:
        disk.wait_until(4, "evaluation 4")
        disk.part.training.evaluate = disk.fail
    ended = ""
    try:
        disk.part.train()
    except DataError as error:
        ended = str(error)
    return logged.about("could not be written"), ended


def test_a_last_checkpoint_that_fails_is_written_again_after_the_evaluation(
    tmp_path: Path,
) -> None:
    assert run_in_ranks(fill_the_disk, 2, tmp_path, True) == [([], "")] * 2
    newest = checkpoint.newest(tmp_path / "checkpoints")
    assert newest is not None
    assert newest.name == "step-00000004"
    assert checkpoint.load(newest).state["evaluated_step"] == 4


def test_a_last_checkpoint_that_fails_is_told_where_the_evaluation_fails_too(
    tmp_path: Path,
) -> None:
    ((told, ended),) = run_in_ranks(fill_the_disk, 1, tmp_path, False)
    assert ended == "The image cat.jpg cannot be used."
    (line,) = told
    assert line.startswith("the checkpoint of step 4 could not be written: No space left on device")


def end_while_writing(process: Process, folder: Path) -> list[str]:
    disk = SlowDisk(process, folder, schedule={"num_steps": 9}, checkpoint={"every_steps": 2})

    def break_off(*_: Any) -> Tensor:
        if disk.part.training.step < 3:
            return disk.take_step(*_)
        disk.happen("error")
        raise DataError("The image cat.jpg cannot be used.")

    disk.part.training._take_step = break_off  # type: ignore[method-assign]
    disk.wait_until(2, "error")
    with pytest.raises(DataError):
        disk.part.train()
    return disk.story


def test_an_error_ends_a_training_once_its_checkpoint_is_written(tmp_path: Path) -> None:
    (story,) = run_in_ranks(end_while_writing, 1, tmp_path)
    assert story[-2:] == ["error", "end 2"]
    (saved,) = checkpoint.committed(tmp_path / "checkpoints")
    assert checkpoint.verify(saved) is None


def stop_while_writing(process: Process, folder: Path) -> tuple[bool, int]:
    """A signal that comes in step 3, and a disk that writes step 2 only after it."""
    disk = SlowDisk(process, folder, schedule={"num_steps": 9}, checkpoint={"every_steps": 2})
    disk.wait_until(2, "last")
    save_last = disk.part.training._save_last

    def save_the_last() -> None:
        disk.happen("last")
        save_last()

    disk.part.training._save_last = save_the_last  # type: ignore[method-assign]
    return disk.part.train(StopAfter(disk.part.training, 3)), disk.part.training.step


def test_a_signal_ends_a_training_once_both_checkpoints_are_written(tmp_path: Path) -> None:
    assert run_in_ranks(stop_while_writing, 2, tmp_path) == [(False, 3)] * 2
    saved = checkpoint.committed(tmp_path / "checkpoints")
    assert [path.name[-1] for path in saved] == ["3", "2"]
    assert [checkpoint.verify(path) for path in saved] == [None, None]


WRITES_FOREVER = """
import threading
from pathlib import Path
from types import SimpleNamespace
import torch
from vggdist.artifacts import checkpoint
from vggdist.distributed.process import Process
from vggdist.training.checkpoints import CheckpointWriter
from vggdist.training.signals import SAVING, StopSignal
checkpoint.save = lambda *_: threading.Event().wait()
engine = SimpleNamespace(weights=dict, momentum=dict)
process = Process(0, 0, 1, torch.device("cpu"))
with StopSignal() as stop, stop.answering(SAVING):
    with CheckpointWriter(Path("nowhere"), 2, process) as checkpoints:
        checkpoints.begin(1, engine, {}, last=False)
        print("begun", flush=True)
        checkpoints.wait()
"""


def test_a_second_interrupt_does_not_wait_for_the_disk() -> None:
    interrupt_twice(WRITES_FOREVER)
