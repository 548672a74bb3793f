"""Run folders as a training leaves them, written by hand."""

import base64
import fcntl
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from vggdist import cli
from vggdist.config_file import load_config, to_yaml
from vggdist.errors import ConfigError
from vggdist.monitoring.comparison import compare, write_comparison
from vggdist.monitoring.folders import find_runs, open_runs, read_run
from vggdist.monitoring.table import names_of, render_runs

IMAGES = 1000
ERRORS = (0.5, 0.2, 0.3)
"""Of the evaluations after steps 10, 20 and 30."""


def write_run(folder: Path, overrides: Iterable[str] = (), num_steps: int = 30) -> Path:
    """A training of 1000 images, 100 a step, 40 steps long, as far as `num_steps`."""
    folder.mkdir(parents=True)
    usual = ("batch.global=100", "schedule.num_epochs=4", f"run.folder={folder}")
    (folder / "config.yaml").write_text(to_yaml(load_config(None, [*usual, *overrides])))
    points = []
    for step in range(5, num_steps + 1, 5):
        point = {"split": "train", "step": step, "epoch": step / 10, "loss": 1.0, "top1_error": 0.4}
        points.append(point | {"learning_rate": 0.01, "images_per_second": 50.0})
        if step % 10 == 0:
            error = ERRORS[step // 10 - 1]
            points.append(point | {"split": "validation", "top1_error": error})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    return folder


def finish(folder: Path, steps: int) -> None:
    result = {"steps": steps, "images_per_second": 44.0, "seconds": 93.4, "top1_error": 0.3}
    (folder / "result.json").write_text(json.dumps(result))


def row_of(name: str, text: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"{name} "))


def test_a_run_that_nobody_trains_is_stopped_where_its_curves_end(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "a"))
    assert run is not None
    assert (run.state, run.step, run.epoch, run.num_steps) == ("stopped", 30, 3.0, 40)
    assert (run.validation_error, run.train_error) == (0.3, 0.4)
    assert run.best is not None
    assert (run.best.step, run.best.top1_error) == (20, 0.2)
    assert run.seconds_left is None


def test_while_its_lock_is_held_a_run_is_running_and_says_how_long_still(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    finish(folder, 30)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = read_run(folder)
    assert run is not None
    assert run.state == "running"
    assert run.seconds_left == pytest.approx(10 * 100 / 50)


def test_a_result_counts_for_the_steps_that_it_is_of(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    finish(folder, 30)
    run = read_run(folder)
    assert run is not None
    assert (run.state, run.images_per_second) == ("finished", 44.0)
    finish(folder, 20)  # of the first part of a training that was made longer
    run = read_run(folder)
    assert run is not None
    assert (run.state, run.images_per_second) == ("stopped", 50.0)


def test_a_training_before_its_first_point_is_listed_too(tmp_path: Path) -> None:
    write_run(tmp_path / "a", num_steps=0)
    (run,) = find_runs(tmp_path)
    assert (run.step, run.num_steps, run.best, run.train_error) == (0, None, None, None)
    assert " 0 " in row_of("a", render_runs([run]))


def test_the_verb_lists_the_runs_below_a_folder_the_newest_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(("deep/a", "b", ".hidden/c")):
        folder = write_run(tmp_path / name, ["model.configuration=A"] if name == "b" else ())

        os.utime(folder / "metrics.jsonl", (number, number))
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.yaml").write_text("data: [")
    (tmp_path / "broken" / "metrics.jsonl").write_text("")
    arguments = cli.parse(["runs", str(tmp_path), "--json", str(tmp_path / "runs.json")])
    arguments.run(arguments)
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.splitlines()[1:]] == ["b", "deep/a"]
    assert re.search(r"A +stopped +30 of 40 +3\.0 +40\.00 % +30\.00 % +20\.00 % +2\.0 +50\.0", text)
    stored = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert [run["best_step"] for run in stored] == [20, 20]
    assert stored[0]["configuration"] == "A"


def test_a_folder_without_trainings_says_so_and_one_that_is_missing_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = cli.parse(["runs", str(tmp_path)])
    arguments.run(arguments)
    assert capsys.readouterr().out == f"no trainings below {tmp_path} yet.\n"
    with pytest.raises(ConfigError, match="is no folder; give one that holds run folders"):
        find_runs(tmp_path / "none")


def test_names_are_as_short_as_they_can_be_and_different(tmp_path: Path) -> None:
    runs = open_runs([write_run(tmp_path / "x" / "vgg"), write_run(tmp_path / "y" / "vgg")])
    assert names_of(runs) == ["x/vgg", "y/vgg"]
    assert names_of(runs[:1]) == ["vgg"]


def test_a_comparison_names_the_settings_that_differ_and_no_others(tmp_path: Path) -> None:
    finish(write_run(tmp_path / "a"), 30)
    write_run(tmp_path / "b", ["optimizer.learning_rate=0.02", "model.configuration=A"], 20)
    comparison = compare(open_runs([tmp_path / "a", tmp_path / "b"]))
    assert comparison.settings == {
        "model.configuration": ("D", "A"),
        "optimizer.learning_rate": ("0.01", "0.02"),
    }
    assert comparison.results["state"] == ("finished", "stopped")
    assert comparison.results["best of all evaluations"] == ("20.00 % (epoch 2.0)",) * 2
    assert comparison.results["duration"] == ("0:01:33", "")
    assert row_of("steps", comparison.render()).split() == ["steps", "30", "20"]
    assert comparison.to_dict()["settings"]["optimizer.learning_rate"] == [0.01, 0.02]


def test_all_folders_without_a_training_are_named(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"b, .*c: no training has begun there"):
        open_runs([tmp_path / "a", tmp_path / "b", tmp_path / "c"])


def test_the_picture_has_a_curve_for_each_run_and_the_page_needs_no_other_file(
    tmp_path: Path,
) -> None:
    folders = [write_run(tmp_path / name) for name in ("a", "<b>")]
    comparison = compare(open_runs(folders))
    write_comparison(comparison, tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as picture:
        colors = {color for _, color in picture.convert("RGB").getcolors(1 << 24) or ()}
    assert {(31, 119, 180), (255, 127, 14)} <= colors, "C0 and C1 of matplotlib"
    write_comparison(comparison, tmp_path / "c.html")
    page = (tmp_path / "c.html").read_text()
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    encoded = re.search(r"base64,([^\"]+)", page)
    assert encoded is not None
    assert base64.b64decode(encoded[1]).startswith(b"\x89PNG")
