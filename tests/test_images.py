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


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    script = ROOT / "images" / "draw.py"
    subprocess.run([sys.executable, script, "--out", folder], check=True, timeout=120)
    return folder


def _facts(path: Path) -> str:
    """What a picture says was drawn."""
    with Image.open(path) as picture:
        return str(picture.info["Description"])


@pytest.mark.parametrize("name", PICTURES)
def test_the_script_draws_the_picture_wide_enough_for_the_readme(name: str, drawn: Path) -> None:
    with Image.open(drawn / name) as picture:
        picture.load()
        assert picture.width >= 1600
        assert picture.getpixel((2, 2))[:3] == (255, 255, 255)


@pytest.mark.parametrize("name", PICTURES)
def test_the_committed_picture_shows_the_code_as_it_is(name: str, drawn: Path) -> None:
    assert _facts(ROOT / "images" / name) == _facts(drawn / name), (
        f"images/{name} is out of date; run: python images/draw.py"
    )
