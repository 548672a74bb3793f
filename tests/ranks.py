"""Runs a function of a test in several ranks, each a process of its own, over gloo or NCCL."""

import faulthandler
import os
import pickle
import queue
import runpy
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as multiprocessing

from vggdist.config_file import load_config
from vggdist.distributed import process as world
from vggdist.distributed.process import Process
from vggdist.pretrain import run

# A server imports the large libraries once, and ranks are its forks: a rank of its own making would
# take four seconds of CPU time before its first line.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "vggdist.pretrain", "tests.preloaded"])


_SECOND_PORT = "TEST_SECOND_PORT"


class _Output:
    """This process's stdout or stderr of now, which arrives in a rank as a file descriptor.

    What the server has is that of the first test.
    """

    def __init__(self, number: int) -> None:
        self._number = number

    def __reduce__(self) -> tuple[Callable[[Any], int], tuple[Any]]:
        return _take, (DupFd(self._number),)


def _take(sent: Any) -> int:
    descriptor: int = sent.detach()
    return descriptor


def run_in_ranks(
    function: Callable[..., Any],
    world_size: int,
    *arguments: Any,
    device: str = "cpu",
    fresh: bool = False,
) -> list[Any]:
    """Calls `function(process, *arguments)` in every rank; returns the results in rank order.

    `function` must be importable (defined at a test module's top level), its results picklable.
    A failure in any rank fails the test with that rank's traceback.

    Args:
        function: what each rank does.
        world_size: ranks.
        arguments: of `function`, after its `Process`.
        device: `cpu` or `cuda`, as in the configuration.
        fresh: start each rank from nothing, as CUDA needs it: it cannot be used in the fork of a
            process in which anybody has asked for GPUs.
    """
    context = multiprocessing.get_context("spawn") if fresh else FORKS
    results = context.Queue()
    port = free_port()
    environment = {**os.environ, _SECOND_PORT: str(free_port())}
    processes = [
        context.Process(
            target=_rank,
            args=(function, rank, world_size, port, results, arguments),
            kwargs={
                "device": device,
                "environment": environment,
                "outputs": (_Output(1), _Output(2)),
            },
        )
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    try:
        answers = _answers(processes, results)
        for rank, (good, answer) in sorted(answers.items()):
            assert good, f"rank {rank}:\n{answer}"
        for process in processes:
            process.join(timeout=60)
            assert process.exitcode == 0, f"a rank ended with {process.exitcode}"
    finally:
        for process in processes:
            process.kill()
    return [answers[rank][1] for rank in range(world_size)]


def leave_world() -> None:
    """Leaves the world that `run_in_ranks` has started, for what joins one by itself.

    The next one meets at another port: at the same one, a rank that is sooner than the main rank
    would find the store of the world that ends.
    """
    world.stop()
    os.environ["MASTER_PORT"] = os.environ[_SECOND_PORT]


def train_in_ranks(
    world_size: int, overrides: Sequence[str], config: Path | None = None
) -> list[int]:
    """The exit code of each rank of a training, of a configuration file or the defaults."""
    return run_in_ranks(_train, world_size, config, list(overrides))


def _train(process: Process, config: Path | None, overrides: list[str]) -> int:
    leave_world()
    return run(load_config(config, overrides))


def _answers(processes: Sequence[BaseProcess], results: Any) -> dict[int, Any]:
    """What every rank has put into the queue; soon fails where one has died before that."""
    answers: dict[int, Any] = {}
    latest = time.monotonic()
    while len(answers) < len(processes):
        try:
            rank, answer = pickle.loads(results.get(timeout=5))
            answers[rank], latest = answer, time.monotonic()
        except queue.Empty:
            silent = {
                rank: process.exitcode
                for rank, process in enumerate(processes)
                if rank not in answers
            }
            if any(code is not None for code in silent.values()) or time.monotonic() > latest + 240:
                pytest.fail(
                    f"ranks without an answer, and the code that each ended with (None: it still "
                    f"runs): {silent}; the answers of the others: {answers}"
                )
    return answers


def rank_variables(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What a launcher tells a rank of this machine."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _rank(
    function: Callable[..., Any],
    rank: int,
    world_size: int,
    port: int,
    results: Any,
    arguments: tuple[Any, ...],
    device: str,
    environment: dict[str, str],
    outputs: Sequence[int],
) -> None:
    _become(environment | rank_variables(rank, world_size, port), outputs)
    faulthandler.enable()  # says where, should a library crash
    try:
        torch.set_num_threads(1)
        answer = (True, function(world.start(device), *arguments))
    except BaseException:
        answer = (False, traceback.format_exc())
    # Pickled here: the queue would share the memory of tensors, which ends with this process.
    results.put(pickle.dumps((rank, answer)))
    world.stop()
    results.close()
    results.join_thread()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # As a fork ends. Threads of libraries abort a process that ends in the usual way, now and then.
    os._exit(0)


class Script:
    """A launch script in a process of its own, forked from the server of `run_in_ranks`."""

    def __init__(self, script: Path, arguments: Sequence[str], **variables: str) -> None:
        with tempfile.NamedTemporaryFile("w", delete=False) as output:
            self._output = Path(output.name)
            number = output.fileno()
            self._process = FORKS.Process(
                target=_run_script,
                args=(str(script), list(arguments)),
                kwargs={
                    "environment": {**os.environ, **variables},
                    "outputs": (_Output(number), _Output(number)),
                },
            )
            self._process.start()

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def finish(self, timeout: float = 200) -> tuple[int, str]:
        """The exit code and everything printed."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
        printed = self._output.read_text()
        self._output.unlink()
        assert code is not None, f"still running after {timeout} seconds:\n{printed}"
        return code, printed


def _run_script(
    script: str, arguments: list[str], environment: dict[str, str], outputs: Sequence[int]
) -> None:
    _become(environment, outputs)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def _become(environment: dict[str, str], outputs: Sequence[int]) -> None:
    """Takes over what a process that the test starts itself would have from it."""
    for number, output in enumerate(outputs, start=1):
        os.dup2(output, number)
    os.environ.clear()
    os.environ |= environment


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
