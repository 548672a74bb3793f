"""The picture is read back: its size, its frames, its cells."""

import numpy as np
import pytest

from vggdist.evaluation.contact_sheet import (
    CELL,
    LINE_HEIGHT,
    MARGIN,
    RIGHT,
    WRONG,
    Prediction,
    contact_sheet,
    labelled_sheet,
)

WIDTH, HEIGHT = CELL + 2 * MARGIN, CELL + 2 * MARGIN + 8 + 2 * LINE_HEIGHT


def one(gray: int, truth: str, prediction: str, confidence: float = 0.5) -> Prediction:
    return Prediction(np.full((32, 32, 3), gray, dtype=np.uint8), truth, prediction, confidence)


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (3, 1), (4, 2), (7, 3)])
def test_predictions_fill_rows_of_cells(count: int, rows: int) -> None:
    sheet = contact_sheet([one(0, "a", "a")] * count, columns=3)
    assert sheet.size == (min(3, count) * WIDTH, rows * HEIGHT)


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "\x1b[31m", "\udcff", "\x00", "", "日本"])
def test_any_name_of_a_class_can_be_drawn(name: str) -> None:
    sheet = contact_sheet([one(0, name, name)])
    assert sheet.size == (WIDTH, HEIGHT)


def test_right_ones_are_framed_in_green_and_wrong_ones_in_red() -> None:
    predictions = [one(10, "cat", "cat"), one(200, "cat", "dog")]
    sheet = contact_sheet(predictions)
    for column, (color, gray) in enumerate(((RIGHT, 10), (WRONG, 200))):
        left, top = column * WIDTH + MARGIN, MARGIN
        assert sheet.getpixel((left - 2, top + CELL // 2)) == color
        assert sheet.getpixel((left + CELL // 2, top + CELL + 1)) == color
        assert sheet.getpixel((left + CELL // 2, top + CELL // 2)) == (gray,) * 3


def test_long_and_strange_names_stay_within_their_cell() -> None:
    names = ["x" * 500, "", "ロケット", "a\tb", "n01440764 tench, Tinca tinca"]
    predictions = [one(0, name, name, float("nan")) for name in names]
    sheet = np.asarray(contact_sheet(predictions, columns=1))
    assert (sheet[:, -MARGIN // 2 :] == 255).all()


def test_images_with_their_classes_alone_have_a_line_each_and_no_colour() -> None:
    images = [np.full((32, 32, 3), gray, dtype=np.uint8) for gray in (10, 200)]
    sheet = labelled_sheet(images, ["cat", "x" * 500])
    assert sheet.size == (2 * WIDTH, HEIGHT - LINE_HEIGHT)
    for column, gray in enumerate((10, 200)):
        assert sheet.getpixel((column * WIDTH + WIDTH // 2, HEIGHT // 3)) == (gray,) * 3
    pixels = np.asarray(sheet).astype(int)
    assert np.ptp(pixels, axis=2).max() < 20
    assert pixels[CELL + 2 * MARGIN :].min() < 100
