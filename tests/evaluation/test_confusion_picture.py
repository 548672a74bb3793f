"""The picture is read back: the colours of its cells, and its size."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vggdist.evaluation.confusion import class_errors
from vggdist.evaluation.confusion_picture import (
    MOST_CLASSES,
    confusion_matrix,
    draw_class_errors,
    picture_name,
)


def random_counts(num_classes: int) -> NDArray[np.int64]:
    counts = np.random.default_rng(0).integers(0, 3, (num_classes, num_classes))
    return counts + 20 * np.eye(num_classes, dtype=np.int64)


def draw(counts: NDArray[np.int64], names: list[str] | None = None) -> Image.Image:
    names = names or [f"class {label}" for label in range(len(counts))]
    return draw_class_errors(class_errors(counts), names)


def colors(picture: Image.Image) -> set[str]:
    """Which of green, red and blue are in it, in any shade."""
    pixels = np.asarray(picture).astype(int)
    strongest, spread = pixels.argmax(axis=2), np.ptp(pixels, axis=2)
    return {("red", "green", "blue")[c] for c in np.unique(strongest[spread > 40])}


@pytest.mark.parametrize("num_classes", [1, 2, 10, MOST_CLASSES])
def test_the_matrix_of_so_many_classes_is_exact(num_classes: int) -> None:
    counts = random_counts(num_classes)
    assert np.array_equal(confusion_matrix(class_errors(counts)), counts)


def test_right_ones_are_green_and_wrong_ones_red() -> None:
    assert picture_name(3) == "confusion"
    assert colors(draw(np.diag([5, 5, 5]))) == {"green"}
    assert colors(draw(np.array([[0, 5, 0], [0, 0, 5], [5, 0, 0]]))) == {"red"}
    assert colors(draw(np.array([[5, 5], [0, 5]]))) == {"green", "red"}


def test_of_more_classes_the_errors_are_bars() -> None:
    assert picture_name(MOST_CLASSES + 1) == "class_errors"
    assert colors(draw(random_counts(MOST_CLASSES + 1))) == {"blue", "red"}


@pytest.mark.parametrize("num_classes", [1, 2, MOST_CLASSES, MOST_CLASSES + 1, 1000])
def test_any_number_of_classes_with_any_names_gives_a_picture_of_a_fair_size(
    num_classes: int,
) -> None:
    names = ["日本", "a\nb", "", "\udcff", "x" * 500, "🌷", "$x^2$"] * num_classes
    picture = draw(random_counts(num_classes), names[:num_classes])
    assert 300 <= picture.width <= 1700
    assert 300 <= picture.height <= 1700


@pytest.mark.parametrize("num_classes", [3, 60])
def test_classes_without_images_and_without_errors_are_drawn(num_classes: int) -> None:
    counts = np.diag([5] * num_classes)
    counts[0] = 0
    assert colors(draw(counts)) <= {"green", "red", "blue"}
