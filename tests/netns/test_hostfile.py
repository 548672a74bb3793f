"""`deepspeed --hostfile`: trainings on several machines without SLURM, over two hosts."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.netns.hosts import INTERFACE, ROOT, Host
from vggdist.errors import ConfigError

pytestmark = [pytest.mark.netns, pytest.mark.multi_process, pytest.mark.slow]

Hosts = tuple[Host, Host]

FOREVER = [
    "schedule.num_steps=1000000",
    "checkpoint.every_steps=1000000",
    "log.every_steps=100000",
    "evaluation.every_epochs=100000",
]


@pytest.fixture
def deepspeed(tmp_path: Path) -> list[str]:
    """The launcher with a hostfile of one rank on each host."""
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("node1 slots=1\nnode2 slots=1\n")
    return ["deepspeed", "--hostfile", str(hostfile)]


@pytest.fixture
def variables(path_with_ssh: str, tmp_path: Path) -> dict[str, str]:
    """The launcher's environment; what all ranks need is in a file (docs/launching.md)."""
    file = tmp_path / "deepspeed_env"
    file.write_text(f"GLOO_SOCKET_IFNAME={INTERFACE}\n")
    return {"PATH": path_with_ssh, "DS_ENV_FILE": str(file)}


def training(overrides: list[str]) -> list[str]:
    return ["launch/train.py", *overrides, "device=cpu"]


def trained_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / "step-00000006" / "weights.safetensors")


def test_a_training_on_two_hosts_by_ssh_continues_without_ssh_and_is_that_of_one_process(
    hosts: Hosts,
    deepspeed: list[str],
    variables: dict[str, str],
    tiny_overrides: list[str],
    tmp_path: Path,
) -> None:
    sent_before = [host.num_bytes_sent() for host in hosts]
    command = training([*tiny_overrides, "exchange=all_reduce"])
    done = hosts[0].run(*deepspeed, *command, "schedule.num_steps=4", **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'node1': [0], 'node2': [1]" in done.stdout, "ranks by host"
    assert done.stderr.count("8 = 2 ranks x 1 micro batch x 4 images") == 1, "rank 0 speaks"
    sent = [host.num_bytes_sent() - before for host, before in zip(hosts, sent_before, strict=True)]

    without_ssh = [*deepspeed, "--no_ssh", "--master_addr", hosts[0].address]
    both = [
        host.start(*without_ssh, "--node_rank", str(number), *command, GLOO_SOCKET_IFNAME=INTERFACE)
        for number, host in enumerate(hosts)
    ]
    printed = [process.communicate(timeout=100) for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert "continuing from step 4" in printed[0][1]

    alone = [sys.executable, *command, f"run.folder={tmp_path / 'alone'}"]
    subprocess.run(alone, cwd=ROOT, check=True, timeout=100, capture_output=True)
    expected = trained_weights(tmp_path / "alone")
    actual = trained_weights(tmp_path / "run")
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=1e-3, atol=1e-5)
    # Each of two ranks sends as many numbers as it has gradients in each step.
    num_parameters = sum(tensor.numel() for tensor in expected.values())
    assert min(sent) > 4 * num_parameters * torch.float32.itemsize


def test_a_mistake_is_printed_once_and_ends_the_launcher_with_its_code(
    hosts: Hosts, deepspeed: list[str], variables: dict[str, str], tiny_overrides: list[str]
) -> None:
    command = training([*tiny_overrides, "batch.micro=3"])
    done = hosts[0].run(*deepspeed, *command, **variables)
    assert done.returncode == ConfigError.exit_code
    assert done.stderr.count("batch.micro 3 does not divide the 4 images of each rank") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.fault
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_lets_the_ranks_save_after_its_own_end(
    hosts: Hosts,
    deepspeed: list[str],
    variables: dict[str, str],
    tiny_overrides: list[str],
    tmp_path: Path,
    number: int,
) -> None:
    command = training([*tiny_overrides, *FOREVER])
    launcher = hosts[0].start(*deepspeed, *command, **variables)
    _wait_for(lambda: _has_begun(tmp_path / "run"))
    (process,) = hosts[0].processes("--hostfile")
    os.kill(process, number)
    printed = launcher.communicate(timeout=100)
    assert launcher.returncode == 1, printed
    _wait_for(lambda: not any(host.processes("launch/train.py") for host in hosts))
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    said = (tmp_path / "run" / "log.txt").read_text()
    assert re.search(rf"stopped at step {int(saved.name.removeprefix('step-'))};", said), said


@pytest.mark.fault
def test_a_rank_that_is_killed_ends_the_training_on_both_hosts(
    hosts: Hosts,
    deepspeed: list[str],
    variables: dict[str, str],
    tiny_overrides: list[str],
    tmp_path: Path,
) -> None:
    command = training([*tiny_overrides, *FOREVER])
    launcher = hosts[0].start(*deepspeed, *command, **variables)
    _wait_for(lambda: _has_begun(tmp_path / "run"))
    for rank in hosts[1].processes("--local_rank=0"):
        os.kill(rank, signal.SIGKILL)
    printed = launcher.communicate(timeout=100)
    # -9, as an exit code has it.
    assert launcher.returncode == 256 - signal.SIGKILL, printed
    assert "node1: error: rank 0: another rank has ended; its message says why." in printed[1]
    _wait_for(lambda: not any(host.processes("launch/train.py") for host in hosts))


def _has_begun(folder: Path) -> bool:
    """Whether the first step has been logged: before it no signal is heeded."""
    file = folder / "metrics.jsonl"
    return file.exists() and file.stat().st_size > 0


def _wait_for(is_so: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.2)
