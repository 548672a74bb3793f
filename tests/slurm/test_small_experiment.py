"""The small experiment on a real cluster: arrays, jobs that wait for each other, every stage."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from tests.run_folders import last_checkpoint
from tests.slurm.cluster import Cluster
from vggdist.artifacts.posteriors import open_posteriors
from vggdist.prepare.digits import write_digits

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.multi_process,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]

SECONDS = 600.0
"""The whole experiment takes less on two processor cores."""


@pytest.fixture(scope="module")
def folder(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The experiment's folder, once all of its jobs have ended; the first one was requeued."""
    root = tmp_path_factory.mktemp("experiment")
    write_digits(root / "digits")
    for name in (root / "digits" / "val").iterdir():
        for image in sorted(name.iterdir())[NUM_IMAGES_OF_A_CLASS:]:
            image.unlink()
    deadline = time.monotonic() + SECONDS
    done = run(cluster, root)
    assert done["jobs"] == 15
    folder = root / "small"

    def wait_while(is_so: Callable[[], object]) -> None:
        while is_so():
            assert time.monotonic() < deadline, cluster.run(*VGGDIST, "status", str(folder)).stdout
            time.sleep(0.5)

    wait_while(lambda: not (folder / "a_32" / "metrics.jsonl").exists())
    requeued = cluster.run("scontrol", "requeue", done["submitted"]["a_32"])
    assert requeued.returncode == 0, requeued.stderr
    wait_while(lambda: cluster.run("squeue", "--noheader").stdout)
    return folder


VGGDIST = ("python", "-m", "vggdist", "experiment")
FILE = "configs/experiments/small.yaml"
SHORTER = ("set.schedule.num_epochs=2", "stages.learning_rates.set.schedule.num_epochs=0.3")
NUM_IMAGES_OF_A_CLASS = 8
"""In the validation set."""


def run(cluster: Cluster, root: Path) -> dict[str, Any]:
    """Runs what is missing; what the command has answered."""
    answer = root / "answer.json"
    words = (f"data={root}/digits", f"folder={root}/small", *SHORTER, "--json", str(answer))
    done = cluster.run(*VGGDIST, "run", FILE, *words, "--time", "30")
    assert done.returncode == 0, done.stderr
    shown: dict[str, Any] = json.loads(answer.read_text())
    return shown


def weights(run_folder: Path) -> Path:
    return last_checkpoint(run_folder) / "weights.safetensors"


def test_every_stage_is_done_and_none_is_run_again(cluster: Cluster, folder: Path) -> None:
    answer = folder.parent / "status.json"
    done = cluster.run(*VGGDIST, "status", str(folder), "--json", str(answer))
    stages = json.loads(answer.read_text())["stages"]
    assert {stage["state"] for stage in stages.values()} == {"done"}, done.stdout
    requeued = {name: stage["requeued"] for name, stage in stages.items()}
    assert {name: count for name, count in requeued.items() if count} == {"a_32": 1}
    assert run(cluster, folder.parent)["submitted"] == {}


def test_stages_that_are_alike_are_one_array(folder: Path) -> None:
    lines = (folder / "jobs.jsonl").read_text().splitlines()
    jobs = {record["stage"]: record["job"] for record in map(json.loads, lines)}
    rates = [f"learning_rates/optimizer.learning_rate={rate}" for rate in ("0.1", "0.01")]
    first = jobs["a_32"].partition("_")[0]
    assert [jobs[name] for name in ("a_32", *rates)] == [f"{first}_{n}" for n in range(3)]
    assert jobs["b_32"].partition("_")[0] == jobs["d_32"].partition("_")[0] != first
    assert len({job.partition("_")[0] for job in jobs.values()}) < len(jobs)


@pytest.mark.parametrize(
    ("stage", "source", "random"),
    [
        ("b_32", "a_32", "conv1_2, conv2_2, conv4_1, conv4_2"),
        ("d_32", "a_32", "conv1_2, conv2_2, conv3_3, conv4_1, conv4_2, conv4_3"),
        ("d_40", "d_32", "nothing"),
        ("d_jitter", "d_40", "nothing"),
    ],
)
def test_a_stage_begins_with_the_last_weights_of_the_one_before(
    folder: Path, stage: str, source: str, random: str
) -> None:
    log = (folder / stage / "log.txt").read_text()
    assert f"copied from {weights(folder / source)}: conv1_1 <- conv1_1, " in log
    assert f"; random: {random}" in log


def test_layers_that_are_not_trained_are_those_of_the_stage_before(folder: Path) -> None:
    before, after = (load_file(weights(folder / name)) for name in ("d_40", "d_jitter_fc"))
    assert before.keys() == after.keys()
    kept = {name for name in before if before[name].tobytes() == after[name].tobytes()}
    assert kept == {name for name in before if name.startswith("features.")}
    assert kept


def test_networks_learn_from_stage_to_stage(folder: Path) -> None:
    results = {
        path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/result.json")
    }
    for name in ("a_32", "b_32", "d_32", "d_40", "d_jitter", "d_jitter_fc"):
        assert results[name]["top1_error"] < 0.2, name


def test_one_job_for_each_network_writes_all_its_posteriors(folder: Path) -> None:
    result = json.loads((folder / "evaluate_d_jitter" / "result.json").read_text())
    sources = [open_posteriors(Path(row["file"])).source for row in result["files"]]
    assert {(source.protocol, source.scale) for source in sources} == {
        (protocol, scale) for protocol in ("dense", "multi-crop") for scale in (32, 40, 48)
    }
    assert {source.train_scale for source in sources} == {(32, 48)}


def test_the_report_has_the_means_of_every_network(folder: Path) -> None:
    report = json.loads((folder / "report" / "result.json").read_text())
    means = {
        (tuple(mean["train_scale"]), *mean["protocols"], *mean["scales"])
        for mean in report["averages"]
    }
    assert ((32, 48), "multi-crop", "dense", 32, 40, 48) in means
    assert ((40, 40), "dense", 32, 40, 48) in means
    assert len(report["files"]) == 1 + 2 + 2 + 3 + 6 + 3
    assert (folder / "report" / "report.html").is_file()
