"""Every file that vggdist keeps on disk, as an earlier version wrote it, read through the commands.

`make.py` wrote the folders beside this file; what they hold is the oracle.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.ranks import train_in_ranks
from tests.run_folders import steps
from vggdist.cli import main
from vggdist.data.dataset import open_dataset
from vggdist.data.read import read_encoded
from vggdist.transfer.features_file import load_features

VERSIONS = ("first",)
SETTINGS = ("device=cpu", "precision=fp32", "data.num_threads=1")


@pytest.fixture(params=VERSIONS)
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what a version has written, in which the commands run."""
    copy = tmp_path / "written"
    shutil.copytree(Path(__file__).parent / request.param, copy)
    monkeypatch.chdir(copy)
    return copy


def vggdist(*words: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["vggdist", *words])
        assert main() == 0


def stored_errors(file: str) -> tuple[float, float]:
    errors = json.loads(Path(file).read_text())
    return errors["top1_error"], errors["top5_error"]


def trained(config: Path, run: Path, data: Path, num_steps: int) -> list[float]:
    """The steps that are logged in the run folder when the training is through."""
    paths = [f"run.folder={run}", f"data.root={data}"]
    assert train_in_ranks(1, [*paths, f"schedule.num_steps={num_steps}"], config) == [0]
    return steps(run)


@pytest.mark.multi_process
def test_a_run_continues_from_its_checkpoint(folder):
    run = folder / "run"
    assert trained(run / "config.yaml", run, folder / "photos", 8) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert json.loads((run / "result.json").read_text())["steps"] == 8


@pytest.mark.multi_process
def test_shards_are_trained_on(folder):
    config = folder / "run" / "config.yaml"
    assert trained(config, folder / "again", folder / "shards", 2) == [1, 2]


@pytest.mark.parametrize("network", ["run", "weights.safetensors"])
@pytest.mark.parametrize("protocol", ["center-crop", "dense"])
@pytest.mark.parametrize("data", ["photos", "shards"])
def test_a_network_says_of_images_what_it_said(folder, network, protocol, data):
    words = ["evaluate", network, "--protocol", protocol, "--scales", "32", "--data", data]
    vggdist(*words, "--out", "again", "--json", "again.json", *SETTINGS)
    (again,) = Path("again").glob("*.npz")
    (before,) = Path("posteriors").glob(f"*{protocol}*.npz")
    with np.load(again) as computed, np.load(before) as stored:
        np.testing.assert_allclose(computed["posteriors"], stored["posteriors"], atol=1e-5)
        np.testing.assert_array_equal(computed["labels"], stored["labels"])
    assert stored_errors("again.json") == stored_errors(f"{protocol}.json")


def test_posteriors_that_are_there_are_not_computed_again(folder):
    (file,) = Path("posteriors").glob("*dense*.npz")
    written = file.stat().st_mtime_ns
    words = ["evaluate", "run", "--protocol", "dense", "--scales", "32", "--data", "photos"]
    vggdist(*words, "--out", "posteriors", *SETTINGS)
    assert file.stat().st_mtime_ns == written
    assert len(list(Path("posteriors").iterdir())) == 2


def test_posteriors_make_a_report(folder):
    vggdist("report", "posteriors", "--json", "report.json")
    assert json.loads(Path("report.json").read_text())


def test_features_are_what_they_were(folder):
    words = ["features", "run", "--data", "photos/val", "--layer", "fc7", "--scales", "32"]
    vggdist(*words, "--out", "again.npz", *SETTINGS)
    with np.load("again.npz") as computed, np.load("features.npz") as stored:
        np.testing.assert_allclose(computed["X"], stored["X"], atol=1e-5)
        np.testing.assert_array_equal(computed["y"], stored["y"])


def test_a_features_file_is_read(folder):
    features = load_features(Path("features.npz"))
    assert features.descriptors.shape == (6, 8)
    assert features.classes == ("blue", "green", "red")


def at(folder: Path, request: Path) -> None:
    """Says of what was prepared that it came from `folder`."""
    request.write_text(request.read_text().replace("/data", str(folder)))


def test_prepared_shards_are_not_made_again(folder):
    at(folder, Path("shards/.vggdist-prepared.json"))
    (shard,) = Path("shards/train").glob("*.tar")
    written = shard.stat().st_mtime_ns
    words = ["prepare", "folder", "photos", "--out", "shards", "--shorter-side", "40"]
    vggdist(*words)
    assert shard.stat().st_mtime_ns == written


def test_an_interrupted_preparation_goes_on_after_its_last_shard(folder):
    at(folder, Path("interrupted/.vggdist-prepare/request.json"))
    written = [path.stat().st_mtime_ns for path in sorted(Path("interrupted/train").glob("*.idx"))]
    assert len(written) == 2
    words = ["prepare", "folder", "photos", "--shard-megabytes", "0.004", "--out", "interrupted"]
    vggdist(*words)
    shards = sorted(Path("interrupted/train").glob("*.idx"))
    assert len(shards) > 2
    assert [path.stat().st_mtime_ns for path in shards[:2]] == written
    photos, interrupted = open_dataset("photos"), open_dataset("interrupted", write=True)
    for before, after in zip(
        (photos.train, photos.val), (interrupted.train, interrupted.val), strict=True
    ):
        assert after.digest == before.digest
        for image in range(before.num_images):
            encoded = read_encoded(before.place(image)).tobytes()
            assert read_encoded(after.place(image)).tobytes() == encoded


def test_a_check_finds_what_it_found(folder):
    vggdist("check", "photos", "--json", "check.json")
    (bad,) = json.loads(Path("check.json").read_text())["quarantine"]
    assert bad["file"] == "train/red/broken.jpg"
