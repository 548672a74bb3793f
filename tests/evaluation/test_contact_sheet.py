"""The picture is read back: its size, its frames, its cells."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggdist.evaluation.contact_sheet import (
    CELL,
    MARGIN,
    RIGHT,
    TEXT_HEIGHT,
    WRONG,
    Prediction,
    draw_contact_sheet,
)

WIDTH, HEIGHT = CELL + 2 * MARGIN, CELL + 2 * MARGIN + TEXT_HEIGHT


def one(gray: int, truth: str, prediction: str, confidence: float = 0.5) -> Prediction:
    return Prediction(np.full((32, 32, 3), gray, dtype=np.uint8), truth, prediction, confidence)


def sheet_of(predictions: list[Prediction], path: Path, columns: int = 8) -> Image.Image:
    draw_contact_sheet(predictions, path, columns)
    with Image.open(path) as image:
        return image.convert("RGB")


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (3, 1), (4, 2), (7, 3)])
def test_predictions_fill_rows_of_cells(tmp_path: Path, count: int, rows: int) -> None:
    sheet = sheet_of([one(0, "a", "a")] * count, tmp_path / "sheet.png", columns=3)
    assert sheet.size == (3 * WIDTH, rows * HEIGHT)


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "\x1b[31m", "\udcff", "\x00", "", "日本"])
def test_any_name_of_a_class_can_be_drawn(tmp_path: Path, name: str) -> None:
    sheet = sheet_of([one(0, name, name)], tmp_path / "sheet.png", columns=1)
    assert sheet.size == (WIDTH, HEIGHT)


def test_right_ones_are_framed_in_green_and_wrong_ones_in_red(tmp_path: Path) -> None:
    predictions = [one(10, "cat", "cat"), one(200, "cat", "dog")]
    sheet = sheet_of(predictions, tmp_path / "deep" / "folder" / "sheet.png", columns=2)
    for column, (color, gray) in enumerate(((RIGHT, 10), (WRONG, 200))):
        left, top = column * WIDTH + MARGIN, MARGIN
        assert sheet.getpixel((left - 2, top + CELL // 2)) == color
        assert sheet.getpixel((left + CELL // 2, top + CELL + 1)) == color
        assert sheet.getpixel((left + CELL // 2, top + CELL // 2)) == (gray,) * 3


def test_long_and_strange_names_stay_within_their_cell(tmp_path: Path) -> None:
    names = ["x" * 500, "", "ロケット", "a\tb", "n01440764 tench, Tinca tinca"]
    path = tmp_path / "sheet.png"
    sheet = np.asarray(
        sheet_of([one(0, name, name, float("nan")) for name in names], path, columns=1)
    )
    assert (sheet[:, -MARGIN // 2 :] == 255).all()
