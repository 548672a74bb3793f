"""Text in pictures: a font with most alphabets, escapes for what it lacks, long texts cut."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

from PIL import ImageDraw, ImageFont

from vggdist.artifacts.names import printable

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_NO_CHARACTER = "\U0010ffff"
_ELLIPSIS = "…"


@cache
def load_font(size: int) -> Font:
    """DejaVu Sans, if matplotlib is there, which ships it; else Pillow's, with Latin letters only.

    Args:
        size: height of a line, pixels.
    """
    matplotlib = importlib.util.find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin is not None:
        file = Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if file.is_file():
            return ImageFont.truetype(file, size)
    return ImageFont.load_default(size)


def fit(draw: ImageDraw.ImageDraw, text: str, font: Font, width: int) -> str:
    """`text`, shortened in its middle to `width` pixels.

    Names of classes differ at the beginning or at the end. Characters that the font lacks become
    escapes such as `\\u72ac`, which are never cut, and line breaks too, which cannot be measured.
    """
    parts = [c if has_glyph(font, c) else ascii(c)[1:-1] for c in printable(text)]
    if draw.textlength("".join(parts), font=font) <= width:
        return "".join(parts)
    for length in range(len(parts) - 1, 0, -1):
        end = parts[len(parts) - length // 3 :]
        cut = "".join([*parts[: length - length // 3], _ELLIPSIS, *end])
        if draw.textlength(cut, font=font) <= width:
            return cut
    return _ELLIPSIS


@cache
def has_glyph(font: Font, character: str) -> bool:
    """Whether the font draws the character itself, and not the box for those that it lacks."""
    return bytes(font.getmask(character)) != bytes(font.getmask(_NO_CHARACTER))
