"""Arrays: several payloads in one submission, which do not touch each other."""

from pathlib import Path

import pytest

from tests.processes import ROOT
from tests.run_folders import wait_for_step
from tests.slurm.cluster import Cluster
from tests.slurm.jobs import FAULTS, SOON, SubmittedJob, assert_same_training, wait_for
from vggdist.config_file import load_config
from vggdist.errors import NumericError
from vggdist.slurm.job import TrainingPayload
from vggdist.slurm.settings import ClusterSettings
from vggdist.slurm.submit import Layout, Submission, submit

pytestmark = FAULTS


def test_an_element_that_fails_and_one_that_is_requeued_leave_the_others_alone(
    cluster: Cluster,
    overrides: list[str],
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    for name, value in cluster.environment().items():
        monkeypatch.setenv(name, value)
    changes = {"good": (), "requeued": (), "failing": ("optimizer.learning_rate=1e30",)}
    payloads = tuple(
        TrainingPayload(
            load_config(None, [*overrides, *more, f"run.folder={tmp_path / name}"]).model_dump(
                mode="json"
            )
        )
        for name, more in changes.items()
    )
    submission = Submission(
        name="array",
        payloads=payloads,
        layout=Layout(nodes=2, ranks_per_node=1, gpus_per_node=0),
        settings=ClusterSettings(),
        folder=tmp_path / "jobs",
        command="vggdist submit",
    )
    ids = submit(submission)
    array = ids[0].removesuffix("_0")
    assert ids == tuple(f"{array}_{number}" for number in range(3))
    jobs = {
        name: SubmittedJob(cluster, job, tmp_path / name, jobs=submission.folder)
        for name, job in zip(changes, ids, strict=True)
    }
    wait_for_step(tmp_path / "requeued", SOON)
    assert cluster.run("scancel", "--signal=USR2", ids[1]).returncode == 0
    wait_for(lambda: jobs["failing"].details()["JobState"] == "FAILED", log=jobs["failing"].log)
    assert jobs["failing"].details()["ExitCode"] == f"{NumericError.exit_code}:0"
    for name in ("good", "requeued"):
        assert_same_training(jobs[name], undisturbed)
    assert [len(jobs[name].attempts()) for name in changes] == [1, 2, 1]
