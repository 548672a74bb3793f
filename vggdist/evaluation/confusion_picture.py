"""Which classes fail, and for what they are taken, as a picture.

Up to `MOST_CLASSES` it is the confusion matrix; of more classes, whose cells nobody could read, it
is the error of each, sorted. Pillow draws it in a fiftieth of the time that matplotlib takes, which
counts after every evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vggdist.evaluation.confusion import ClassErrors
from vggdist.evaluation.lettering import Font, fit, load_font

MOST_CLASSES = 50
NUM_NAMED = 20
"""Of more classes, those whose names are shown: the worst."""
_MOST_COUNTS = 30
"""Up to so many classes the cells hold numbers."""
_NAME, _MARGIN, _GAP, _LINE = 180, 20, 8, 24
"""The longest name, the rim of the picture, what is between its parts, a line; pixels."""
_CURVE = 640, 480
"""Width and height of the sorted errors, pixels."""
_BAR = 240
_INK, _MUTED, _FAINT = (31, 39, 51), (102, 112, 133), (213, 218, 227)
_RIGHT, _WRONG, _ALL = (60, 141, 79), (184, 67, 78), (47, 111, 181)


def picture_name(num_classes: int) -> str:
    """What `draw_class_errors` shows."""
    return "confusion" if num_classes <= MOST_CLASSES else "class_errors"


def draw_class_errors(errors: ClassErrors, classes: Sequence[str]) -> Image.Image:
    """The confusion matrix, or beyond `MOST_CLASSES` classes the sorted errors."""
    if len(classes) <= MOST_CLASSES:
        return _draw_matrix(errors, classes)
    return _draw_sorted(errors, classes)


def confusion_matrix(errors: ClassErrors) -> NDArray[np.int64]:
    """Images by true class and by prediction; exact up to `MOST_CLASSES` classes."""
    counts = np.diag(np.subtract(errors.num_images, errors.num_wrong)).astype(np.int64)
    for truth, prediction, num_images in errors.pairs:
        counts[truth, prediction] = num_images
    return counts


def _draw_matrix(errors: ClassErrors, classes: Sequence[str]) -> Image.Image:
    """Green along the diagonal and red elsewhere, the darker the larger the share of the row."""
    num_classes = len(classes)
    cell = round(float(np.interp(num_classes, (2, 10, MOST_CLASSES), (96, 60, 24))))
    font = load_font(14 if num_classes <= 20 else 12)
    names, room = _fitted(classes, font)
    rates = [_rate(errors, label) for label in range(num_classes)]
    left, top, side = _MARGIN + max(room, 80) + _GAP, _MARGIN + 3 * _LINE, cell * num_classes
    right, bottom = left + side, top + side
    width = max(right + _GAP + max(_widths(rates, font)), left + 320) + _MARGIN
    sheet, draw = _paper(width, bottom + room + 2 * _GAP + _LINE + _MARGIN)
    draw.text((left, _MARGIN), _title(errors), _INK, load_font(18))
    head = top - _GAP
    draw.text((left - _GAP, head), "true class", _MUTED, font, anchor="rs")
    draw.text((right + _GAP, head), "error", _MUTED, font, anchor="ls")
    below = bottom + _GAP + room + _GAP
    draw.text((left + side // 2, below), "predicted class", _MUTED, font, anchor="ma")
    counts = confusion_matrix(errors)
    shares = counts / np.maximum(1, np.array(errors.num_images))[:, None]
    for (truth, prediction), number in np.ndenumerate(counts):
        x, y = left + cell * prediction, top + cell * truth
        # The square root, so that a share of a few percent shows too.
        strength = float(np.sqrt(shares[truth, prediction]))
        color = _tinted(_RIGHT if truth == prediction else _WRONG, strength)
        draw.rectangle((x, y, x + cell, y + cell), color, _FAINT)
        if number and num_classes <= _MOST_COUNTS:
            ink = "white" if strength > 0.55 else _INK
            center = x + cell / 2, y + cell / 2
            draw.text(center, f"{number:,}", ink, font, anchor="mm")
    for label, (name, rate) in enumerate(zip(names, rates, strict=True)):
        middle = top + cell * label + cell // 2
        draw.text((left - _GAP, middle), name, _INK, font, anchor="rm")
        draw.text((right + _GAP, middle), rate, _MUTED, font, anchor="lm")
        x = left + cell * label + (cell - _LINE) // 2
        sheet.paste(_upright(name, font, room), (x, bottom + _GAP))
    return sheet


def _draw_sorted(errors: ClassErrors, classes: Sequence[str]) -> Image.Image:
    """All classes from the largest error to the smallest, and the worst by name."""
    shown = [label for label, number in enumerate(errors.num_images) if number]
    shown.sort(key=lambda label: -errors.error(label))
    worst, font = shown[:NUM_NAMED], load_font(12)
    names, room = _fitted([classes[label] for label in worst], font)
    rates = [_rate(errors, label) for label in worst]
    left, top = _MARGIN + 48, _MARGIN + 2 * _LINE
    right, bottom = left + _CURVE[0], top + _CURVE[1]
    bars = right + 40 + room + _GAP
    width = bars + _BAR + _GAP + max(_widths(rates, font)) + _MARGIN
    sheet, draw = _paper(width, bottom + 2 * _LINE + _MARGIN)
    draw.text((left, _MARGIN), _title(errors), _INK, load_font(18))
    draw.text((bars, _MARGIN), f"The {len(worst)} worst", _INK, load_font(18))
    highest = max(0.01, errors.error(shown[0]))
    for place in range(_CURVE[0]):
        error = errors.error(shown[place * len(shown) // _CURVE[0]])
        height = round(_CURVE[1] * error / highest)
        draw.line((left + place, bottom - height, left + place, bottom), _ALL)
    for percent in _ticks(100 * highest):
        y = bottom - round(_CURVE[1] * percent / 100 / highest)
        draw.line((left, y, right, y), _FAINT)
        draw.text((left - _GAP, y), f"{percent:g} %", _MUTED, font, anchor="rm")
    caption = f"top-1 error of {len(shown):,} classes, sorted"
    draw.text((left, bottom + _GAP), caption, _MUTED, font)
    for number, (label, name, rate) in enumerate(zip(worst, names, rates, strict=True)):
        middle = top + _LINE * number + _LINE // 2
        length = max(1, round(_BAR * errors.error(label) / highest))
        draw.text((bars - _GAP, middle), name, _INK, font, anchor="rm")
        draw.rectangle((bars, middle - 8, bars + length, middle + 8), _WRONG)
        draw.text((bars + length + _GAP, middle), rate, _MUTED, font, anchor="lm")
    return sheet


def _paper(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    sheet = Image.new("RGB", (width, height), "white")
    return sheet, ImageDraw.Draw(sheet)


def _title(errors: ClassErrors) -> str:
    wrong, total = sum(errors.num_wrong), sum(errors.num_images)
    return f"{wrong:,} of {total:,} images wrong, {100 * wrong / total:.2f} %"


def _rate(errors: ClassErrors, label: int) -> str:
    number, wrong = errors.num_images[label], errors.num_wrong[label]
    return f"{100 * wrong / number:.1f} %  ({wrong:,} of {number:,})" if number else "no images"


def _fitted(names: Sequence[str], font: Font) -> tuple[list[str], int]:
    """Names that can be drawn, and the width of the longest."""
    _, draw = _paper(1, 1)
    fitted = [fit(draw, name, font, _NAME) for name in names]
    return fitted, max(_widths(fitted, font))


def _widths(texts: Sequence[str], font: Font) -> list[int]:
    _, draw = _paper(1, 1)
    return [round(draw.textlength(text, font=font)) + 1 for text in texts]


def _upright(text: str, font: Font, length: int) -> Image.Image:
    """A line that is read from the bottom to the top and ends at the top."""
    sheet, draw = _paper(length, _LINE)
    draw.text((length - 1, _LINE // 2), text, _INK, font, anchor="rm")
    return sheet.rotate(90, expand=True)


def _tinted(color: tuple[int, int, int], strength: float) -> tuple[int, int, int]:
    """A colour mixed with white."""
    red, green, blue = (round(255 + (c - 255) * strength) for c in color)
    return red, green, blue


def _ticks(highest: float) -> list[float]:
    """Round numbers from 0, some five of them."""
    step = next(s for s in (0.2, 0.5, 1, 2, 5, 10, 20) if highest / s <= 7)
    return [step * number for number in range(int(highest / step) + 1)]
