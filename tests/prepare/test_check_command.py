"""The command `vggdist check`: what it shows and writes, its exit codes, and that it cleans up."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.prepare.odd_images import NOT_UTF8, encoded, picture, small_set, write


def vggdist(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vggdist.cli", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


def test_the_command_shows_a_report_and_writes_json(tmp_path):
    root = small_set(tmp_path / "set")
    write(root / "train" / "cat" / NOT_UTF8, b"no image")
    write(root / "val" / "dog" / "leak.jpg", (root / "train" / "dog" / "0.jpg").read_bytes())
    json_file = tmp_path / "check.json"
    done = vggdist("check", root, "--jobs", 1, "--json", json_file)
    assert done.returncode == 0, done.stderr
    for part in (
        f"{root}: 9 of 10 images can be used",
        "train           2          5          4",
        "formats        JPEG 9",
        "Images in train/ and in val/, so that the validation error looks better than it is: 1",
        "train/dog/0.jpg = val/dog/leak.jpg",
        "Classes with fewer than 10 training images: 2\n    cat: 2\n    dog: 2\n",
        "Quarantine, files that training cannot use: 1",
        "1: it is no image that Pillow recognizes",
        "train/cat/a b ü \\xff.jpg",
    ):
        assert part in done.stdout
    assert "10 of 10 images" in done.stderr
    written = json.loads(json_file.read_text())
    assert written["accepted"] == 9
    assert written["quarantine"] == [
        {
            "file": f"train/cat/{NOT_UTF8}",
            "reason": "it is no image that Pillow recognizes",
        }
    ]


def test_above_the_threshold_the_command_ends_with_3_after_its_report(tmp_path):
    root = small_set(tmp_path / "set")
    write(root / "val" / "dog" / "broken.jpg", b"no image")
    json_file = tmp_path / "check.json"
    done = vggdist("check", root, "--jobs", 1, "--json", json_file, "--threshold", 0.1)
    assert done.returncode == 3
    assert "files that training cannot use: 1" in done.stdout
    assert json.loads(json_file.read_text())["accepted"] == 8
    assert "1 of 9 images" in done.stderr
    assert "(11.11%) cannot be used, more than the 10.00% that --threshold allows" in done.stderr
    assert vggdist("check", root, "--jobs", 1, "--threshold", 0.2).returncode == 0


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [("--jobs", "0", "0 is less than 1"), ("--threshold", "2", "2.0 is not between 0 and 1")],
)
def test_impossible_options_are_refused(tmp_path, option, value, sentence):
    done = vggdist("check", tmp_path, option, value)
    assert done.returncode == 2
    assert sentence in done.stderr


@pytest.mark.parametrize(
    ("how", "code", "seconds"),
    [(signal.SIGINT, 130, 2), (signal.SIGINT, 130, 0), (signal.SIGKILL, -9, 2)],
)
def test_no_process_outlives_the_command_or_says_anything(tmp_path, how, code, seconds):
    write(tmp_path / "0.jpg", encoded(picture(3000, 3000)))
    for i in range(1, 2000):  # minutes of work
        os.link(tmp_path / "0.jpg", tmp_path / f"{i}.jpg")
    command = [sys.executable, "-m", "vggdist.cli", "check", str(tmp_path), "--jobs", "2"]
    said = tmp_path / "stderr"
    with said.open("wb") as stderr:
        running = subprocess.Popen(command, stderr=stderr, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(workers := _processes_of(running.pid) - {running.pid}) < 3:  # and a tracker
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(seconds)  # 0: the workers import what they need
    if how == signal.SIGINT:
        os.killpg(running.pid, how)  # as a terminal does
    else:
        running.send_signal(how)
    assert running.wait(30) == code
    deadline = time.monotonic() + 10
    while left := _processes_of(running.pid) & workers:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    if how == signal.SIGINT:
        assert re.fullmatch(r"(.* of 2,000 images.*\n)*", said.read_text())


def _processes_of(session: int) -> set[int]:
    """Processes of a session that are alive; zombies are not."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = entry.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(its_session) == session and state != "Z":
            found.add(int(entry.parent.name))
    return found


def test_damaged_images_that_can_be_read_are_a_class_of_their_own(tmp_path):
    root = small_set(tmp_path / "set")
    whole = encoded(picture(60, 80))
    write(root / "train" / "cat" / "noise.jfif", whole[:-2] + bytes(range(1, 13)) + whole[-2:])
    write(root / "train" / "dog" / "noise 2.jpg", whole[:-2] + b"0123" + whole[-2:])
    json_file = tmp_path / "check.json"
    done = vggdist("check", root, "--jobs", 1, "--json", json_file)
    assert done.returncode == 0, done.stderr
    assert "10 of 10 images can be used" in done.stdout
    assert (
        "Readable, damaged, used all the same: 2\n"
        "  2: Corrupt JPEG data: extraneous bytes before marker 0xd9\n"
        "    train/cat/noise.jfif\n"
        "    train/dog/noise 2.jpg\n"
    ) in done.stdout
    assert "Corrupt" not in done.stderr
    written = json.loads(json_file.read_text())
    assert [one["file"] for one in written["damaged"]] == [
        "train/cat/noise.jfif",
        "train/dog/noise 2.jpg",
    ]
    assert written["quarantine"] == []
    assert not (root / "vggdist-quarantine.json").exists()
