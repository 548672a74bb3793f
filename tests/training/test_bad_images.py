"""What ranks agree on when images break, and that a training is none the worse for it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.ranks import run_in_ranks, train_in_ranks
from vggdist.data.bad_image import BadImage
from vggdist.data.dataset import open_dataset
from vggdist.data.manifest import Manifest, Names
from vggdist.data.manifest_file import BadFile, save_quarantine
from vggdist.distributed.process import Process
from vggdist.errors import DataError, DistributedError
from vggdist.training import bad_images
from vggdist.training.bad_images import KnownBad


def images(count: int, quarantine: frozenset[int] = frozenset()) -> Manifest:
    names = Names.pack(f"{i}.jpg" for i in range(count))
    labels = np.zeros(count, dtype=np.int64)
    return Manifest(Path("/set/train"), "train", ("cat",), labels, names, quarantine=quarantine)


def agree(process: Process) -> dict[str, Any]:
    known = KnownBad(images(100, frozenset({7 + process.rank})), 0.0)
    result: dict[str, Any] = {"start": sorted(known.images)}
    known.note([BadImage(50 + process.rank, "broken"), BadImage(60, "broken")])
    result["news"] = known.has_new
    known.agree()
    result |= {"agreed": sorted(known.images), "found": known.state(), "after": known.has_new}
    known.note([BadImage(i, "broken") for i in range(10)] if process.rank else [])
    try:
        known.agree()
    except DataError as error:
        result["error"] = str(error)
    return result


@pytest.mark.multi_process
def test_what_one_rank_finds_all_ranks_know():
    for result in run_in_ranks(agree, 2):
        assert result["start"] == [7, 8]
        assert result["news"]
        assert not result["after"]
        assert result["agreed"] == [7, 8, 50, 51, 60]
        assert result["found"] == [50, 51, 60]
        assert "13 of 100 images could not be used, more than the 10 that" in result["error"]
        assert "`vggdist check /set`" in result["error"]


@pytest.mark.parametrize(
    ("count", "fraction", "allowed"), [(50, 1e-4, 10), (100, 0.15, 15), (5000, 0.01, 50)]
)
def test_a_share_of_the_images_may_break_but_always_ten(monkeypatch, count, fraction, allowed):
    monkeypatch.setattr(bad_images, "gather", lambda value: [value])
    known = KnownBad(images(count), fraction)
    for number in range(allowed):
        known.note([BadImage(number, "broken")])
        known.agree()
    known.note([BadImage(allowed, "broken")])
    with pytest.raises(DataError, match=f"{allowed + 1} of {count} images could not be used"):
        known.agree()


@pytest.fixture
def broken_dataset(tiny_dataset: Path, tmp_path: Path) -> Path:
    """The tiny data set with two training images that broke after it was listed."""
    root = tmp_path / "images"
    shutil.copytree(tiny_dataset, root, ignore=shutil.ignore_patterns("vggdist-*"))
    open_dataset(root, write=True)
    (root / "train" / "green" / "3.jpg").write_bytes(b"no image")
    (root / "train" / "red" / "0.jpg").write_bytes(b"")
    return root


def outcome(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    last = max((folder / "checkpoints").glob("step-*"))
    state = json.loads((last / "state.json").read_text())
    return load_file(last / "weights.safetensors"), state


@pytest.mark.multi_process
@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_training_with_broken_files_is_that_of_a_quarantine_bit_for_bit(
    broken_dataset, tiny_overrides, tmp_path, world_size, capfd
):
    overrides = [*tiny_overrides, f"data.root={broken_dataset}", "model.dropout=0.0"]
    met, knew = tmp_path / "met", tmp_path / "knew"
    assert train_in_ranks(world_size, [*overrides, f"run.folder={met}"]) == [0] * world_size
    printed = capfd.readouterr().err
    for name in ("green/3.jpg", "red/0.jpg"):
        assert printed.count(f"The image {broken_dataset}/train/{name} cannot be used: ") == 1
    save_quarantine(
        broken_dataset, [BadFile("train/green/3.jpg", ""), BadFile("train/red/0.jpg", "")]
    )
    assert train_in_ranks(world_size, [*overrides, f"run.folder={knew}"]) == [0] * world_size
    assert "2 training images are in quarantine" in capfd.readouterr().err
    (weights, state), (expected, other) = outcome(met), outcome(knew)
    assert all(np.array_equal(weights[name], expected[name]) for name in expected)
    green, red = 3, 7
    assert state["known_bad"] == [green, red]
    assert other["known_bad"] == []
    assert json.loads((met / "result.json").read_text())["unusable_images"] == 2


@pytest.mark.multi_process
@pytest.mark.slow
def test_a_resumed_training_remembers_what_was_bad(broken_dataset, tiny_overrides, tmp_path, capfd):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    overrides = [*tiny_overrides, f"data.root={broken_dataset}", "checkpoint.every_steps=3"]
    assert train_in_ranks(1, [*overrides, f"run.folder={whole}"]) == [0]
    assert train_in_ranks(1, [*overrides, f"run.folder={halves}"]) == [0]
    shutil.rmtree(max((halves / "checkpoints").glob("step-*")))
    capfd.readouterr()
    assert train_in_ranks(1, [*overrides, f"run.folder={halves}"]) == [0]
    assert "continuing from step 3" in capfd.readouterr().err
    (weights, state), (expected, other) = outcome(halves), outcome(whole)
    assert all(np.array_equal(weights[name], expected[name]) for name in expected)
    assert state["known_bad"] == other["known_bad"] == [3, 7]


@pytest.mark.multi_process
@pytest.mark.slow
def test_too_many_broken_files_end_the_training_on_all_ranks(
    broken_dataset, tiny_overrides, tmp_path, capfd
):
    for path in (broken_dataset / "train").glob("*/[0-3].jpg"):
        path.write_bytes(b"no image")
    overrides = [*tiny_overrides, f"data.root={broken_dataset}"]
    codes = train_in_ranks(2, overrides)
    # One may find too many by itself, before the other has heard of them.
    assert DataError.exit_code in codes
    assert set(codes) <= {DataError.exit_code, DistributedError.exit_code}
    printed = capfd.readouterr().err
    assert "of 20 images could not be used, more than the 10 that data.max_unusable" in printed
    assert "Traceback" not in printed
