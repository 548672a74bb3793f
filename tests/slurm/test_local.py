"""Jobs in processes of this machine, as a cluster would run them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT
from tests.ranks import train_in_ranks
from tests.run_folders import assert_equal_tensors, last_checkpoint, numbers, wait_for_step
from tests.slurm.payloads import NoteGpus
from vggdist.errors import EXIT_NOT_REQUEUED, EXIT_STOPPED
from vggdist.slurm import attempts
from vggdist.slurm.settings import ClusterSettings
from vggdist.slurm.submit import Layout, Submission, run_local

pytestmark = [pytest.mark.multi_process, pytest.mark.slow]


def start(*words: str) -> subprocess.Popen[str]:
    """Starts a local job as from a terminal: in a script's background, Ctrl-C would be ignored."""
    return subprocess.Popen(
        ["env", "--default-signal=INT", sys.executable, "launch/submit.py", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    printed, told = process.communicate(timeout=200)
    return process.returncode, printed, told


def test_a_local_job_folds_its_nodes_into_one_and_shows_what_the_main_rank_says(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    answer = tmp_path / "answer.json"
    words = ("--nodes", "2", "--ranks-per-node", "1", "--local", "--json", str(answer))
    code, printed, told = finish(start(*words, *tiny_overrides))
    assert code == 0, told
    assert "all 2 ranks of 2 nodes run on this machine" in printed
    assert "Training finished" in printed
    assert "8 = 2 ranks x 1 micro batch x 4 images" in told
    assert "submitit" not in printed + told
    assert json.loads(answer.read_text())["exit_code"] == 0
    folder = tmp_path / "run" / "jobs"
    assert {path.stat().st_mode & 0o077 for path in (folder, *folder.iterdir())} == {0}
    assert (tmp_path / "run" / "result.json").stat().st_mode & 0o044, "as the user's umask says"


def test_a_mistake_is_told_once_and_its_code_is_that_of_the_command(
    tiny_overrides: list[str],
) -> None:
    code, _, told = finish(start("--nodes", "2", "--local", *tiny_overrides, "data.root=/nowhere"))
    assert code == 3
    assert told.count("/nowhere") == 1
    assert "Traceback" not in told


def test_debug_runs_the_work_in_this_process(tiny_overrides: list[str], tmp_path: Path) -> None:
    code, printed, told = finish(start("--debug", *tiny_overrides))
    assert code == 0, told
    assert "Training finished" in printed
    assert not (tmp_path / "run" / "jobs").exists()


@pytest.mark.parametrize("visible", ["GPU-5ebe9f43,GPU-21ca7e2b", "5,3", ""])
def test_the_ranks_of_a_local_job_see_the_gpus_that_the_user_sees(
    visible: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    submission = Submission(
        name="gpus",
        payloads=(NoteGpus(tmp_path),),
        layout=Layout(nodes=1, ranks_per_node=2, gpus_per_node=2),
        settings=ClusterSettings(),
        folder=tmp_path / "jobs",
        command="vggdist submit --local",
    )
    assert run_local(submission) == 0
    assert [(tmp_path / rank).read_text() for rank in "01"] == [visible, visible]


@pytest.mark.fault
def test_ctrl_c_saves_and_the_same_command_continues_bit_for_bit(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    overrides = [*tiny_overrides, "schedule.num_steps=100", "evaluation.every_epochs=100"]
    whole, broken = (tmp_path / name for name in ("whole", "broken"))
    assert train_in_ranks(2, [*overrides, f"run.folder={whole}"]) == [0, 0]
    command = ("--nodes", "2", "--local", *overrides, f"run.folder={broken}")
    job = start(*command)
    wait_for_step(broken, 20)
    os.killpg(job.pid, signal.SIGINT)  # as a terminal does
    code, _, told = finish(job)
    assert code == EXIT_STOPPED, told
    assert "stopping after a checkpoint" in told
    assert "stopped at step" in told
    code, _, told = finish(start(*command))
    assert code == 0, told
    assert "continuing from step" in told
    assert numbers(broken) == numbers(whole)
    assert_equal_tensors(last_checkpoint(broken), last_checkpoint(whole))


@pytest.mark.fault
def test_a_local_job_meets_its_time_limit_as_one_on_a_cluster(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    overrides = [*tiny_overrides, "schedule.num_steps=1000000", "evaluation.every_epochs=1e6"]
    limits = ("--time", "1", "--signal-seconds", "45", "--max-requeues", "1")
    code, _, told = finish(start(*limits, "--local", *overrides, "checkpoint.every_steps=1000000"))
    assert code == EXIT_NOT_REQUEUED, told
    assert "max_requeues, 1, is used up" in told
    (file,) = (tmp_path / "run" / "jobs").glob("*_attempts.jsonl")
    job = file.name.removesuffix("_attempts.jsonl")
    first, second = attempts.read(file.parent, job)
    assert first.met_time_limit
    assert second.met_time_limit
    assert "continuing from step" in told
