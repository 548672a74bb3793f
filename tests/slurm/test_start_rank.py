"""The oracle is the same Python without it, which a signal ends."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT
from tests.slurm.jobs import wait_for
from vggdist.slurm import submit as submission
from vggdist.training.signals import SIGNALS

RANK = """
import sys, time
time.sleep(float(sys.argv[1]))  # a rank imports for as long
from vggdist.training.signals import StopSignal
with StopSignal() as stop:
    print(stop.requested, stop.terminated, stop.interrupted)
"""


def start(python: list[str], seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*python, "-c", RANK, str(seconds)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def blocked(process: subprocess.Popen[str]) -> int:
    """The signals that a process has blocked, a bit each."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    (mask,) = (line.split()[1] for line in lines if line.startswith("SigBlk"))
    return int(mask, 16)


@pytest.mark.fault
@pytest.mark.parametrize("number", SIGNALS, ids=[number.name for number in SIGNALS])
def test_a_signal_that_comes_before_the_handlers_waits_for_them(number: signal.Signals) -> None:
    with start(shlex.split(submission._PYTHON), 0.3) as rank:
        wait_for(lambda: blocked(rank) != 0, pause=0.005)
        os.kill(rank.pid, number)
        printed, told = rank.communicate(timeout=60)
    assert rank.returncode == 0
    expected = (True, number == signal.SIGTERM, number == signal.SIGINT)
    assert printed.split() == [str(value) for value in expected]
    assert told.count(f"{number.name} received: stopping") == 1


@pytest.mark.fault
def test_without_it_the_signal_ends_the_rank() -> None:
    with start([sys.executable], 30) as rank:
        os.kill(rank.pid, signal.SIGUSR2)
        assert rank.wait(timeout=60) == -signal.SIGUSR2


def test_a_rank_that_no_signal_comes_to_has_none_and_none_blocked() -> None:
    code = "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    told = subprocess.check_output(
        [*shlex.split(submission._PYTHON), "-c", f"{RANK}\n{code}", "0"], cwd=ROOT, text=True
    )
    assert told.splitlines() == ["False False False", "set()"]


def test_arguments_variables_and_input_pass_through() -> None:
    code = "import os, sys; print(sys.argv[1:], sys.flags.isolated, os.environ['X'], input())"
    told = subprocess.run(
        [*shlex.split(submission._PYTHON), "-u", "-c", code, "a b", "$c", "-I"],
        env={**os.environ, "X": "y"},
        input="z",
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == "['a b', '$c', '-I'] 0 y z\n"
