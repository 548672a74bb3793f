"""The pictures are drawn by the project itself, and are those of the code as it is."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
PICTURES = tuple(
    f"{name}.png" for name in ("configurations", "errors", "flowers", "network", "plan", "step")
)


def _facts(path: Path) -> str:
    """What a picture says was drawn."""
    with Image.open(path) as picture:
        return str(picture.info["Description"])


def test_the_script_draws_the_committed_pictures_of_the_code_as_it_is(tmp_path: Path) -> None:
    script = ROOT / "images" / "draw.py"
    subprocess.run([sys.executable, script, "--out", tmp_path], check=True, timeout=120)
    for name in PICTURES:
        with Image.open(tmp_path / name) as picture:
            picture.load()
            assert picture.width >= 1600, f"{name} is too narrow for a page"
            assert picture.getpixel((2, 2))[:3] == (255, 255, 255)
        assert _facts(ROOT / "images" / name) == _facts(tmp_path / name), (
            f"images/{name} is out of date; run: python images/draw.py"
        )
