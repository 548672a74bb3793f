"""Curves are read back: the lines with `json`, the events with TensorBoard's own reader."""

import errno
import json
import logging
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vggdist.artifacts.files import JsonLines
from vggdist.training.metrics import LogFile, MetricLog, displayable


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def write_steps(folder: Path, first_step: int, steps: range, value: float) -> None:
    """A start that continues after `first_step` and writes a point at every step."""
    with MetricLog(folder, first_step) as log:
        log.write_text("config", f"start: {value}")
        for step in steps:
            log.write("train", step, step / 10, {"loss": value + step, "top1_error": 0.5})


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def board(folder: Path) -> EventAccumulator:
    sizes = {"scalars": 0, "images": 0, "tensors": 0}
    return EventAccumulator(str(folder / "tensorboard"), size_guidance=sizes).Reload()


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in board(folder).Scalars(tag)]


def texts(folder: Path, tag: str) -> list[tuple[int, str]]:
    events = board(folder).Tensors(f"{tag}/text_summary")
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in events]


def test_a_point_is_a_line_and_one_event_per_number(folder: Path) -> None:
    with MetricLog(folder, 0) as log:
        log.write("train", 3, 0.25, {"loss": 1.5, "top1_error": 0.75})
        log.write("validation", 3, 0.25, {"loss": 2.0})
        assert len(records(folder)) == 2  # at once, not at the end
    assert records(folder) == [
        {"split": "train", "step": 3, "epoch": 0.25, "loss": 1.5, "top1_error": 0.75},
        {"split": "validation", "step": 3, "epoch": 0.25, "loss": 2.0},
    ]
    assert points(folder, "train/loss") == [(3, 1.5)]
    assert points(folder, "train/top1_error") == [(3, 0.75)]
    assert points(folder, "train/epoch") == [(3, 0.25)]
    assert points(folder, "validation/loss") == [(3, 2.0)]


def test_after_a_resume_no_step_stands_twice(folder: Path) -> None:
    write_steps(folder, 0, range(1, 8), value=0.0)  # killed at step 7, saved at step 4
    write_steps(folder, 4, range(5, 10), value=100.0)
    expected = [(step, float(step)) for step in (1, 2, 3, 4)]
    expected += [(step, 100.0 + step) for step in (5, 6, 7, 8, 9)]
    assert [(r["step"], r["loss"]) for r in records(folder)] == expected
    assert points(folder, "train/loss") == expected


def test_after_a_start_without_any_checkpoint_nothing_of_the_first_one_is_left(
    folder: Path,
) -> None:
    write_steps(folder, 0, range(1, 4), value=0.0)
    write_steps(folder, 0, range(1, 3), value=100.0)
    assert [(r["step"], r["loss"]) for r in records(folder)] == [(1, 101.0), (2, 102.0)]
    assert points(folder, "train/loss") == [(1, 101.0), (2, 102.0)]


def test_every_start_shows_its_text_where_it_began(folder: Path) -> None:
    write_steps(folder, 0, range(1, 4), value=0.0)
    write_steps(folder, 3, range(4, 6), value=100.0)
    assert texts(folder, "config") == [(0, "    start: 0.0"), (3, "    start: 100.0")]
    assert len(points(folder, "train/loss")) == 5


@pytest.mark.parametrize("rest", ['{"split": "train", "st', "\0\0\0", "12", "null", "{}", "\udcff"])
def test_a_last_line_that_was_cut_is_dropped(folder: Path, rest: str) -> None:
    write_steps(folder, 0, range(1, 4), value=0.0)
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(rest.encode(errors="surrogateescape"))
    write_steps(folder, 3, range(4, 5), value=0.0)
    assert [r["step"] for r in records(folder)] == [1, 2, 3, 4]


def test_nan_and_infinity_are_null(folder: Path) -> None:
    with MetricLog(folder, 0) as log:
        log.write("train", 1, 0.1, {"loss": math.nan, "norm": math.inf, "rate": 0.1})
    (record,) = records(folder)
    assert record == {
        "split": "train", "step": 1, "epoch": 0.1, "loss": None, "norm": None, "rate": 0.1
    }  # fmt: skip
    ((step, value),) = points(folder, "train/loss")
    assert step == 1
    assert math.isnan(value)


def test_a_text_is_shown_as_it_is(folder: Path) -> None:
    with MetricLog(folder, 0) as log:
        log.write_text("config", "model:\n  dropout: 0.5\n# *not* Markdown")
    ((_, text),) = texts(folder, "config")
    assert text == "    model:\n      dropout: 0.5\n    # *not* Markdown"


def test_images_are_shown_in_a_grid(folder: Path) -> None:
    images = torch.zeros(5, 3, 8, 10, dtype=torch.uint8)
    with MetricLog(folder, 0) as log:
        log.write_images("fed", images, 0)
    (event,) = board(folder).Images("fed")
    assert event.step == 0
    assert event.width % 10 < 10
    assert event.width * event.height >= 5 * 8 * 10
    assert event.encoded_image_string.startswith(b"\x89PNG")


def test_what_the_network_is_fed_is_shown_in_its_first_colours() -> None:
    mean = (123.68, 116.779, 103.939)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5), dtype=np.uint8)
    fed = torch.from_numpy(pixels) - torch.tensor(mean).reshape(1, 3, 1, 1)
    std = (60.0, 1.0, 2.0)
    fed /= torch.tensor(std).reshape(1, 3, 1, 1)
    shown = displayable(fed.to(memory_format=torch.channels_last), mean, std)
    assert shown.dtype == torch.uint8
    assert np.array_equal(shown.numpy(), pixels)
    rounded = displayable(fed.bfloat16(), mean, std).int() - torch.from_numpy(pixels).int()
    assert rounded.abs().max() <= 1
    outside = torch.tensor([-500.0, 500.0]).reshape(2, 1, 1, 1).expand(2, 3, 1, 1)
    assert displayable(outside, mean, (1.0, 1.0, 1.0)).flatten(1).tolist() == [[0] * 3, [255] * 3]


def test_a_full_disk_costs_points_of_the_curves_and_is_said_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(logging.getLogger("vggdist"), "propagate", True)
    with MetricLog(folder, 0) as log:
        monkeypatch.setattr(log, "_lines", JsonLines(Path("/dev/full")))
        for step in (1, 2):
            log.write("train", step, 0.1, {"loss": 1.0})
        monkeypatch.setattr(log._board, "flush", full)
        log.write("train", 3, 0.1, {"loss": 1.0})
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert caplog.messages == [
        f"curves and log in {folder} cannot be written, training continues without them: No "
        "space left on device."
    ]
    assert [step for step, _ in points(folder, "train/loss")][:2] == [1, 2]


def test_tensorboard_s_thread_dies_in_silence_and_the_curves_go_on_when_there_is_room(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(self: object, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    hook = threading.excepthook
    with MetricLog(folder, 0) as log:
        log.write("train", 1, 0.1, {"loss": 1.0})
        with monkeypatch.context() as patched:
            patched.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
            patched.setattr(log, "_lines", JsonLines(Path("/dev/full")))
            for step in (2, 3):
                log.write("train", step, 0.1, {"loss": 1.0})
                log.write_text("schedule", "text", step)
        log.write("train", 4, 0.1, {"loss": 1.0})
    assert capfd.readouterr().err == ""
    assert [step for step, _ in points(folder, "train/loss")] == [1, 4]
    assert threading.excepthook is hook


def test_lines_that_cannot_be_written_to_the_log_cost_no_traceback(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "log.txt").symlink_to("/dev/full")
    handler = LogFile(folder)
    logger = logging.Logger("full")
    logger.addHandler(handler)
    for _ in range(3):
        logger.error("a line")
    handler.close()
    assert capfd.readouterr().err == ""
    logger.error("%d", "no number")  # a bug keeps its traceback
    assert "TypeError" in capfd.readouterr().err
