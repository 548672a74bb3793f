"""A training submitted to the test cluster as users submit one, and what a test does to it."""

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import ROOT
from tests.run_folders import assert_equal_tensors, last_checkpoint, numbers, steps
from tests.slurm.cluster import Cluster
from vggdist.slurm import attempts
from vggdist.slurm.attempts import Attempt

FAULTS = [
    pytest.mark.slurm,
    pytest.mark.multi_process,
    pytest.mark.fault,
    pytest.mark.slow,
    pytest.mark.timeout(400),
]
"""Marks of tests in which something befalls a job."""

SOON = 60
"""A step by which a training has a checkpoint."""

SUBMIT = ("python", "launch/submit.py", "--nodes", "2", "--ranks-per-node", "1")
PAUSE_SECONDS = 0.001


@dataclass(frozen=True)
class SubmittedJob:
    """A job of two ranks, one on each node."""

    cluster: Cluster
    job: str
    run_folder: Path
    jobs: Path | None = None
    """The job folder; none: that of a training by itself."""

    @property
    def folder(self) -> Path:
        """The job folder."""
        return self.jobs or self.run_folder / "jobs"

    def details(self) -> dict[str, str]:
        """What SLURM says of it; it remembers ended jobs for five minutes."""
        shown = self.cluster.run("scontrol", "--oneliner", "show", "job", self.job)
        assert shown.returncode == 0, shown.stderr
        return dict(word.partition("=")[::2] for word in shown.stdout.split() if "=" in word)

    def wait_for_state(self, *states: str, seconds: float = 120.0) -> dict[str, str]:
        """Waits until SLURM has the job in one of these states."""
        wait_for(lambda: self.details()["JobState"] in states, seconds, self.log)
        return self.details()

    def wait_for_restart(self, count: int = 1) -> None:
        """Waits until the job runs in its attempt number `count`, from 0."""
        wait_for(lambda: len(self.attempts()) > count, log=self.log)

    def attempts(self) -> tuple[Attempt, ...]:
        """Those that have begun."""
        return attempts.read(self.folder, self.job)

    def log(self, rank: int = 0) -> str:
        """What a rank has said, in all attempts."""
        file = self.folder / f"{self.job}_{rank}_log.err"
        return file.read_text() if file.exists() else ""

    def process(self, rank: int) -> int:
        """The rank's process."""
        (process,) = self.processes(rank)
        return process

    def processes(self, rank: int) -> list[int]:
        """The rank's process, if it is there."""
        return [
            number
            for number in self.cluster.processes(SLURM_PROCID=str(rank), SLURM_JOB_ID=self.job)
            if b"submitit.core._submit" in Path(f"/proc/{number}/cmdline").read_bytes()
        ]

    def holds_back(self, number: signal.Signals, rank: int) -> bool:
        """Whether the rank's process is there and blocks a signal: it waits for its handler."""
        for process in self.processes(rank):
            with suppress(ProcessLookupError, FileNotFoundError):
                status = Path(f"/proc/{process}/status").read_text()
                (blocked,) = re.findall(r"^SigBlk:\s*(\w+)$", status, re.MULTILINE)
                return bool(int(blocked, 16) >> (number - 1) & 1)
        return False

    def last_until_told_to_stop(self) -> None:
        """Holds up the training, once it has made some steps, until SLURM sends its signal.

        SLURM may do so at once; and it sends SIGCONT, which lets a paused rank go on.
        """
        wait_for(lambda: self._has_begun() or self._has_stopped(), log=self.log)
        for process in self.processes(rank=1):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGSTOP)
        wait_for(self._has_stopped, log=self.log)

    def _has_begun(self) -> bool:
        return (self.run_folder / "metrics.jsonl").exists() and SOON in steps(self.run_folder)

    def _has_stopped(self) -> bool:
        return any(attempt.ended_at for attempt in self.attempts())

    @contextmanager
    def frozen(self, rank: int) -> Iterator[None]:
        """Meanwhile this rank does nothing, whatever SLURM sends it."""
        process, thawed = self.process(rank), threading.Event()

        def freeze() -> None:
            with suppress(ProcessLookupError):
                while not thawed.wait(PAUSE_SECONDS):
                    os.kill(process, signal.SIGSTOP)

        thread = threading.Thread(target=freeze)
        thread.start()
        try:
            yield
        finally:
            thawed.set()
            thread.join()
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


def assert_same_training(job: SubmittedJob, undisturbed: Path) -> None:
    """The job has ended well, and what came out is equal in every bit."""
    ended = job.wait_for_state("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    said = (str(ended), job.cluster.printed_about(job.job), job.log())
    assert ended["JobState"] == "COMPLETED", "\n".join(said)
    assert ended["ExitCode"] == "0:0"
    assert numbers(job.run_folder) == numbers(undisturbed)
    assert_equal_tensors(last_checkpoint(job.run_folder), last_checkpoint(undisturbed))


def submit(
    cluster: Cluster, overrides: Sequence[str], folder: Path, *flags: str, root: Path = ROOT
) -> SubmittedJob:
    """Submits with `launch/submit.py`; `root` is the project, or a copy of it."""
    answer = folder.with_suffix(".submitted.json")
    command = [*SUBMIT, *flags, "--json", str(answer), *overrides, f"run.folder={folder}"]
    done = cluster.run("env", f"--chdir={root}", *command)
    assert done.returncode == 0, done.stderr
    return SubmittedJob(cluster, json.loads(answer.read_text())["job"], folder)


def wait_for(
    is_so: Callable[[], bool],
    seconds: float = 120.0,
    log: Callable[[], str] = lambda: "",
    pause: float = 0.1,
) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, log()
        time.sleep(pause)


def scontrol(cluster: Cluster, *words: str) -> None:
    done: subprocess.CompletedProcess[str] = cluster.run("scontrol", *words)
    assert done.returncode == 0, done.stderr
