"""Curves are read back: the lines with `json`, the events with TensorBoard's own reader."""

import errno
import io
import json
import logging
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_SCALAR
from torch.utils.tensorboard import SummaryWriter

from tests.run_folders import read_events
from vggdist.artifacts.files import JsonLines
from vggdist.config import Config
from vggdist.training.layer_values import Histogram
from vggdist.training.metrics import LogFile, MetricLog


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


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read_events(folder).Scalars(tag)]


def texts(folder: Path, tag: str) -> list[tuple[int, str]]:
    events = read_events(folder).Tensors(f"{tag}/text_summary")
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
    assert points(folder, "progress/epoch") == [(3, 0.25)]
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
    assert texts(folder, "config") == [(0, "    start: 0.0"), (4, "    start: 100.0")]
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


def steps_of_everything(folder: Path) -> dict[str, list[int]]:
    """Tag -> the steps at which TensorBoard shows something, as its server reads the events."""
    path = str(folder / "tensorboard" / folder.name)
    events = plugin_event_accumulator.EventAccumulator(path, {"tensors": 0}).Reload()
    return {tag: [event.step for event in events.Tensors(tag)] for tag in events.Tags()["tensors"]}


def write_everything(folder: Path, first_step: int, steps: range, ends: bool = False) -> None:
    """A start that continues after `first_step`, and writes all that a training does."""
    with MetricLog(folder, first_step) as log:
        log.write_start(Config(precision="fp32"), "cpu", {"config": "text"})
        for step in steps:
            details = {"weight_norm/fc6": 1.0}
            log.write("train", step, step / 10, {"loss": 1.0, "data_wait": 0.5}, details)
            if step % 3 == 0:
                log.write_histograms("weights", {"fc6": Histogram(0.0, 1.0, (1, 2))}, step)
                log.write("validation", step, step / 10, {"loss": 1.0})
                log.write_text("schedule", "falls", step)
                log.write_mark("optimizer/learning_rate_fell", 0.1, step)
                log.write_picture("fed", Image.new("RGB", (8, 8)), step)
        if ends:
            log.write_end(max([first_step, *steps]))


def test_nothing_stands_twice_however_often_a_training_is_resumed(folder: Path) -> None:
    write_everything(folder, 0, range(1, 3))  # killed before its first checkpoint
    write_everything(folder, 0, range(1, 8))  # killed at step 7, saved at step 4
    write_everything(folder, 4, range(5, 7))  # killed at step 6, with no other checkpoint
    write_everything(folder, 4, range(5, 10))
    write_everything(folder, 9, range(10, 13), ends=True)
    write_everything(folder, 12, range(0), ends=True)  # only reports
    every_step, some_steps = list(range(1, 13)), [3, 6, 9, 12]
    assert steps_of_everything(folder) == {
        **dict.fromkeys(("train/loss", "throughput/data_wait", "weight_norm/fc6"), every_step),
        "progress/epoch": every_step,
        **dict.fromkeys(("validation/loss", "validation/epoch", "weights/fc6"), some_steps),
        **dict.fromkeys(("schedule/text_summary", "optimizer/learning_rate_fell"), some_steps),
        "pictures/fed": some_steps,
        "custom_scalars__config__": [0],
        "_hparams_/experiment": [0],
        "_hparams_/session_start_info": [0],
        "_hparams_/session_end_info": [13],
        "config/text_summary": [0, 5, 10, 13],
    }


@pytest.mark.parametrize("place", ["above", "another name"])
def test_events_that_stand_elsewhere_go_on_as_one_run(folder: Path, place: str) -> None:
    """Earlier versions wrote them into `tensorboard` itself; and a run folder can be renamed."""
    elsewhere = folder / "tensorboard" / ("old" if place == "another name" else "")
    with SummaryWriter(str(elsewhere), purge_step=0) as old:
        for step in range(1, 8):
            old.add_scalar("train/loss", step, step)
        old.add_text("config", "    old", 0)
    for _ in range(2):  # the second one is from the same checkpoint
        write_everything(folder, 4, range(5, 8))
    shown = steps_of_everything(folder)
    assert shown["train/loss"] == [1, 2, 3, 4, 5, 6, 7]
    assert shown["config/text_summary"] == [0, 5]
    assert shown["custom_scalars__config__"] == shown["_hparams_/session_start_info"] == [5]
    assert [file.name for file in folder.glob("tensorboard/*") if not file.is_dir()] == []


def test_a_curve_says_what_it_shows(folder: Path) -> None:
    with MetricLog(folder, 0) as log:
        for step in (1, 2):
            log.write("train", step, 0.1, {"loss": 1.0, "another": 2.0}, {"weight_norm/fc6": 1.0})
    events = EventFileLoader(str(*folder.glob("tensorboard/*/events.*"))).Load()
    values = [value for event in events for value in event.summary.value]
    described = {v.tag: v.metadata for v in values if v.metadata.summary_description}
    assert described.keys() == {"train/loss", "progress/epoch", "weight_norm/fc6"}
    assert described["weight_norm/fc6"].summary_description == "Norm of this layer's weights."
    assert described["train/loss"].display_name == "loss"
    # TensorBoard's own server leaves out descriptions of what has no class.
    assert described["train/loss"].data_class == DATA_CLASS_SCALAR


def test_top_5_errors_of_few_classes_stand_in_the_lines_only(folder: Path) -> None:
    with MetricLog(folder, 0, has_top5=False) as log:
        log.write("validation", 1, 0.1, {"top1_error": 0.5, "top5_error": 0.0})
    assert records(folder)[0]["top5_error"] == 0.0
    assert steps_of_everything(folder).keys() == {"validation/top1_error", "validation/epoch"}


def test_a_text_is_shown_as_it_is(folder: Path) -> None:
    with MetricLog(folder, 0) as log:
        log.write_text("config", "model:\n  dropout: 0.5\n# *not* Markdown")
    ((_, text),) = texts(folder, "config")
    assert text == "    model:\n      dropout: 0.5\n    # *not* Markdown"


def pictures(folder: Path, tag: str) -> list[tuple[int, NDArray[np.uint8]]]:
    events = read_events(folder).Images(tag)
    return [(e.step, np.asarray(Image.open(io.BytesIO(e.encoded_image_string)))) for e in events]


def test_a_picture_is_shown_as_it_is_and_after_a_resume_once(folder: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8))
    with MetricLog(folder, 0) as log:  # killed at step 6, saved at step 4 before its evaluation
        for step in (4, 6):
            log.write("validation", step, 0.5, {"loss": 1.0})
            log.write_picture("confusion", picture, step)
    with MetricLog(folder, 4) as log:
        for step in (4, 6):
            log.write("validation", step, 0.5, {"loss": 1.0})
            log.write_picture("confusion", picture, step)
    (first, shown), (second, _) = pictures(folder, "pictures/confusion")
    assert (first, second) == (4, 6)
    assert np.array_equal(shown, np.asarray(picture))


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
