"""Trainings on two nodes that lose them, meet their time limit, are requeued or cancelled.

Each goes on by itself, or by the same command again, and is at the end, bit for bit, the training
that nothing happened to.
"""

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.processes import ROOT
from tests.run_folders import wait_for_step
from tests.slurm.cluster import NODES, Cluster
from tests.slurm.jobs import (
    FAULTS,
    SOON,
    SUBMIT,
    SubmittedJob,
    assert_same_training,
    scontrol,
    submit,
    wait_for,
)
from vggdist.errors import EXIT_NOT_REQUEUED, EXIT_STOPPED, ConfigError

pytestmark = FAULTS


@pytest.fixture
def running(cluster: Cluster, overrides: list[str], tmp_path: Path) -> SubmittedJob:
    """A training that has begun and has a checkpoint."""
    job = submit(cluster, overrides, tmp_path / "run")
    wait_for_step(job.run_folder, SOON)
    return job


def test_a_job_that_is_requeued_from_outside_continues(
    cluster: Cluster, running: SubmittedJob, undisturbed: Path
) -> None:
    # What an attempt leaves that dies while it writes; submitit would refuse to write over it.
    for name in ("0_result.pkl", "1_result.pkl", "submitted.pkl"):
        (running.folder / f"{running.job}_{name}.save_tmp").touch()
    scontrol(cluster, "requeue", running.job)
    running.wait_for_restart()
    assert_same_training(running, undisturbed)
    assert running.details()["Restarts"] == "1"
    assert [attempt.restarts for attempt in running.attempts()] == [0, 1]
    assert "continuing from step" in running.log()
    assert not list(running.folder.glob("*.save_tmp"))


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_lets_all_ranks_save_at_one_step_and_the_job_start_again_once(
    cluster: Cluster, running: SubmittedJob, undisturbed: Path, number: signal.Signals
) -> None:
    done = cluster.run("scancel", f"--signal={number.name}", running.job)
    assert done.returncode == 0, done.stderr
    running.wait_for_restart()
    assert f"job {running.job} will start again and continue." in running.log()
    assert_same_training(running, undisturbed)
    assert running.details()["Restarts"] == "1"
    first, _ = running.attempts()
    assert first.exit_code == EXIT_STOPPED
    assert not first.met_time_limit


def test_a_signal_to_a_job_that_is_still_importing_lets_it_start_again(
    cluster: Cluster, overrides: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    job = submit(cluster, overrides, tmp_path / "run")
    wait_for(lambda: all(job.holds_back(signal.SIGUSR2, rank) for rank in (0, 1)), log=job.log)
    assert cluster.run("scancel", "--signal=USR2", job.job).returncode == 0
    job.wait_for_restart()
    assert "stopped before there was anything to save" in job.log()
    assert_same_training(job, undisturbed)
    first, _ = job.attempts()
    assert first.exit_code == EXIT_STOPPED
    assert job.details()["Restarts"] == "1"


def test_a_job_that_meets_its_time_limit_starts_again_and_counts_it(
    cluster: Cluster, overrides: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    job = submit(cluster, overrides, tmp_path / "run", "--time=3", "--signal-seconds=140")
    job.last_until_told_to_stop()
    job.wait_for_restart()
    assert job.attempts()[0].met_time_limit
    assert_same_training(job, undisturbed)


def test_a_used_up_budget_stops_with_its_own_code_and_the_same_command_continues(
    cluster: Cluster, overrides: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    flags = ("--time=3", "--signal-seconds=140", "--max-requeues=0")
    job = submit(cluster, overrides, tmp_path / "run", *flags)
    job.last_until_told_to_stop()
    ended = job.wait_for_state("FAILED")
    assert ended["ExitCode"] == f"{EXIT_NOT_REQUEUED}:0"
    assert ended["Restarts"] == "0"
    assert "max_requeues, 0, is used up" in job.log()
    assert f"continue with: {' '.join(SUBMIT)}" in job.log()
    again = submit(cluster, overrides, tmp_path / "run")
    assert_same_training(again, undisturbed)


def test_a_cancelled_job_does_not_start_again_and_can_be_continued(
    cluster: Cluster, overrides: list[str], running: SubmittedJob, undisturbed: Path
) -> None:
    assert cluster.run("scancel", running.job).returncode == 0
    ended = running.wait_for_state("CANCELLED", "COMPLETED", "FAILED", "RUNNING")
    wait_for(lambda: running.details()["JobState"] == "CANCELLED", log=running.log)
    assert ended["Restarts"] == "0"
    assert f"SLURM ends job {running.job}; what was done is saved." in running.log()
    again = submit(cluster, overrides, running.run_folder)
    assert_same_training(again, undisturbed)
    assert running.details()["JobState"] == "CANCELLED"


def test_a_job_whose_node_goes_down_continues_when_there_are_two_again(
    cluster: Cluster, running: SubmittedJob, undisturbed: Path
) -> None:
    scontrol(cluster, "update", f"nodename={NODES[1]}", "state=down", "reason=test")
    try:
        wait_for(lambda: running.details()["Restarts"] == "1", log=running.log)
    finally:
        # Refused where the node has come back by itself (ReturnToService).
        cluster.run("scontrol", "update", f"nodename={NODES[1]}", "state=resume")
    assert_same_training(running, undisturbed)


def test_a_job_that_cannot_ask_slurm_says_how_to_continue(
    cluster: Cluster, overrides: list[str], tmp_path: Path
) -> None:
    broken = tmp_path / "bin"
    broken.mkdir()
    (broken / "scontrol").write_text("#!/bin/sh\necho 'no controller' >&2\nexit 1\n")
    (broken / "scontrol").chmod(0o755)
    settings = tmp_path / "cluster.yaml"
    settings.write_text(f"setup: ['export PATH={broken}:$PATH']\n")
    job = submit(cluster, overrides, tmp_path / "run", "--cluster", str(settings))
    wait_for_step(job.run_folder, SOON)
    cluster.run("scancel", "--signal=USR2", job.job)
    ended = job.wait_for_state("FAILED")
    assert ended["ExitCode"] == f"{EXIT_NOT_REQUEUED}:0"
    assert "no controller Continue with `scontrol requeue" in job.log()


def test_code_that_changed_since_the_submission_is_refused_unless_it_is_allowed(
    cluster: Cluster, overrides: list[str], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("vggdist", "launch"):
        shutil.copytree(ROOT / name, copy / name)
    jobs = {
        allowed: submit(
            cluster,
            overrides,
            tmp_path / f"run{allowed}",
            *(["--allow-code-change"] if allowed else []),
            root=copy,
        )
        for allowed in (False, True)
    }
    for job in jobs.values():
        wait_for_step(job.run_folder, SOON)
    with (copy / "vggdist" / "errors.py").open("a") as file:
        file.write("# changed\n")
    for job in jobs.values():
        scontrol(cluster, "requeue", job.job)
        job.wait_for_restart()
    refused = jobs[False].wait_for_state("FAILED")
    assert refused["ExitCode"] == f"{ConfigError.exit_code}:0"
    assert "vggdist's files have changed since this job was submitted" in jobs[False].log()
    assert "Submit it again: python launch/submit.py" in jobs[False].log()
    jobs[True].wait_for_state("COMPLETED")


def test_a_rank_that_is_killed_fails_the_job_and_the_same_command_continues(
    cluster: Cluster, overrides: list[str], running: SubmittedJob, undisturbed: Path
) -> None:
    os.kill(running.process(rank=1), signal.SIGKILL)
    running.wait_for_state("FAILED")
    again = submit(cluster, overrides, running.run_folder)
    assert_same_training(again, undisturbed)


def test_a_second_submission_to_a_run_folder_in_use_is_refused(
    cluster: Cluster, overrides: list[str], running: SubmittedJob
) -> None:
    done = cluster.run(*SUBMIT, *overrides, f"run.folder={running.run_folder}")
    assert done.returncode == ConfigError.exit_code
    assert f"job {running.job} (RUNNING) is training in {running.run_folder}" in done.stderr
    cluster.run("scancel", running.job)
