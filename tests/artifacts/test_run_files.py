"""What the files of a run folder say to programs without torch."""

import json
from pathlib import Path

import pytest

from vggdist.artifacts import run_files
from vggdist.artifacts.run_files import changed_settings, read_curves, read_result
from vggdist.config import Config
from vggdist.config_file import load_config, to_yaml


def test_a_training_is_another_one_where_it_would_compute_something_else() -> None:
    before = load_config(None, ["seed=1", "data.root=/a"])
    now = load_config(None, ["seed=2", "data.root=/b", "schedule.num_epochs=3"])
    assert changed_settings(before, now) == {"seed": (1, 2)}
    cosine = load_config(None, ["schedule.name=cosine"])
    longer = load_config(None, ["schedule.name=cosine", "schedule.num_epochs=80"])
    assert changed_settings(cosine, longer) == {"schedule.num_epochs": (74.0, 80.0)}


def write_points(folder: Path, *points: dict[str, object]) -> None:
    lines = "".join(json.dumps(point) + "\n" for point in points)
    (folder / run_files.METRICS_FILE).write_text(lines + '{"split": "tr')


def test_the_time_left_follows_from_speed_length_and_images(tmp_path: Path) -> None:
    """1,000 images in batches of 100, 7 epochs: 70 steps, 40 of them left, at 50 images/s."""
    config = load_config(None, ["batch.global=100", "schedule.num_epochs=7"])
    write_points(
        tmp_path,
        {"split": "train", "step": 1, "epoch": 0.1, "top1_error": 0.9, "images_per_second": 9.0},
        {"split": "validation", "step": 20, "epoch": 2.0, "top1_error": 0.5},
        {"split": "train", "step": 30, "epoch": 3.0, "top1_error": 0.4, "images_per_second": 50.0},
    )
    curves = read_curves(tmp_path, config)
    assert curves is not None
    assert (curves.step, curves.epoch) == (30, 3.0)
    assert (curves.train_error, curves.validation_error) == (0.4, 0.5)
    assert curves.seconds_left == pytest.approx(40 * 100 / 50)


def test_before_the_first_step_there_are_no_curves(tmp_path: Path) -> None:
    assert read_curves(tmp_path, Config()) is None
    (tmp_path / run_files.METRICS_FILE).touch()
    assert read_curves(tmp_path, Config()) is None
    assert not run_files.has_begun(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[1]", "\xff"])
def test_a_damaged_result_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "result.json").write_bytes(content.encode("latin-1"))
    assert read_result(tmp_path) is None


def test_a_configuration_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert run_files.read_config(tmp_path) is None
    (tmp_path / "config.yaml").write_text(to_yaml(Config()))
    assert run_files.read_config(tmp_path) == Config()
    (tmp_path / "config.yaml").write_text("seed: x\n")
    assert run_files.read_config(tmp_path) is None
