"""Pictures of predictions: next to the true class, or with the most probable classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vggdist.evaluation.lettering import fit, load_font

CELL, MARGIN, TEXT_HEIGHT = 128, 8, 40
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


def draw_contact_sheet(predictions: Sequence[Prediction], path: Path, columns: int = 8) -> None:
    """Writes a PNG of all predictions, correct ones framed green and wrong ones red."""
    rows = -(-len(predictions) // columns)
    width, height = CELL + 2 * MARGIN, CELL + 2 * MARGIN + TEXT_HEIGHT
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    font = load_font(13)
    for index, prediction in enumerate(predictions):
        left, top = index % columns * width + MARGIN, index // columns * height + MARGIN
        picture = Image.fromarray(prediction.image).resize((CELL, CELL), Image.Resampling.BICUBIC)
        sheet.paste(picture, (left, top))
        color = RIGHT if prediction.truth == prediction.prediction else WRONG
        draw.rectangle((left - 3, top - 3, left + CELL + 2, top + CELL + 2), outline=color, width=3)
        percent = f"{100 * prediction.confidence:.0f} %"
        caption = f"{fit(draw, prediction.prediction, font, CELL - 44)}  {percent}"
        draw.text((left, top + CELL + 5), caption, fill=color, font=font)
        truth = f"is {fit(draw, prediction.truth, font, CELL - 16)}"
        draw.text((left, top + CELL + 21), truth, fill=(70, 70, 70), font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


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
