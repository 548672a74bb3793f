"""A picture of what a network sees and says: image, truth, prediction, confidence."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

CELL, MARGIN, TEXT_HEIGHT = 128, 8, 40
RIGHT, WRONG = (24, 128, 56), (200, 30, 40)


@dataclass(frozen=True)
class Prediction:
    """One image (height, width, 3), 8-bit RGB, as the network was fed it, and what it said."""

    image: NDArray[np.uint8]
    truth: str
    prediction: str
    confidence: float


def draw_contact_sheet(predictions: Sequence[Prediction], path: Path, columns: int = 8) -> None:
    """Writes a PNG of all predictions, right ones framed in green and wrong ones in red."""
    rows = -(-len(predictions) // columns)
    width, height = CELL + 2 * MARGIN, CELL + 2 * MARGIN + TEXT_HEIGHT
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    for index, one in enumerate(predictions):
        left, top = index % columns * width + MARGIN, index // columns * height + MARGIN
        picture = Image.fromarray(one.image).resize((CELL, CELL), Image.Resampling.BICUBIC)
        sheet.paste(picture, (left, top))
        color = RIGHT if one.truth == one.prediction else WRONG
        draw.rectangle((left - 3, top - 3, left + CELL + 2, top + CELL + 2), outline=color, width=3)
        said = f"{_fit(draw, one.prediction, font, CELL - 44)}  {100 * one.confidence:.0f} %"
        draw.text((left, top + CELL + 5), said, fill=color, font=font)
        truth = f"is {_fit(draw, one.truth, font, CELL - 16)}"
        draw.text((left, top + CELL + 21), truth, fill=(70, 70, 70), font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _fit(
    draw: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width: int,
) -> str:
    """`text`, shortened to `width` pixels."""
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "…", font=font) > width:
        text = text[:-1]
    return text + "…"
