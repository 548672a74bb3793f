"""Trainings whose nodes are taken by jobs of higher priority, on clusters that tell them or not."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.run_folders import wait_for_step
from tests.slurm.cluster import Cluster, require_slurm
from tests.slurm.jobs import FAULTS, SOON, SubmittedJob, assert_same_training, submit

pytestmark = FAULTS

LOW, HURRIED = "low", "hurried"
PARTITIONS = (
    f"PartitionName={LOW} Nodes=ALL Default=YES PriorityTier=1 GraceTime=20",
    f"PartitionName={HURRIED} Nodes=ALL PriorityTier=1 GraceTime=0",
    "PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF",
)
PREEMPTION = {"PreemptType": "preempt/partition_prio", "PreemptMode": "REQUEUE"}


@pytest.fixture(scope="module", params=["preempt_send_user_signal", ""], ids=["told", "not told"])
def preempting(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster that sends a job its own signal when it is preempted, and one that does not."""
    require_slurm()
    settings = dict(PREEMPTION)
    if request.param:
        settings["SlurmctldParameters"] = request.param
    with Cluster(settings, PARTITIONS) as cluster:
        yield cluster


def start(cluster: Cluster, overrides: Sequence[str], folder: Path, partition: str) -> SubmittedJob:
    job = submit(cluster, overrides, folder, "--partition", partition, "--exclusive")
    wait_for_step(folder, SOON)
    return job


def preempt(cluster: Cluster) -> None:
    """A job of higher priority takes both nodes for a moment."""
    done = cluster.run(
        *("sbatch", "--partition=high", "--exclusive", "--nodes=2", "--wrap=true"),
        *("--output=/dev/null", "--error=/dev/null"),
    )
    assert done.returncode == 0, done.stderr


def test_a_preempted_job_saves_starts_again_and_continues(
    preempting: Cluster, overrides: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    job = start(preempting, overrides, tmp_path / "run", LOW)
    preempt(preempting)
    job.wait_for_restart()
    assert "stopped at step" in job.log()
    assert not job.attempts()[0].met_time_limit, "a preemption costs no requeue of the budget"
    assert_same_training(job, undisturbed)
    assert job.details()["Restarts"] == "1"


@pytest.mark.parametrize("preempting", [""], ids=["not told"], indirect=True)
def test_where_there_is_no_time_to_save_the_last_checkpoint_is_used(
    preempting: Cluster, overrides: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    job = start(preempting, overrides, tmp_path / "run", HURRIED)
    # A rank that answers nothing: no step can be agreed on before SLURM kills it.
    with job.frozen(rank=1):
        preempt(preempting)
        job.wait_for_restart()
    assert "stopped at step" not in job.log()
    assert_same_training(job, undisturbed)
    assert job.details()["Restarts"] == "1"
