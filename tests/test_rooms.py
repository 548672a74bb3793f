"""A room can go: its folder and its lines in `cli.py`, and nothing else notices."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

from tests.test_import_rule import ROOMS, ROOT

PACKAGES = sorted(ROOMS.keys() - {"launch"})


def without(rooms: Collection[str], folder: Path) -> Path:
    """A copy of the package without these rooms and those that import them."""
    gone = {room for room in PACKAGES if room in rooms or ROOMS[room] & set(rooms)}
    shutil.copytree(ROOT / "vggdist", folder / "vggdist", ignore=lambda *_: gone)
    file = folder / "vggdist" / "cli.py"
    entry = rf'    "[a-z]+": \(\s*"vggdist\.(?:{"|".join(gone)})\.commands",[^)]*\),\n'
    text, num_lines = re.subn(entry, "", file.read_text(encoding="utf-8"))
    assert num_lines >= len(gone)
    file.write_text(text, encoding="utf-8")
    return folder


def run(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("room", PACKAGES)
def test_without_a_room_the_verbs_of_the_others_are_there(room: str, tmp_path: Path) -> None:
    folder = without([room], tmp_path)
    code = "from vggdist import cli; cli.build_parser(); print(cli.__file__)"
    assert run(folder, "-c", code).startswith(str(folder))
    assert "train a network" in run(folder, "-m", "vggdist", "--help")


@pytest.mark.slow
@pytest.mark.multi_process
def test_without_any_room_the_core_trains_and_evaluates(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    folder = without(PACKAGES, tmp_path / "copy")
    run(folder, "-m", "vggdist", "train", *tiny_overrides)
    assert (tmp_path / "run" / "result.json").exists()
    evaluation = ("evaluate", str(tmp_path / "run"), "--scales", "40")
    assert "top-1" in run(folder, "-m", "vggdist", *evaluation)
