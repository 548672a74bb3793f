"""What is submitted, without a SLURM; with a real one: `tests/slurm/`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import processes
from tests.conftest import Call
from vggdist.errors import ConfigError, DistributedError
from vggdist.slurm.job import TrainingPayload
from vggdist.slurm.settings import ClusterSettings
from vggdist.slurm.submit import Layout, Submission, make_layout, sbatch_text

FOUR_NODES = ["--nodes", "4", "--gpus-per-node", "8"]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """`launch/submit.py` where there is neither SLURM nor a torch that could be imported."""
    code = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return processes.run(sys.executable, "-c", code, "launch/submit.py", *words, PATH="/nowhere")


def submission(folder: Path, **settings: object) -> Submission:
    return Submission(
        name="vgg_d",
        payloads=(TrainingPayload({}),),
        layout=Layout(nodes=4, ranks_per_node=8, gpus_per_node=8),
        settings=ClusterSettings.model_validate(settings),
        folder=folder,
        command="vggdist submit",
    )


def test_a_dry_run_shows_everything_and_needs_neither_slurm_nor_data_nor_torch(
    tmp_path: Path,
) -> None:
    answer = tmp_path / "plan.json"
    done = run(
        *("--config", "configs/vgg_d.yaml", *FOUR_NODES, "--partition", "gpu", "--dry-run"),
        *("--json", str(answer), "data.root=/nowhere", f"run.folder={tmp_path / 'run'}"),
    )
    assert done.returncode == 0, done.stderr
    for line in (
        "world size 32 = 4 nodes x 8 ranks, each with a GPU and 8 CPUs",
        "global batch 256 = 32 ranks x 8 images, in micro batches as the GPUs' memory allows",
        "  root: /nowhere",
        "#SBATCH --nodes=4",
        "#SBATCH --ntasks-per-node=8",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --partition=gpu",
        "#SBATCH --requeue",
        "#SBATCH --signal=USR2@120",
        "Nothing was started (--dry-run).",
    ):
        assert line in done.stdout.splitlines(), line
    assert "--kill-on-bad-exit=1 --open-mode=append" in done.stdout
    assert "CUDA_VISIBLE_DEVICES" not in done.stdout
    assert "deepspeed" not in json.loads(answer.read_text())["sbatch"]
    assert json.loads(answer.read_text())["world_size"] == 32
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("way", "line"),
    [
        ("--local", "all 4 ranks of 2 nodes run on this machine"),
        ("--debug", "global batch 256 = 1 rank x 4 micro batches x 64 images"),
    ],
)
def test_a_dry_run_of_what_runs_here_has_no_script(
    way: str, line: str, call: Call, tmp_path: Path
) -> None:
    words = ["--nodes", 2, "--ranks-per-node", 2, f"run.folder={tmp_path / 'run'}"]
    code, out, _ = call("submit", way, "--dry-run", *words)
    assert code == 0
    assert line in out.splitlines()
    assert "Nothing was started (--dry-run)." in out
    assert "sbatch" not in out.lower()
    assert not (tmp_path / "run").exists()


def test_a_batch_that_cannot_be_divided_is_refused_before_anything_is_submitted() -> None:
    done = run("--nodes", "3", "--gpus-per-node", "8", "--dry-run")
    assert done.returncode == ConfigError.exit_code
    assert "batch.global 256 cannot be shared equally by 24 ranks" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_slurm_a_submission_ends_with_a_sentence_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    done = run(*FOUR_NODES, f"run.folder={tmp_path / 'run'}")
    assert done.returncode == DistributedError.exit_code
    assert "sbatch is not on this machine" in done.stderr
    assert "--local" in done.stderr
    assert not (tmp_path / "run").exists()


def test_settings_do_not_belong_into_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "vgg.yaml"
    file.write_text("partition: gpu\n")
    done = run("--config", str(file), "--dry-run")
    assert done.returncode == ConfigError.exit_code
    assert "partition: unknown key" in done.stderr


def test_a_line_break_in_a_value_does_not_become_a_line_of_the_script(tmp_path: Path) -> None:
    done = run("--dry-run", "--comment", "x\ntouch /tmp/p\n#")
    assert done.returncode == ConfigError.exit_code
    assert "control character" in done.stderr
    with pytest.raises(ConfigError, match="control character or a %"):
        sbatch_text(submission(tmp_path / "x\ntouch p\n#"))
    quoted = sbatch_text(submission(tmp_path, comment="it's $(touch p)"))
    assert [line for line in quoted.splitlines() if "touch" in line] == [
        "#SBATCH --comment='it'\"'\"'s $(touch p)'"
    ]


def test_settings_become_lines_of_the_script(tmp_path: Path) -> None:
    text = sbatch_text(
        submission(
            tmp_path,
            account="vision",
            memory_gb=1.5,
            exclusive=True,
            reservation="friday",
            cpus_per_rank=12,
            setup=["module load cuda"],
        )
    )
    for line in ("--account=vision", "--mem=1536M", "--exclusive", "--reservation=friday"):
        assert f"#SBATCH {line}" in text.splitlines()
    assert "#SBATCH --cpus-per-task=12" in text
    (command,) = (line for line in text.splitlines() if line.startswith("srun "))
    assert " --cpus-per-task=12 " in command, "srun does not take it from sbatch"
    assert text.index("module load cuda") < text.index(command)


def test_a_rank_needs_a_gpu_of_its_own() -> None:
    assert make_layout(2, None, ClusterSettings(gpus_per_node=4)).world_size == 8
    assert make_layout(2, None, ClusterSettings()) == Layout(2, 1, 0)
    assert make_layout(1, 4, ClusterSettings(gpus_per_node=0)) == Layout(1, 4, 0)
    with pytest.raises(ConfigError, match="--ranks-per-node is 4"):
        make_layout(1, 4, ClusterSettings(gpus_per_node=2))


def test_help_teaches() -> None:
    done = run("--help")
    assert done.returncode == 0
    for text in ("--dry-run", "--local", "cluster.yaml", "python launch/submit.py --config"):
        assert text in done.stdout
