"""Jobs on their way to a cluster: to SLURM, or to processes of this machine. The door to submitit.

Nothing here imports torch, so that a login node answers at once.
"""

import contextlib
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import submitit
from submitit.core.utils import FailedJobError
from submitit.local.local import LocalExecutor
from submitit.slurm.slurm import SlurmExecutor, _make_sbatch_string

from vggdist.artifacts.paths import quote
from vggdist.distributed.port import free_port
from vggdist.errors import ConfigError, DistributedError
from vggdist.slurm import attempts
from vggdist.slurm.job import EXIT_CODE_FILE, Job, Payload, digest_of_code
from vggdist.slurm.queue import job_states, require_slurm
from vggdist.slurm.settings import ClusterSettings

CPUS_PER_GPU = 8
FOREVER_MINUTES = 60 * 24 * 365
_OF_A_JOB = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SUBMITIT_")
_OF_A_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_KEPT_VARIABLES = ("SLURM_CONF", "SLURM_CLUSTERS")
_PYTHON = shlex.join([sys.executable, "-IS", str(Path(__file__).with_name("start_rank.py"))])
"""What a rank is started with in place of Python."""


@dataclass(frozen=True)
class Layout:
    """How many processes run where."""

    nodes: int
    ranks_per_node: int
    gpus_per_node: int
    """0: the ranks work on CPUs."""

    @property
    def world_size(self) -> int:
        """All ranks."""
        return self.nodes * self.ranks_per_node


@dataclass(frozen=True)
class Submission:
    """A job, or an array of jobs that are alike, before SLURM has it."""

    name: str
    payloads: tuple[Payload, ...]
    """Several are the elements of an array."""
    layout: Layout
    settings: ClusterSettings
    folder: Path
    """The job folder, for submitit's files and the logs; it is the user's alone."""
    command: str
    """What was typed; it is shown where it is what continues the job."""
    dependency: str | None = None
    """sbatch's --dependency, such as afterok:12_0:13."""
    allow_code_change: bool = False
    """Whether a later attempt may run other code than there is now."""

    @property
    def cpus_per_rank(self) -> int:
        """As the settings say, or a guess that suits decoding."""
        return self.settings.cpus_per_rank or (CPUS_PER_GPU if self.layout.gpus_per_node else 1)


def make_layout(nodes: int, ranks_per_node: int | None, settings: ClusterSettings) -> Layout:
    """One rank for each GPU, unless something else is wanted.

    Raises:
        ConfigError: more ranks than GPUs on a node that has some.
    """
    gpus = settings.gpus_per_node or 0
    ranks = ranks_per_node if ranks_per_node is not None else max(1, gpus)
    if gpus and ranks > gpus:
        raise ConfigError(
            f"--ranks-per-node is {ranks}, but each rank works on a GPU of its own and a node has "
            f"{gpus}; set it to at most {gpus}, or --gpus-per-node to 0 for ranks on CPUs."
        )
    return Layout(nodes, ranks, gpus)


def sbatch_text(submission: Submission) -> str:
    """The script that sbatch gets, to the letter.

    submitit has no public way to it, least of all on a machine without srun.
    """
    folder = _absolute(submission.folder)
    count = len(submission.payloads)
    text: str = _make_sbatch_string(
        command=f"{_PYTHON} -u -m submitit.core._submit {shlex.quote(folder)}",
        folder=folder,
        map_count=count if count > 1 else None,
        **_parameters(submission),
    )
    return text


def submit(submission: Submission) -> tuple[str, ...]:
    """Submits to SLURM; returns the job ids in the order of the payloads, `12_0` for an array's.

    Raises:
        DistributedError: there is no SLURM here, or it refuses.
        ConfigError: the job folder cannot be used.
    """
    require_slurm()
    with _as_a_user_submits(submission.folder) as umask:
        executor = SlurmExecutor(folder=_absolute(submission.folder), python=_PYTHON)
        executor.update_parameters(**_parameters(submission))
        job = _job(submission, umask)
        try:
            with executor.batch():
                jobs = [
                    executor.submit(replace(job, payload=payload))
                    for payload in submission.payloads
                ]
        except FailedJobError as error:
            lines = [line for line in str(error).splitlines() if "error" in line.lower()]
            raise DistributedError(
                f"SLURM refuses the job: {' '.join(lines) or error} Check the settings of the "
                "cluster, which come from flags and from the file of --cluster; or add --local to "
                "run it here."
            ) from error
        return tuple(job.job_id for job in jobs)


def run_local(
    submission: Submission,
    limit_minutes: int | None = None,
    started: Callable[[str], None] = lambda job: None,
) -> int:
    """Runs the only payload of a submission in processes of this machine; returns its exit code.

    All nodes are folded into this one. The main rank's log is shown as it grows.

    Args:
        limit_minutes: after which the ranks stop and start again, as on a cluster.
        started: is told the job's id.
    """
    # submitit's local controller would kill the ranks a second after Ctrl-C. What is started while
    # it is ignored here ignores it as well, until the ranks say what it means to them.
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with _as_a_user_submits(submission.folder) as umask:
            executor = LocalExecutor(folder=_absolute(submission.folder), python=_PYTHON)
            executor.update_parameters(
                tasks_per_node=submission.layout.world_size,
                gpus_per_node=submission.layout.nodes * submission.layout.gpus_per_node,
                timeout_min=limit_minutes or FOREVER_MINUTES,
                signal_delay_s=submission.settings.signal_seconds,
            )
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            job = executor.submit(
                replace(_job(submission, umask), port=free_port(), visible_gpus=visible)
            )
    finally:
        signal.signal(signal.SIGINT, interrupt)
    started(job.job_id)
    _show_until_done(job)
    history = attempts.read(Path(_absolute(submission.folder)), job.job_id)
    if not history or history[-1].exit_code is None:
        sys.stderr.write(
            f"error: the main rank ended without a word; see {quote(job.paths.stderr)} and the "
            "other ranks' logs beside it.\n"
        )
        return DistributedError.exit_code
    return history[-1].exit_code


def running_jobs(folder: Path) -> dict[str, str]:
    """Jobs of a job folder that SLURM still has: id -> state; none where there is no SLURM."""
    suffix = "_submitted.pkl"
    ids = [file.name.removesuffix(suffix) for file in folder.glob(f"*{suffix}")]
    try:
        return {job: queued.state for job, queued in job_states(ids).items()}
    except DistributedError:
        return {}


def typed_command() -> str:
    """The command line of this process, as one would type it again."""
    program = Path(sys.argv[0])
    words = [program.name] if program.name == "vggdist" else ["python", sys.argv[0]]
    return shlex.join([*words, *sys.argv[1:]])


def _parameters(submission: Submission) -> dict[str, Any]:
    """What submitit makes sbatch's lines of."""
    settings, layout, cpus = submission.settings, submission.layout, submission.cpus_per_rank
    code_file = EXIT_CODE_FILE.format(job="${SLURM_JOB_ID}")
    code_file = f"{shlex.quote(_absolute(submission.folder))}/{code_file}"
    options = {
        **settings.sbatch_options(),
        "gpus_per_node": layout.gpus_per_node or None,
        "requeue": True,
        "dependency": submission.dependency,
        # A job whose dependency has failed would wait for ever.
        "kill-on-invalid-dep": submission.dependency and "yes",
    }
    return {
        "job_name": re.sub(r"[^\w.-]+", "-", submission.name),
        "nodes": layout.nodes,
        "ntasks_per_node": layout.ranks_per_node,
        "cpus_per_task": cpus,
        "signal_delay_s": settings.signal_seconds,
        "setup": [*settings.setup, f"rm -f {code_file}"],
        # srun's code is 137 where it had to kill ranks that waited for one that had ended.
        "teardown": [
            "code=$?",
            f"if [ $code -ne 0 ] && [ -s {code_file} ]; then code=$(cat {code_file}); fi",
            "exit $code",
        ],
        "srun_args": [
            # One rank that ends badly ends the job; the others would wait for it for minutes.
            "--kill-on-bad-exit=1",
            # Not srun's default, and without it an attempt would write over the log of the last.
            "--open-mode=append",
            # Since 22.05 srun does not take it from sbatch.
            f"--cpus-per-task={cpus}",
        ],
        "wckey": None,  # submitit's own is a key that a cluster may not know
        "additional_parameters": {
            name: value for name, value in options.items() if value is not None
        },
    }


def _job(submission: Submission, umask: int) -> Job:
    """The job of the first payload."""
    return Job(
        payload=submission.payloads[0],
        command=submission.command,
        code="" if submission.allow_code_change else digest_of_code(),
        max_requeues=submission.settings.max_requeues,
        signal_seconds=submission.settings.signal_seconds,
        umask=umask,
    )


def _absolute(folder: Path) -> str:
    """The folder's whole path, which becomes a part of scripts.

    Raises:
        ConfigError: it has characters that SLURM or a shell would read otherwise.
    """
    path = str(folder.absolute())
    if not path.isprintable() or "%" in path:
        raise ConfigError(
            f"the job folder {quote(path)} has a control character or a % in its name, which "
            "sbatch reads as something else; choose another run.folder."
        )
    return path


@contextlib.contextmanager
def _as_a_user_submits(folder: Path) -> Iterator[int]:
    """Makes the job folder; meanwhile files are the user's alone, and no job's variables are set.

    Whoever can write to the folder can run code as the user. SLURM makes the logs with the umask of
    the process that submits, and sbatch would take the variables of a job in which this may run for
    options. Yields the umask that held before.
    """
    path = Path(_absolute(folder))
    try:
        path.mkdir(parents=True, exist_ok=True)
        if path.stat().st_uid != os.getuid():
            raise ConfigError(
                f"the job folder {quote(path)} belongs to somebody else, who could make your job "
                "run anything; choose another run.folder."
            )
        path.chmod(0o700)
    except OSError as error:
        raise ConfigError(
            f"the job folder {quote(path)} cannot be made: {error}. Choose another run.folder."
        ) from error
    hidden = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if (name.startswith(_OF_A_JOB) or name in _OF_A_RANK) and name not in _KEPT_VARIABLES
    }
    umask = os.umask(0o077)
    try:
        yield umask
    finally:
        os.umask(umask)
        os.environ.update(hidden)


def _show_until_done(job: submitit.Job[Any]) -> None:
    """Copies the main rank's log to this terminal while the job runs.

    The first Ctrl-C, which the ranks get as well, waits for their checkpoint; the second does not.
    """
    logs: dict[Path, TextIO] = {}
    interrupted = done = False
    with contextlib.ExitStack() as stack:
        while not done:
            done = job.done()
            for path, stream in ((job.paths.stdout, sys.stdout), (job.paths.stderr, sys.stderr)):
                if path not in logs and path.exists():
                    logs[path] = stack.enter_context(path.open(errors="replace"))
                new = logs.get(path, ())
                stream.writelines(line for line in new if not line.startswith("submitit INFO"))
                stream.flush()
            try:
                time.sleep(0 if done else 0.2)
            except KeyboardInterrupt:
                if interrupted:
                    job._process.kill()
                    raise
                interrupted = True
                sys.stderr.write("stopping after a checkpoint; Ctrl-C again does not wait.\n")
