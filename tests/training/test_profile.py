"""Profiles of real trainings: traces that viewers open, tables that add up, results unchanged."""

import errno
import gzip
import itertools
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import profile

from tests.ranks import leave_world, run_in_ranks
from tests.run_folders import assert_equal_tensors, last_checkpoint, numbers
from vggdist.artifacts.run_files import has_begun
from vggdist.config_file import load_config
from vggdist.distributed.process import Process
from vggdist.errors import EXIT_STOPPED, ConfigError
from vggdist.pretrain import run
from vggdist.training import ranges
from vggdist.training.profile import StepProfile, choose_steps
from vggdist.training.ranges import RANGES, named
from vggdist.training.signals import StopSignal
from vggdist.training.step_times import measure_steps, read_trace
from vggdist.training.throughput import Throughput

CPU = torch.device("cpu")


def test_a_number_of_steps_begins_after_five_to_warm_up() -> None:
    assert choose_steps(10, done=0, total=100) == range(6, 16)
    assert choose_steps(10, done=40, total=55) == range(46, 56)


def test_named_steps_are_taken_as_they_are() -> None:
    assert choose_steps(range(1, 4), done=0, total=3) == range(1, 4)


@pytest.mark.parametrize(
    ("wanted", "done", "text"),
    [
        (
            range(10, 31),
            10,
            "--profile 10-30: not all of these steps are to come, in a training of 30 steps, which "
            "now takes steps 11 to 30; name some of these.",
        ),
        (
            10,
            20,
            "--profile 10: 5 steps to warm up and 10 more end at step 35, in a training of 30 "
            "steps, which now takes steps 21 to 30; name some of these.",
        ),
        (
            range(25, 32),
            30,
            "--profile 25-31: not all of these steps are to come, in a training of 30 steps, which "
            "is finished; profile another one, in another run.folder.",
        ),
    ],
)
def test_steps_that_do_not_come_are_refused(wanted: int | range, done: int, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        choose_steps(wanted, done, total=30)
    assert str(error.value) == text


def test_ranges_are_recorded_only_where_a_profile_is_made() -> None:
    def recorded() -> list[str]:
        with profile() as profiler, named("forward"):
            torch.ones(1)
        return [event.name for event in profiler.events() if event.name == "forward"]

    assert recorded() == []
    with ranges.recorded():
        assert recorded() == ["forward"]
    assert recorded() == []


def profiled_steps(folder: Path, taken: range, wanted: range) -> StepProfile:
    """A training of empty steps that ends by itself or before."""
    steps = StepProfile(wanted, folder, Process(0, 0, 1, CPU, 1))
    for step in taken:
        with steps.around(step, Throughput(CPU)), named("forward"):
            torch.ones(1)
    steps.close()
    return steps


def test_a_training_that_ends_early_leaves_what_was_recorded(tmp_path: Path) -> None:
    profiled_steps(tmp_path, taken=range(1, 4), wanted=range(2, 9))
    (trace,) = (tmp_path / "profile").glob("*.gz")
    assert trace.name == "steps-2-3.rank0.pt.trace.json.gz"
    assert measure_steps(read_trace(trace)).steps == (2, 3)


def test_before_the_wanted_steps_nothing_is_written(tmp_path: Path) -> None:
    profiled_steps(tmp_path, taken=range(1, 5), wanted=range(5, 9))
    assert not (tmp_path / "profile").exists()


def test_a_disk_without_room_costs_the_profile_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(profile, "export_chrome_trace", full)
    with caplog.at_level(logging.ERROR, logger="vggdist"):
        profiled_steps(tmp_path, taken=range(1, 4), wanted=range(2, 4))
    assert [record.message for record in caplog.records] == [
        f"the profile could not be written to {tmp_path}/profile: [Errno 28] No space left on "
        "device. Training continues without it."
    ]


def train(_: Process, overrides: list[str], profiled: range | None) -> int:
    leave_world()
    return run(load_config(None, overrides), profiled=profiled)


@pytest.mark.multi_process
@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_profiled_training_has_its_results_and_traces_whose_times_add_up(
    world_size: int, tiny_overrides: list[str], tmp_path: Path
) -> None:
    plain, folder = tmp_path / "plain", tmp_path / "profiled"
    for each, steps in ((plain, None), (folder, range(3, 6))):
        # Not by what is measured: the factors are sent amid the backward pass.
        overrides = [*tiny_overrides, f"run.folder={each}", "exchange=factors"]
        assert run_in_ranks(train, world_size, overrides, steps) == [0] * world_size
    assert numbers(folder) == numbers(plain)
    assert_equal_tensors(last_checkpoint(folder), last_checkpoint(plain))

    for rank in range(world_size):
        trace = folder / "profile" / f"steps-3-5.rank{rank}.pt.trace.json.gz"
        events = read_trace(trace)
        times = measure_steps(events)
        assert times.steps == (3, 4, 5)
        named = [e for e in events if e.get("cat") == "user_annotation" and e["name"] in RANGES]
        marks = [e for e in events if e["name"].startswith("ProfilerStep#")]
        for name in RANGES:
            assert times.ranges[name] > 0, name
        # One after the other, each within its step; two micro batches on one rank.
        ordered = sorted(named, key=lambda e: e["ts"])
        for before, after in itertools.pairwise(ordered):
            assert before["ts"] + before["dur"] <= after["ts"]
        for event in named:
            assert sum(contains(mark, event) for mark in marks) == 1
        assert sum(e["name"] == "backward" for e in named) == 3 * (2 // world_size)
        assert 0 < times.rest < times.step
        backward = [e for e in named if e["name"] == "backward"]
        operators = [e for e in events if e["name"] == "aten::convolution_backward"]
        assert operators
        assert all(any(contains(b, e) for b in backward) for e in operators)
        assert (times.hidden > 0) == (times.send > 0) == (world_size > 1)
    text = (folder / "profile" / "steps-3-5.txt").read_text()
    assert text.startswith("Profile of steps 3 to 5 on the main rank:")
    assert text in (folder / "log.txt").read_text()
    with gzip.open(folder / "profile" / "steps-3-5.rank0.pt.trace.json.gz") as file:
        assert json.load(file)["schemaVersion"] == 1


class StopAfterFirstPoint(StopSignal):
    """A signal that has come once a training's curves have a point."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        super().__init__()

    @property
    def requested(self) -> bool:  # type: ignore[override]
        return has_begun(self._folder)

    @requested.setter
    def requested(self, value: bool) -> None:
        pass


def stop_while_recording(_: Process, overrides: list[str], folder: Path) -> int:
    leave_world()
    return run(load_config(None, overrides), StopAfterFirstPoint(folder), range(1, 6))


@pytest.mark.multi_process
@pytest.mark.slow
def test_the_log_has_the_table_of_a_profile_that_a_signal_ended(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    overrides = [*tiny_overrides, f"run.folder={tmp_path}"]
    assert run_in_ranks(stop_while_recording, 1, overrides, tmp_path) == [EXIT_STOPPED]
    (table,) = (tmp_path / "profile").glob("*.txt")
    assert table.name != "steps-1-5.txt", "else no signal ended it"
    assert table.read_text() in (tmp_path / "log.txt").read_text()


def contains(outer: dict[str, Any], inner: dict[str, Any]) -> bool:
    return bool(
        outer["ts"] <= inner["ts"] and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"]
    )
