"""What a text in a picture looks like."""

import importlib.util

import pytest
from PIL import Image, ImageDraw

from vggdist.evaluation.lettering import fit, has_glyph, load_font


@pytest.fixture
def draw() -> ImageDraw.ImageDraw:
    return ImageDraw.Draw(Image.new("RGB", (10, 10)))


def test_a_long_name_is_cut_in_the_middle_no_more_than_it_must(draw: ImageDraw.ImageDraw) -> None:
    font = load_font(13)
    assert fit(draw, "cat", font, 100) == "cat"
    name = "golden retriever, from the left"
    cut = fit(draw, name, font, 100)
    beginning, _, end = cut.partition("…")
    assert name.startswith(beginning)
    assert name.endswith(end)
    assert len(beginning) >= len(end) >= 3
    longer = name[: len(beginning) + 1] + "…" + name[-len(end) - 1 :]
    assert draw.textlength(cut, font=font) <= 100 < draw.textlength(longer, font=font)
    assert fit(draw, "hippopotamus", font, 1) == "…"


@pytest.mark.parametrize("name", ["Löwenzahn", "ромашка", "Žďár", "μαργαρίτα"])
def test_letters_of_many_alphabets_are_drawn(draw: ImageDraw.ImageDraw, name: str) -> None:
    assert fit(draw, name, load_font(13), 1000) == name


def test_what_the_font_lacks_is_an_escape_and_no_box(draw: ImageDraw.ImageDraw) -> None:
    font = load_font(13)
    assert fit(draw, "犬 dog", font, 1000) == "\\u72ac dog"
    assert fit(draw, "a\nb", font, 1000) == "a\\nb"
    assert fit(draw, "犬猫鳥 dog", font, 90) == "\\u72ac…"
    assert not has_glyph(font, "犬")


def test_without_matplotlib_the_font_is_pillow_s(
    draw: ImageDraw.ImageDraw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    load_font.cache_clear()
    try:
        font = load_font(13)
    finally:
        load_font.cache_clear()
    assert fit(draw, "cat", font, 1000) == "cat"
    assert fit(draw, "я", font, 1000) == "\\u044f"
