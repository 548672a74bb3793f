"""What is asked of SLURM's commands, played by scripts; the real ones are in `tests/slurm/`."""

from pathlib import Path

import pytest

from vggdist.errors import DistributedError
from vggdist.slurm import queue


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of PATH besides the system's shell."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def play(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_jobs_in_the_queue_have_a_state_and_finished_ones_are_absent(commands: Path) -> None:
    play(
        commands, "squeue", "printf '7|RUNNING|None\\n12_0|PENDING|Dependency\\n99|RUNNING|None\\n'"
    )
    states = queue.job_states(["7", "8", "12_0"])
    assert states == {
        "7": queue.QueuedJob("RUNNING", "None"),
        "12_0": queue.QueuedJob("PENDING", "Dependency"),
    }
    assert queue.job_states([]) == {}


def test_without_slurm_the_local_way_is_told(commands: Path) -> None:
    with pytest.raises(DistributedError, match=r"sbatch is not on this machine.*--local"):
        queue.require_slurm()


def test_a_refusal_is_told_in_slurms_words(commands: Path) -> None:
    play(commands, "scontrol", "echo 'slurm_load_jobs error: Invalid job id' >&2; exit 1")
    with pytest.raises(DistributedError, match=r"scontrol requeue 7 failed: .*Invalid job id"):
        queue.requeue("7")


def test_what_is_no_job_id_never_becomes_a_command(commands: Path) -> None:
    for text in ("7; rm x", "", "7_", "-1", "all"):
        with pytest.raises(DistributedError, match="is no id of a SLURM job"):
            queue.requeue(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("00:01:05", 65),
        ("1-02:03:04", 93784),
        ("UNLIMITED", float("inf")),
        ("Partition_Limit", float("inf")),
    ],
)
def test_times_are_read_as_slurm_prints_them(text: str, expected: float) -> None:
    assert queue.seconds(text) == expected
