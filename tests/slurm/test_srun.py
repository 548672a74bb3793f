"""Ranks that plain `srun` starts, and processes that it does not, on a real cluster."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.processes import ROOT
from tests.slurm.cluster import Cluster
from tests.slurm.jobs import wait_for
from vggdist.artifacts.posteriors import load_posteriors
from vggdist.artifacts.weights import Description, save_weights
from vggdist.config import ModelConfig
from vggdist.errors import ConfigError
from vggdist.model.initialization import build_initialized

pytestmark = [pytest.mark.slurm, pytest.mark.multi_process]

MEET = """
import json, torch
from vggdist.distributed import process as world
announced = world.announced_rank()
process = world.start("cpu")
total = world.sum_over_ranks(torch.tensor([process.rank + 1, 10])).tolist()
world.stop()
told = [announced, process.rank, process.local_rank, process.world_size, *total]
# In one write: all ranks' lines go through the same srun.
print(json.dumps(told) + "\\n", end="")
"""

TELL = """
import json, os
from vggdist.distributed.srun import rank_variables
print(json.dumps(rank_variables(os.environ)) + "\\n", end="")
"""


def lines(printed: str) -> list:
    """The JSON lines, sorted; whatever shells print around them is left out."""
    return sorted(json.loads(line) for line in printed.splitlines() if line[:1] in "[{")


@pytest.mark.parametrize(("per_node", "world_size"), [(1, 2), (2, 4)])
def test_tasks_of_two_nodes_meet_and_add_up(
    cluster: Cluster, per_node: int, world_size: int
) -> None:
    tasks = f"--ntasks-per-node={per_node}"
    done = cluster.run("srun", "--nodes=2", tasks, "python", "-c", MEET)
    assert done.returncode == 0, done.stderr
    total = [world_size * (world_size + 1) // 2, 10 * world_size]
    assert lines(done.stdout) == [
        [str(rank), rank, rank % per_node, world_size, *total] for rank in range(world_size)
    ]


def test_a_process_that_srun_did_not_start_and_a_single_task_are_worlds_of_one(
    cluster: Cluster,
) -> None:
    single = cluster.run("srun", "--nodes=1", "--ntasks=1", "python", "-c", TELL)
    assert lines(single.stdout) == [{}], single.stderr
    script = f"#!/bin/sh\npython -c '{TELL}'\n"
    printed = cluster.folder / "batch.txt"
    done = cluster.run(
        "sbatch", "--wait", "--nodes=2", "--ntasks=4", f"--output={printed}", stdin=script
    )
    assert done.returncode == 0, done.stderr
    assert lines(printed.read_text()) == [{}]


def trained_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / "step-00000006" / "weights.safetensors")


def test_a_training_on_two_nodes_is_that_of_one_process(
    cluster: Cluster, tiny_overrides: list[str], tmp_path: Path
) -> None:
    command = ["python", "launch/train.py", *tiny_overrides, "device=cpu"]
    many = cluster.run("srun", "--nodes=2", "--ntasks=2", *command)
    assert many.returncode == 0, many.stderr
    assert many.stderr.count("8 = 2 ranks x 1 micro batch x 4 images") == 1, "rank 0 speaks"
    alone = [*command, f"run.folder={tmp_path / 'alone'}"]
    subprocess.run(
        [sys.executable, *alone[1:]], cwd=ROOT, check=True, timeout=120, capture_output=True
    )
    expected = trained_weights(tmp_path / "alone")
    for name, tensor in trained_weights(tmp_path / "run").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-5)


def test_an_evaluation_on_two_nodes_is_that_of_one_process(
    cluster: Cluster, tiny_dataset: Path, tmp_path: Path
) -> None:
    model = ModelConfig(configuration=(("3-8",), ("3-16",)), num_classes=3, fc_width=32)
    network = build_initialized(model, 32, seed=0)
    weights = tmp_path / "tiny.safetensors"
    save_weights(weights, network.state_dict(), Description(model, 32, (120.0, 110.0, 100.0)))
    found = {}
    for name, launcher in (
        ("alone", [sys.executable]),
        ("many", ["srun", "--nodes=2", "--ntasks=3", "python"]),
    ):
        words = [str(weights), "--data", str(tiny_dataset), "--scales", "40", "precision=fp32"]
        words += ["device=cpu", "--out", str(tmp_path / name)]
        json_file = tmp_path / f"{name}.json"
        done = cluster.run(*launcher, "launch/evaluate.py", *words, "--json", str(json_file))
        assert done.returncode == 0, done.stderr
        (file,) = json.loads(json_file.read_text())["files"]
        found[name] = load_posteriors(Path(file["file"])).values
    assert len(found["many"]) == 7
    np.testing.assert_allclose(found["many"], found["alone"], atol=1e-5)


def test_a_mistake_is_printed_once_and_ends_the_job_with_its_code(
    cluster: Cluster, tiny_overrides: list[str]
) -> None:
    command = ["python", "launch/train.py", *tiny_overrides, "device=cpu", "batch.micro=3"]
    done = cluster.run("srun", "--nodes=2", "--ntasks=2", *command)
    assert done.returncode == ConfigError.exit_code
    assert done.stderr.count("batch.micro 3 does not divide the 4 images of each rank") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.fault
def test_a_rank_that_is_killed_ends_the_job(
    cluster: Cluster, tiny_overrides: list[str], tmp_path: Path
) -> None:
    changes = ["schedule.num_steps=1000000", "checkpoint.every_steps=1000000", "device=cpu"]
    changes += ["log.every_steps=100000", "evaluation.every_epochs=100000"]
    command = ["python", "launch/train.py", *tiny_overrides, *changes]
    job = subprocess.Popen(
        ["srun", "--kill-on-bad-exit=1", "--nodes=2", "--ntasks=2", *command],
        cwd=ROOT,
        env=cluster.environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for((tmp_path / "run" / "metrics.jsonl").exists)
        (rank,) = _ranks(cluster, "1")
        os.kill(rank, signal.SIGKILL)
        job.communicate(timeout=60)
        assert job.returncode != 0
        wait_for(lambda: not _ranks(cluster, "0"))
    finally:
        job.kill()
        job.wait()


def _ranks(cluster: Cluster, number: str) -> list[int]:
    """The Python processes of a rank: slurmstepd has the same variables on some versions."""
    return [
        process
        for process in cluster.processes(SLURM_PROCID=number)
        if b"launch/train.py" in Path(f"/proc/{process}/cmdline").read_bytes()
    ]
