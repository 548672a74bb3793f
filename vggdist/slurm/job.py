"""What a cluster runs in each rank: the payload, and what follows when it was told to stop.

submitit pickles a `Job`: plain data and the names of classes, no code and nothing alive. Its own
signal handler is not used, because it speaks to the main rank only and at any moment: here a signal
is a flag, all ranks save together, and then the main rank asks SLURM to start the job again.
"""

import hashlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vggdist.config_file import make_config
from vggdist.distributed.entry import quiet_libraries
from vggdist.errors import EXIT_NOT_REQUEUED, EXIT_STOPPED, ConfigError, DistributedError
from vggdist.slurm import attempts, queue

if TYPE_CHECKING:
    from submitit import JobEnvironment

    from vggdist.training.signals import StopSignal

EXIT_CODE_FILE = "{job}_exit_code"
"""In the job folder: the main rank's exit code, which the job's script ends with."""

NOT_IN_RANKS = ("cli.py", "commands.py", "commands/*", "slurm/settings.py", "slurm/submit.py")
"""Modules of the command line and its help, which no rank imports."""

_PATIENCE_SECONDS = 10.0
"""How long another rank waits for the end of the main rank, which meets the same problem."""
_STOP_PATIENCE_SECONDS = 120.0
"""The same after a stop, when the main rank speaks to SLURM."""
_SIGNAL_SLACK_SECONDS = 60.0
"""SLURM may send the signal ahead of the time limit this much earlier than it was asked to."""


class Payload(Protocol):
    """What a rank does: plain data that can be pickled."""

    def run(self, stop: "StopSignal") -> int:
        """Does the work of this rank; returns its exit code.

        Once `stop.requested` is set, it keeps what it has and returns `EXIT_STOPPED`: the same
        payload goes on from there in another attempt.
        """


@dataclass(frozen=True)
class TrainingPayload:
    """A training, by its resolved configuration."""

    config: dict[str, Any]

    def run(self, stop: "StopSignal") -> int:
        """Trains on this rank."""
        quiet_libraries()
        from vggdist.pretrain import run

        return run(make_config(self.config), stop)


@dataclass(frozen=True)
class Job:
    """The callable that every rank of a job runs, in every attempt."""

    payload: Payload
    command: str
    """What was typed to submit it, and what continues it."""
    code: str
    """Digest of the program when it was submitted; empty: any may run."""
    max_requeues: int
    signal_seconds: int
    """How long before the time limit the ranks are told to stop."""
    umask: int
    """The user's, for what the payload writes; the job folder is the user's alone."""
    port: int | None = None
    """Where the ranks of a local job meet; SLURM's variables name another one in each attempt."""
    visible_gpus: str | None = None
    """What CUDA_VISIBLE_DEVICES said where a local job was submitted; submitit counts from 0."""

    def __call__(self) -> int:
        """Works until the end, or until this attempt has to stop.

        Raises:
            SystemExit: with the exit code, if it is not 0.
        """
        import submitit

        from vggdist.training.signals import StopSignal

        environment = submitit.JobEnvironment()
        _remove_leftovers(environment)
        if self.visible_gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.visible_gpus
        if environment.cluster == "local" and environment.num_tasks > 1:
            # The words of other launchers; `distributed/srun.py` reads SLURM's.
            os.environ |= {
                "RANK": str(environment.global_rank),
                "LOCAL_RANK": str(environment.local_rank),
                "WORLD_SIZE": str(environment.num_tasks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(self.port),
            }
        with StopSignal(speaks=environment.global_rank == 0) as stop:
            exit_code = _Attempt(self, environment, stop).run()
        if exit_code:
            from vggdist.distributed.rank import leave

            raise SystemExit(leave(exit_code))
        return exit_code


class _Attempt:
    """One attempt, in one rank."""

    def __init__(self, job: Job, environment: "JobEnvironment", stop: "StopSignal") -> None:
        self.job, self.environment, self.stop = job, environment, stop
        self.is_main = environment.global_rank == 0
        self.folder, self.id = environment.paths.folder, environment.job_id
        self.met_time_limit = False

    def run(self) -> int:
        if not self.is_main:
            return self._after_the_main_rank(self._run_payload())
        with self._surviving_a_full_disk():
            restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
            attempts.begin(self.folder, self.id, restarts)
        exit_code = self._run_payload()
        if exit_code == EXIT_STOPPED and not self.stop.interrupted:
            exit_code = self._continue()
        with self._surviving_a_full_disk():
            attempts.end(self.folder, self.id, exit_code, self.met_time_limit)
            file = self.folder / EXIT_CODE_FILE.format(job=self.environment.raw_job_id)
            file.write_text(f"{exit_code}\n")
        return exit_code

    def _run_payload(self) -> int:
        if self.job.code and self.job.code != digest_of_code():
            self._say(
                "error: vggdist's files have changed since this job was submitted, so it would not "
                f"be the same training. Submit it again: {self.job.command}; or submit it with "
                "--allow-code-change."
            )
            return ConfigError.exit_code
        private = os.umask(self.job.umask)
        try:
            return self.job.payload.run(self.stop)
        finally:
            os.umask(private)

    def _continue(self) -> int:
        """After the checkpoint: lets another attempt begin, where one should."""
        if self.environment.cluster == "slurm":
            return self._continue_under_slurm()
        if self.environment.cluster == "local" and not self.stop.terminated:
            from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

            self.met_time_limit = True
            return EXIT_NOT_REQUEUED if self._used_up() else LOCAL_REQUEUE_RETURN_CODE
        return EXIT_STOPPED

    def _continue_under_slurm(self) -> int:
        job = self.environment.raw_job_id
        try:
            details = queue.details(job)
            is_running = details.get("JobState") == "RUNNING"
            self.met_time_limit = _meets_time_limit(details, is_running, self.job.signal_seconds)
            if not is_running and not self.met_time_limit:
                # SLURM is ending it, to start it again by itself, or because it was cancelled:
                # a cancelled job that asks is started again.
                self._say(f"SLURM ends job {job}; what was done is saved.")
                return EXIT_STOPPED
            if self.met_time_limit and self._used_up():
                return EXIT_NOT_REQUEUED
            queue.requeue(job)
        except DistributedError as error:
            self._say(
                f"error: what was done is saved, but SLURM was not asked to start the job again. "
                f"{error} Continue with `scontrol requeue {job}`, or submit it again: "
                f"{self.job.command}"
            )
            return EXIT_NOT_REQUEUED
        self._say(f"job {job} will start again and continue.")
        return EXIT_STOPPED

    def _used_up(self) -> bool:
        former = attempts.read(self.folder, self.id)
        if sum(attempt.met_time_limit for attempt in former) < self.job.max_requeues:
            return False
        self._say(
            f"error: the time limit was met and max_requeues, {self.job.max_requeues}, is used up, "
            f"so this job does not start again. What was done is saved; continue with: "
            f"{self.job.command}"
        )
        return True

    def _after_the_main_rank(self, exit_code: int) -> int:
        """Lets the main rank end first where this one ends with a code other than 0.

        The first to end in that way ends all others at once, and it is the main rank that tells
        people what was wrong, and SLURM that the job shall start again.
        """
        self.stop.requested = False  # from now on it means that SLURM ends the job
        patience = _STOP_PATIENCE_SECONDS if exit_code == EXIT_STOPPED else _PATIENCE_SECONDS
        deadline = time.monotonic() + patience
        while exit_code and self.environment.cluster == "slurm" and time.monotonic() < deadline:
            if self.stop.requested:
                break
            time.sleep(0.1)
        return exit_code

    def _say(self, text: str) -> None:
        if self.is_main:
            sys.stderr.write(text + "\n")

    @contextmanager
    def _surviving_a_full_disk(self) -> Iterator[None]:
        """A job folder that cannot be written costs a line, not the training."""
        try:
            yield
        except OSError as error:
            self._say(f"the job folder cannot be written: {error}.")


def _meets_time_limit(details: dict[str, str], is_running: bool, signal_seconds: int) -> bool:
    """Whether a job was told to stop because its time is up, by what SLURM says of it."""
    if details.get("PreemptTime", "None") != "None":
        return False
    left = queue.seconds(details["TimeLimit"]) - queue.seconds(details["RunTime"])
    return left <= (signal_seconds + _SIGNAL_SLACK_SECONDS if is_running else 0)


def digest_of_code(package: Path = Path(__file__).parents[1]) -> str:
    """SHA-256 over vggdist's Python files that a rank may import, their names included.

    An edited help text does not keep a job from starting again, since the command line is not among
    them; the bytes of the others are compared, which is soon done and never misses a change.
    """
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        name = file.relative_to(package)
        if not any(map(name.match, NOT_IN_RANKS)):
            content = file.read_bytes()
            digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _remove_leftovers(environment: "JobEnvironment") -> None:
    """Files that an attempt was writing when it died; submitit refuses to write over them."""
    paths = environment.paths
    leftovers = [paths.result_pickle]
    if environment.global_rank == 0:
        leftovers.append(paths.submitted_pickle)
    for path in leftovers:
        with suppress(FileNotFoundError):
            path.with_suffix(path.suffix + ".save_tmp").unlink()
