"""The whole training, started as users start it, in processes of their own."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests import processes
from tests.processes import ROOT
from tests.ranks import Script, free_port, rank_variables, train_in_ranks
from tests.run_folders import (
    assert_equal_tensors,
    last_checkpoint,
    numbers,
    records,
    steps,
    wait_for_step,
)
from vggdist.errors import EXIT_STOPPED, ConfigError, DataError

SCRIPT = ROOT / "launch" / "train.py"

pytestmark = [pytest.mark.multi_process, pytest.mark.slow]


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return processes.run(*command, PATH=path, **variables)


def start_ranks(world_size: int, overrides: list[str]) -> list[Script]:
    """Ranks without a launcher, so that a test can signal each of them."""
    port = free_port()
    return [
        Script(SCRIPT, overrides, **rank_variables(rank, world_size, port))
        for rank in range(world_size)
    ]


def finish(ranks: list[Script]) -> tuple[list[int], str]:
    """Exit codes and everything printed."""
    codes, printed = zip(*[rank.finish() for rank in ranks], strict=True)
    return list(codes), "\n".join(printed)


def test_python_torchrun_and_deepspeed_train_and_resume_each_other(tiny_overrides, tmp_path):
    folder = tmp_path / "run"
    built = tmp_path / "built"
    python = run(
        sys.executable, str(SCRIPT), *tiny_overrides, "schedule.num_steps=2",
        TORCH_EXTENSIONS_DIR=str(built),
    )  # fmt: skip
    assert python.returncode == 0, python.stderr
    assert not built.exists(), "no compiler is needed"
    torchrun = run(
        "torchrun", "--standalone", "--nproc-per-node", "2", "-m", "vggdist", "train",
        *tiny_overrides, "schedule.num_steps=4",
    )  # fmt: skip
    assert torchrun.returncode == 0, torchrun.stderr
    assert "continuing from step 2" in torchrun.stderr
    deepspeed = run(
        "deepspeed", "--num_gpus", "2", "--master_port", str(free_port()), str(SCRIPT),
        *tiny_overrides, "schedule.num_steps=6",
    )  # fmt: skip
    assert deepspeed.returncode == 0, deepspeed.stdout + deepspeed.stderr
    assert "continuing from step 4" in deepspeed.stderr
    assert "2 ranks" in deepspeed.stderr
    assert steps(folder) == [1, 2, 3, 4, 5, 6]

    result = json.loads((folder / "result.json").read_text())
    assert result["steps"] == 6
    assert result["top1_error"] == records(folder, "validation")[-1]["top1_error"]
    assert result["top5_error"] == 0  # three classes
    assert [row["name"] for row in result["classes"]] == ["green", "red", "yellow"]
    assert sum(row["num_images"] for row in result["classes"]) == 7
    assert result["images_per_second"] > 0
    assert result["seconds"] > 0
    assert (folder / "predictions.png").read_bytes().startswith(b"\x89PNG")
    assert list((folder / "tensorboard" / folder.name).glob("events.*"))
    for text in ("top-1 error", "images/s", str(folder), "tensorboard --logdir"):
        assert text in deepspeed.stdout.replace("\n", ""), deepspeed.stdout


@pytest.mark.fault
def test_a_killed_training_continues_bit_for_bit_in_the_middle_of_an_epoch(
    tiny_overrides, tmp_path
):
    # 2.5 steps an epoch; batch normalization, dropout and momentum all have a state to lose.
    overrides = [
        *tiny_overrides,
        "model.batch_norm=true",
        "schedule.num_steps=60",
        "checkpoint.every_steps=7",
        "evaluation.every_epochs=20",
    ]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train_in_ranks(2, [*overrides, f"run.folder={whole}"]) == [0, 0]

    ranks = start_ranks(2, [*overrides, f"run.folder={broken}"])
    wait_for_step(broken, 10)
    for rank in ranks:
        rank.kill()
    finish(ranks)
    killed_at = max(steps(broken))
    assert killed_at < 60
    codes, printed = finish(start_ranks(2, [*overrides, f"run.folder={broken}"]))
    assert codes == [0, 0], printed
    assert "continuing from step" in printed

    assert numbers(broken) == numbers(whole)
    assert_equal_tensors(last_checkpoint(broken), last_checkpoint(whole))


@pytest.mark.fault
def test_a_signal_to_one_rank_saves_on_all_and_continues_on_another_number_of_ranks(
    tiny_overrides, tmp_path
):
    overrides = [*tiny_overrides, "schedule.num_steps=60", "evaluation.every_epochs=20"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train_in_ranks(1, [*overrides, f"run.folder={whole}"]) == [0]

    ranks = start_ranks(2, [*overrides, f"run.folder={stopped}"])
    wait_for_step(stopped, 5)
    ranks[1].send_signal(signal.SIGTERM)
    codes, printed = finish(ranks)
    assert codes == [75, 75], printed
    stopped_at = int(last_checkpoint(stopped).name.removeprefix("step-"))
    assert 5 <= stopped_at < 60
    assert f"stopped at step {stopped_at}" in printed

    codes, printed = finish(start_ranks(1, [*overrides, f"run.folder={stopped}"]))
    assert codes == [0], printed
    assert f"continuing from step {stopped_at}" in printed
    # The same images and dropout masks; only the order of the sums of gradients differs.
    expected = load_file(last_checkpoint(whole) / "weights.safetensors")
    actual = load_file(last_checkpoint(stopped) / "weights.safetensors")
    for name, tensor in expected.items():
        assert actual[name] == pytest.approx(tensor, rel=1e-3, abs=1e-5), name


@pytest.mark.fault
def test_the_verb_starts_ranks_that_save_when_it_is_told_to_stop(tiny_overrides, tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "vggdist", "train", "--ranks", "2", *tiny_overrides]
    training = subprocess.Popen(
        [*command, "schedule.num_steps=100000", "evaluation.every_epochs=1000000"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_step(folder, 5)
    training.terminate()
    _, printed = training.communicate(timeout=60)
    assert training.returncode == EXIT_STOPPED, printed
    assert "2 ranks" in printed
    stopped_at = int(last_checkpoint(folder).name.removeprefix("step-"))
    assert printed.count(f"stopped at step {stopped_at}") == 1


@pytest.mark.fault
def test_a_training_whose_terminal_is_closed_saves_and_stops(tiny_overrides, tmp_path):
    folder = tmp_path / "run"
    pid, terminal = pty.fork()
    if pid == 0:  # the child's terminal is the other end
        os.chdir(ROOT)
        endless = ("schedule.num_steps=100000", "evaluation.every_epochs=1000000")
        os.execv(sys.executable, [sys.executable, str(SCRIPT), *tiny_overrides, *endless])
    while not (folder / "metrics.jsonl").exists() or 5 not in steps(folder):
        os.read(terminal, 4096)  # else it would be full, and the training wait
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == EXIT_STOPPED
    log = (folder / "log.txt").read_text()
    assert f"stopped at step {int(last_checkpoint(folder).name.removeprefix('step-'))}" in log


def run_in_terminal(*command: str) -> tuple[int, str]:
    """The exit code of a command, and all that its terminal got until it ended."""
    pid, terminal = pty.fork()
    if pid == 0:  # the child's terminal is the other end
        os.chdir(ROOT)
        os.execv(command[0], command)
    got = b""
    while True:
        try:
            got += os.read(terminal, 4096)
        except OSError:  # nobody has it open any more
            break
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), got.decode().replace("\r\n", "\n")


def test_two_ranks_speak_as_one_on_a_terminal(tiny_overrides, tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "vggdist", "train", "--ranks", "2", *tiny_overrides]
    code, got = run_in_terminal(*command, "log.every_steps=2", "exchange=factors")
    assert code == 0, got
    started, *rest = got.replace("\r\x1b[K", "\n").splitlines()
    assert re.fullmatch(rf"..:..:.. starting 2 ranks of configuration custom in {folder}", started)
    told = [re.sub(r"^..:..:.. ", "", line) for line in rest if line]
    assert told[0] == f"run folder {folder}; its curves: tensorboard --logdir {folder}/tensorboard"
    assert told[2] == "global batch 8 = 2 ranks x 1 micro batch x 4 images; 6 steps, 2.40 epochs"
    assert told[4].startswith("chosen for this machine: cpu, precision fp32, as set; images deco")
    assert told[4].endswith("; gradients exchanged whole, those of fc6, fc7, fc8 as factors.")
    live = [line for line in told if line.startswith("step ")]
    whole = r"step (\d)/6  left \d:..:..  loss [\d.]+  top-1 error [\d.]+ %  [\d.]+ images/s  d"
    shown = [int(match.group(1)) for line in live if (match := re.match(whole, line))]
    assert len(shown) == len(live), "by one rank, in one form"
    assert shown == sorted(shown)
    assert set(shown) >= {1, 2, 4, 6}
    assert told[-1].startswith("most often taken for another: ")
    # 5 lines of the start, 2 or 3 evaluations, the end, and the table: nobody else speaks.
    assert len(told) - len(live) < 25, got
    log = (folder / "log.txt").read_text()
    assert "Gradient exchange, MB sent by each of 2 ranks" in log
    assert "step 2/6  left " in log


def test_an_error_of_all_ranks_is_told_once_on_a_clean_terminal(tiny_overrides, tmp_path):
    command = [sys.executable, "-m", "vggdist", "train", "--ranks", "2", *tiny_overrides]
    code, got = run_in_terminal(*command, "data.root=/nowhere")
    assert code == DataError.exit_code
    started, error, _ = got.split("\n")
    assert "starting 2 ranks" in started
    assert error.startswith("\r\x1b[Kerror: The data folder /nowhere does not exist")
    assert not (tmp_path / "run").exists()


def test_the_verb_refuses_once_whatever_the_number_of_ranks(tmp_path):
    ended = run(sys.executable, "-m", "vggdist", "train", "--ranks", "2", "batch.global=0")
    assert ended.returncode == ConfigError.exit_code
    assert ended.stderr.count("batch.global") == 1


@pytest.mark.fault
def test_a_disk_without_room_is_told_in_true_sentences_and_once(tiny_overrides, tmp_path):
    """Files of at most 4 kB stand for it, since only root can make a small disk."""
    folder = tmp_path / "run"
    limited = ["bash", "-c", 'ulimit -f 4; exec "$0" "$@"', sys.executable]
    ended = run(*limited, str(SCRIPT), *tiny_overrides, "schedule.num_steps=40",
                "evaluation.every_epochs=20",
                "checkpoint.every_steps=15")  # fmt: skip
    assert ended.returncode == 5, ended.stderr
    assert "Traceback" not in ended.stderr
    told = [line for line in ended.stderr.splitlines() if "written" in line]
    curves, checkpoint, another, last = told
    no_room = f"fix the permissions of {folder}/checkpoints. There is none before it."
    assert (
        f"curves and log in {folder} cannot be written, training continues without them: " in curves
    )
    for step, line in ((15, checkpoint), (30, another), (40, last)):
        assert f"the checkpoint of step {step} could not be written: " in line
        assert no_room in line
    assert another.endswith("Training continues.")
    assert last.startswith("error: ")
    assert "step 40/40" in ended.stderr, "the terminal has it all"
    assert (folder / "metrics.jsonl").stat().st_size == 4096, "else nothing was limited"


@pytest.mark.fault
def test_a_loss_that_is_not_finite_stops_all_ranks_naming_the_step(tiny_overrides, tmp_path):
    codes, printed = finish(start_ranks(2, [*tiny_overrides, "optimizer.learning_rate=1e30"]))
    assert codes == [4, 4], printed
    assert printed.count("the loss or a gradient is infinite or not a number") == 1
    assert "error: step 2:" in printed or "error: step 3:" in printed
    assert "Traceback" not in printed
