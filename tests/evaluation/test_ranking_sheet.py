"""The picture is read back: cards, pictures in their own shape, and bars as long as they should."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggdist.evaluation.contact_sheet import (
    FIRST,
    OTHERS,
    PICTURE,
    Ranking,
    draw_ranking_sheet,
)

BARS = 360


def ranking(
    confidences: tuple[float, ...], size: tuple[int, int] = (60, 40), name: str = "class"
) -> Ranking:
    image = Image.new("RGB", size, (255, 0, 255))
    return Ranking(image, "a file.jpg", tuple((name, one) for one in confidences))


def drawn(rankings: list[Ranking], path: Path) -> np.ndarray:
    draw_ranking_sheet(rankings, path)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def extent(sheet: np.ndarray, color: tuple[int, int, int]) -> tuple[int, int]:
    """Height and width of what has this colour."""
    rows, columns = np.nonzero((sheet == color).all(axis=2))
    return int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1


@pytest.mark.parametrize("confidence", [1.0, 0.5, 0.1])
def test_bars_are_as_long_as_the_confidence(confidence: float, tmp_path: Path) -> None:
    sheet = drawn([ranking((confidence, confidence / 2))], tmp_path / "deep" / "sheet.png")
    assert extent(sheet, FIRST)[1] == pytest.approx(BARS * confidence, abs=1)
    assert extent(sheet, OTHERS)[1] == pytest.approx(BARS * confidence / 2, abs=1)


def test_no_confidence_has_no_bar(tmp_path: Path) -> None:
    sheet = drawn([ranking((0.0, float("nan")))], tmp_path / "sheet.png")
    assert not (sheet == FIRST).all(axis=2).any()


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ((60, 40), (40, 60)),
        ((2 * PICTURE, PICTURE), (PICTURE // 2, PICTURE)),
        ((PICTURE, 4 * PICTURE), (PICTURE, PICTURE // 4)),
    ],
)
def test_an_image_keeps_its_shape_and_is_made_smaller_only(
    size: tuple[int, int], shape: tuple[int, int], tmp_path: Path
) -> None:
    sheet = drawn([ranking((0.5,), size)], tmp_path / "sheet.png")
    assert extent(sheet, (255, 0, 255)) == shape


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (3, 1), (4, 2), (12, 2), (13, 3)])
def test_many_cards_stand_in_columns(count: int, columns: int, tmp_path: Path) -> None:
    height, width, _ = drawn([ranking((0.5,))], tmp_path / "one.png").shape
    sheet = drawn([ranking((0.5,))] * count, tmp_path / "many.png")
    gap = 16
    rows = -(-count // columns)
    assert sheet.shape[:2] == (rows * (height - gap) + gap, columns * (width - gap) + gap)


def test_long_and_strange_names_stay_left_of_their_confidence(tmp_path: Path) -> None:
    plain = drawn([ranking((1.0,), name="i")], tmp_path / "a.png")
    long = drawn([ranking((1.0,), name="W" * 300)], tmp_path / "b.png")
    changed = np.nonzero((plain != long).any(axis=(0, 2)))[0]
    bars = np.nonzero((plain == FIRST).all(axis=2))[1]
    assert bars.min() <= changed.min()
    assert changed.max() < bars.max() - 50
    drawn([ranking((1.0,), name=name) for name in ("", "ロケット", "a\tb")], tmp_path / "c.png")
