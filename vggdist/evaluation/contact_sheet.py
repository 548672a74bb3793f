"""Sheets of images: with their classes, with predictions, or with the most probable classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vggdist.evaluation.lettering import fit, load_font

CELL, MARGIN, LINE_HEIGHT = 128, 8, 16
RIGHT, WRONG = (24, 128, 56), (200, 30, 40)

PICTURE = 220
"""Longest side of an image on a ranking sheet, pixels."""
_PADDING, _BARS, _ROW, _TITLE = 16, 360, 37, 30
_PAPER, _CARD, _EDGE = (244, 245, 247), (255, 255, 255), (222, 225, 230)
_INK, _GREY, _TRACK = (28, 32, 38), (110, 117, 127), (233, 236, 240)
FIRST, OTHERS = (31, 102, 190), (150, 186, 226)
"""Colours of the bars: the most probable class, and the others."""


@dataclass(frozen=True)
class Prediction:
    """One input image (height, width, 3), 8-bit RGB, and the network's prediction."""

    image: NDArray[np.uint8]
    truth: str
    prediction: str
    confidence: float


def contact_sheet(predictions: Sequence[Prediction], columns: int = 8) -> Image.Image:
    """All predictions, correct ones framed green and wrong ones red."""
    captions: list[list[_Line]] = []
    for prediction in predictions:
        color = RIGHT if prediction.truth == prediction.prediction else WRONG
        percent = f"{100 * prediction.confidence:.0f} %"
        captions.append(
            [(prediction.prediction, percent, color), (f"is {prediction.truth}", "", _INK)]
        )
    frames = [lines[0][2] for lines in captions]
    return _sheet([prediction.image for prediction in predictions], captions, frames, columns)


def labelled_sheet(
    images: Sequence[NDArray[np.uint8]], names: Sequence[str], columns: int = 8
) -> Image.Image:
    """Images (height, width, 3), 8-bit RGB, with the name of its class under each."""
    captions: list[list[_Line]] = [[(name, "", _INK)] for name in names]
    return _sheet(images, captions, [_EDGE] * len(names), columns)


_Color = tuple[int, int, int]
_Line = tuple[str, str, _Color]
"""What may be cut, what stands behind it whole, and the colour of both."""


def _sheet(
    images: Sequence[NDArray[np.uint8]],
    captions: Sequence[Sequence[_Line]],
    frames: Sequence[_Color],
    columns: int,
) -> Image.Image:
    """Rows of images, each with as many lines of text below it."""
    columns = min(columns, len(images))
    num_lines = max(map(len, captions))
    width, height = CELL + 2 * MARGIN, CELL + 2 * MARGIN + 8 + LINE_HEIGHT * num_lines
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    font = load_font(13)
    for number, (image, lines, frame) in enumerate(zip(images, captions, frames, strict=True)):
        left, top = number % columns * width + MARGIN, number // columns * height + MARGIN
        draw.rectangle((left - 3, top - 3, left + CELL + 2, top + CELL + 2), outline=frame, width=3)
        picture = Image.fromarray(image).resize((CELL, CELL), Image.Resampling.BICUBIC)
        sheet.paste(picture, (left, top))
        for line, (text, behind, color) in enumerate(lines):
            y = top + CELL + 5 + LINE_HEIGHT * line
            room = CELL - (round(draw.textlength(f" {behind}", font=font)) if behind else 0)
            draw.text((left, y), fit(draw, text, font, room), fill=color, font=font)
            draw.text((left + CELL, y), behind, fill=color, font=font, anchor="ra")
    return sheet


@dataclass(frozen=True)
class Ranking:
    """One image, and the classes that a network finds most probable."""

    image: Image.Image
    """In its own shape, RGB; large images are scaled down."""
    title: str
    classes: tuple[tuple[str, float], ...]
    """Names and confidences from 0 to 1, the largest first."""


def draw_ranking_sheet(rankings: Sequence[Ranking], path: Path) -> None:
    """Writes a picture of cards, each an image with a bar for each of its classes."""
    columns = min(3, 1 + (len(rankings) > 3) + (len(rankings) > 12))
    num_bars = max(len(ranking.classes) for ranking in rankings)
    width = PICTURE + _BARS + 3 * _PADDING
    height = max(PICTURE, _TITLE + _ROW * num_bars) + 2 * _PADDING
    rows = -(-len(rankings) // columns)
    sheet = Image.new(
        "RGB",
        (columns * (width + _PADDING) + _PADDING, rows * (height + _PADDING) + _PADDING),
        _PAPER,
    )
    for index, ranking in enumerate(rankings):
        left = index % columns * (width + _PADDING) + _PADDING
        top = index // columns * (height + _PADDING) + _PADDING
        _draw_card(sheet, ranking, (left, top, left + width - 1, top + height - 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _draw_card(sheet: Image.Image, ranking: Ranking, box: tuple[int, int, int, int]) -> None:
    draw = ImageDraw.Draw(sheet)
    draw.rounded_rectangle(box, radius=10, fill=_CARD, outline=_EDGE)
    picture = ranking.image.copy()
    picture.thumbnail((PICTURE, PICTURE))
    middle = (box[1] + box[3] + 1) // 2
    left = box[0] + _PADDING + (PICTURE - picture.width) // 2
    sheet.paste(picture, (left, middle - picture.height // 2))
    left = box[0] + 2 * _PADDING + PICTURE
    top = middle - (_TITLE + _ROW * len(ranking.classes)) // 2
    font = load_font(15)
    title = fit(draw, ranking.title, load_font(13), _BARS)
    draw.text((left, top + 2), title, fill=_GREY, font=load_font(13))
    for number, (name, confidence) in enumerate(ranking.classes):
        y = top + _TITLE + _ROW * number
        percent = f"{100 * confidence:.1f} %"
        room = _BARS - int(draw.textlength(percent, font=font)) - _PADDING
        draw.text((left, y), fit(draw, name, font, room), fill=_INK, font=font)
        draw.text((left + _BARS, y), percent, fill=_INK, font=font, anchor="ra")
        bar = (left, y + 21, left + _BARS - 1, y + 28)
        draw.rounded_rectangle(bar, radius=4, fill=_TRACK)
        length = round(_BARS * confidence) if confidence > 0 else 0
        if length > 0:
            color = OTHERS if number else FIRST
            draw.rounded_rectangle(
                (*bar[:2], left + length - 1, bar[3]), min(4, length // 2), color
            )
