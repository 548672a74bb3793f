"""The pictures are read back from what the log was handed."""

import errno
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from vggdist.config import DataConfig
from vggdist.data.batch import Batch
from vggdist.evaluation.confusion import class_errors
from vggdist.evaluation.contact_sheet import CELL, MARGIN, WRONG
from vggdist.evaluation.metrics import Errors
from vggdist.evaluation.mistakes import Mistake
from vggdist.training.metrics import MetricLog
from vggdist.training.pictures import Pictures, displayable

DATA = DataConfig(crop_size=32, train_scale_min=32, train_scale_max=32)
COLORS = ((250, 10, 10), (10, 250, 10), (10, 10, 250), (90, 90, 90))
"""Of images 0, 1, 2 and 3."""


class Log(MetricLog):
    """Keeps what it is handed, in place of writing it."""

    def __init__(self) -> None:
        self.pictures: dict[str, tuple[int, Image.Image]] = {}
        self.seconds: dict[str, float] = {}

    def write_picture(self, name: str, picture: Image.Image, step: int) -> None:
        self.pictures[name] = step, picture

    def write_mark(self, tag: str, value: float, step: int) -> None:
        self.seconds[tag] = value


def batch_of(images: Sequence[int]) -> Batch:
    """Plain images in their colours."""
    pixels = torch.tensor([COLORS[image] for image in images], dtype=torch.uint8)
    labels = torch.tensor(images) % 3
    return Batch(
        pixels[:, :, None, None].expand(-1, -1, 32, 32),
        torch.tensor([DATA.mean]).expand(len(images), 3),
        labels,
        labels,
        np.array(images),
    )


@contextmanager
def open_crops(images: Sequence[int]) -> Iterator[Iterator[Batch]]:
    """One image a batch."""
    yield (batch_of([image]) for image in images)


def pictures(log: MetricLog, num_classes: int = 3, num_fed: int = 3) -> Pictures:
    classes = tuple(f"class {label}" for label in range(num_classes))
    return Pictures(log, classes, DATA, num_fed, open_crops)


def errors_of(num_classes: int, *mistakes: Mistake) -> Errors:
    counts = np.eye(num_classes, dtype=np.int64)
    for mistake in mistakes:
        counts[mistake.truth, mistake.prediction] += 1
    return Errors(int(counts.sum()), 0.5, 0.0, 1.0, class_errors(counts), mistakes)


def color_of_cell(sheet: Image.Image, number: int) -> tuple[int, ...]:
    """In the middle of an image of a sheet's first row."""
    pixel = sheet.getpixel((number * (CELL + 2 * MARGIN) + MARGIN + CELL // 2, MARGIN + CELL // 2))
    assert isinstance(pixel, tuple)
    return pixel


def test_the_first_images_of_a_batch_are_shown_in_their_own_colours() -> None:
    log = Log()
    pictures(log).show_fed(batch_of([0, 1, 2, 3]), 7)
    step, sheet = log.pictures["fed"]
    assert step == 7
    assert sheet.width == 3 * (CELL + 2 * MARGIN)
    assert [color_of_cell(sheet, number) for number in range(3)] == list(COLORS[:3])


def test_with_no_images_wanted_none_is_shown() -> None:
    log = Log()
    pictures(log, num_fed=0).show_fed(batch_of([0]), 1)
    assert log.pictures == {}


def test_after_an_evaluation_the_mistakes_are_shown_in_their_order_and_the_confusion() -> None:
    log = Log()
    mistakes = (Mistake(2, 2, 0, 0.9), Mistake(0, 0, 1, 0.8))
    seconds = pictures(log).show_errors(errors_of(3, *mistakes), 7)
    assert log.pictures.keys() == {"mistakes", "confusion"}
    step, sheet = log.pictures["mistakes"]
    assert step == 7
    assert [color_of_cell(sheet, number) for number in range(2)] == [COLORS[2], COLORS[0]]
    assert sheet.getpixel((MARGIN - 2, CELL)) == WRONG
    assert log.seconds == {"progress/picture_seconds": seconds}


def test_without_mistakes_there_is_no_sheet_and_of_many_classes_no_matrix() -> None:
    log = Log()
    pictures(log, num_classes=51).show_errors(errors_of(51), 7)
    assert log.pictures.keys() == {"class_errors"}


def test_images_that_cannot_be_read_again_cost_a_line_and_not_the_training(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(images: Sequence[int]) -> Iterator[Batch]:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(logging.getLogger("vggdist"), "propagate", True)
    log = Log()
    drawing = pictures(log)
    drawing.open_crops = gone  # type: ignore[assignment]
    drawing.show_errors(errors_of(3, Mistake(2, 2, 0, 0.9)), 7)
    assert log.pictures.keys() == {"confusion"}
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "the worst mistakes are not shown in TensorBoard"
    ]


def test_what_the_network_is_fed_is_shown_in_its_first_colours() -> None:
    mean = (123.68, 116.779, 103.939)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5), dtype=np.uint8)
    fed = torch.from_numpy(pixels) - torch.tensor(mean).reshape(1, 3, 1, 1)
    std = (60.0, 1.0, 2.0)
    fed /= torch.tensor(std).reshape(1, 3, 1, 1)
    shown = displayable(fed.to(memory_format=torch.channels_last), mean, std)
    assert shown.dtype == np.uint8
    assert np.array_equal(shown, pixels.transpose(0, 2, 3, 1))
    rounded = displayable(fed.bfloat16(), mean, std).astype(int) - pixels.transpose(0, 2, 3, 1)
    assert np.abs(rounded).max() <= 1
    outside = torch.tensor([-500.0, 500.0]).reshape(2, 1, 1, 1).expand(2, 3, 1, 1)
    flat = displayable(outside, mean, (1.0, 1.0, 1.0)).reshape(2, 3)
    assert flat.tolist() == [[0] * 3, [255] * 3]
