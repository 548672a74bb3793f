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
from vggdist.slurm.job import EXIT_CODE_FILE, Job, Work, digest_of_code
from vggdist.slurm.queue import job_states, require_slurm
from vggdist.slurm.settings import ClusterFacts

CPUS_BESIDE_A_GPU = 8
FOREVER_MINUTES = 60 * 24 * 365
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
    works: tuple[Work, ...]
    """Several are the elements of an array."""
    layout: Layout
    facts: ClusterFacts
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
        """As the facts say, or a guess that suits decoding."""
        return self.facts.cpus_per_rank or (CPUS_BESIDE_A_GPU if self.layout.gpus_per_node else 1)


def make_layout(
    nodes: int, gpus_per_node: int | None, ranks_per_node: int | None, facts: ClusterFacts
) -> Layout:
    """One rank for each GPU, unless something else is wanted.

    Raises:
        ConfigError: more ranks than GPUs on a node that has some.
    """
    gpus = gpus_per_node if gpus_per_node is not None else facts.gpus_per_node or 0
    ranks = ranks_per_node if ranks_per_node is not None else max(1, gpus)
    if gpus and ranks > gpus:
        raise ConfigError(
            f"--ranks-per-node is {ranks}, but each rank works on a GPU of its own and a node has "
            f"{gpus}; set it to at most {gpus}, or --gpus-per-node to 0 for ranks on CPUs."
        )
    return Layout(nodes, ranks, gpus)


def sbatch_text(submission: Submission) -> str:
    """The script that sbatch gets, to the letter."""
    folder = _absolute(submission.folder)
    command = f"{_PYTHON} -u -m submitit.core._submit {shlex.quote(folder)}"
    count = len(submission.works)
    text: str = _make_sbatch_string(
        command=command,
        folder=folder,
        map_count=count if count > 1 else None,
        **_parameters(submission),
    )
    return text


def submit(submission: Submission) -> tuple[str, ...]:
    """Submits to SLURM; returns the job ids in the order of the works, `12_0` for an array's.

    Raises:
        DistributedError: there is no SLURM here, or it refuses.
        ConfigError: the job folder cannot be used.
    """
    require_slurm()
    _prepare(submission.folder)
    with _private_files() as umask, _outside_any_job():
        executor = SlurmExecutor(folder=_absolute(submission.folder), python=_PYTHON)
        executor.update_parameters(**_parameters(submission))
        try:
            with executor.batch():
                jobs = [executor.submit(_job(submission, work, umask)) for work in submission.works]
        except FailedJobError as error:
            raise DistributedError(_refusal(error)) from error
        return tuple(job.job_id for job in jobs)


def run_local(
    submission: Submission,
    limit_minutes: int | None = None,
    started: Callable[[str], None] = lambda job: None,
) -> int:
    """Runs the only work of a submission in processes of this machine; returns its exit code.

    All nodes are folded into this one. The main rank's log is shown as it grows.

    Args:
        limit_minutes: after which the ranks stop and start again, as on a cluster.
        started: is told the job's id.
    """
    (work,) = submission.works
    _prepare(submission.folder)
    with _private_files() as umask, _outside_any_job(), _interrupts_left_to_ranks():
        executor = LocalExecutor(folder=_absolute(submission.folder), python=_PYTHON)
        executor.update_parameters(
            tasks_per_node=submission.layout.world_size,
            gpus_per_node=submission.layout.nodes * submission.layout.gpus_per_node,
            timeout_min=limit_minutes or FOREVER_MINUTES,
            signal_delay_s=submission.facts.signal_seconds,
        )
        job = executor.submit(
            replace(
                _job(submission, work, umask),
                port=free_port(),
                visible_gpus=os.environ.get("CUDA_VISIBLE_DEVICES"),
            )
        )
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
    facts, layout, cpus = submission.facts, submission.layout, submission.cpus_per_rank
    verdict = (
        f"{shlex.quote(_absolute(submission.folder))}/"
        f"{EXIT_CODE_FILE.format(job='${SLURM_JOB_ID}')}"
    )
    parameters = {
        "job_name": _job_name(submission.name),
        "nodes": layout.nodes,
        "ntasks_per_node": layout.ranks_per_node,
        "gpus_per_node": layout.gpus_per_node or None,
        "cpus_per_task": cpus,
        "time": facts.time,
        "signal_delay_s": facts.signal_seconds,
        "setup": [*facts.setup, f"rm -f {verdict}"],
        # srun's code is 137 where it had to kill ranks that waited for one that had ended.
        "teardown": [
            "code=$?",
            f"if [ $code -ne 0 ] && [ -s {verdict} ]; then code=$(cat {verdict}); fi",
            "exit $code",
        ],
        "exclusive": facts.exclusive or None,
        "dependency": submission.dependency,
        **{
            name: getattr(facts, name)
            for name in (
                "partition", "account", "qos", "constraint", "nodelist", "exclude", "gres",
                "comment", "mail_user", "mail_type",
            )
        },
        "srun_args": [
            # One rank that ends badly ends the job; the others would wait for it for minutes.
            "--kill-on-bad-exit=1",
            # Not srun's default, and without it an attempt would write over the log of the last.
            "--open-mode=append",
            # Since 22.05 srun does not take it from sbatch.
            f"--cpus-per-task={cpus}",
        ],
        "additional_parameters": _further_parameters(submission),
    }  # fmt: skip
    given = {name: value for name, value in parameters.items() if value is not None}
    # submitit's own default is a key that a cluster may not know.
    return given | {"wckey": facts.wckey}


def _further_parameters(submission: Submission) -> dict[str, Any]:
    """Options of sbatch that submitit has no names for."""
    facts = submission.facts
    further: dict[str, Any] = {"requeue": True}
    if facts.memory_gb is not None:
        further["mem"] = f"{round(1024 * facts.memory_gb)}M"
    if submission.dependency is not None:
        # A job whose dependency has failed would wait for ever.
        further["kill-on-invalid-dep"] = "yes"
    for name in ("reservation", "licenses"):
        if (value := getattr(facts, name)) is not None:
            further[name] = value
    return further


def _job(submission: Submission, work: Work, umask: int) -> Job:
    return Job(
        work=work,
        command=submission.command,
        code="" if submission.allow_code_change else digest_of_code(),
        max_requeues=submission.facts.max_requeues,
        signal_seconds=submission.facts.signal_seconds,
        umask=umask,
    )


def _job_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)


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


def _prepare(folder: Path) -> None:
    """Makes the job folder, for the user alone: whoever can write there can run code as they."""
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


@contextlib.contextmanager
def _private_files() -> Iterator[int]:
    """Files are made for the user alone; yields the umask that held before.

    SLURM makes the logs with the umask of the process that submits.
    """
    umask = os.umask(0o077)
    try:
        yield umask
    finally:
        os.umask(umask)


@contextlib.contextmanager
def _outside_any_job() -> Iterator[None]:
    """Without the variables of a job in which this may run; sbatch would take them for options."""
    prefixes = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SUBMITIT_")
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    hidden = {
        name: value
        for name, value in os.environ.items()
        if (name.startswith(prefixes) or name in ranks) and name not in _KEPT_VARIABLES
    }
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextlib.contextmanager
def _interrupts_left_to_ranks() -> Iterator[None]:
    """Processes started meanwhile ignore Ctrl-C until they say what it means to them.

    submitit's local controller would kill the ranks a second after it.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _show_until_done(job: submitit.Job[Any]) -> None:
    """Copies the main rank's log to this terminal while the job runs.

    The first Ctrl-C, which the ranks get as well, waits for their checkpoint; the second does not.
    """
    with contextlib.ExitStack() as stack:
        shown: list[tuple[Any, TextIO]] = []
        interrupted = False
        while True:
            done = job.done()
            for path, stream in ((job.paths.stdout, sys.stdout), (job.paths.stderr, sys.stderr)):
                if path.exists() and not any(stream is known for _, known in shown):
                    shown.append((stack.enter_context(path.open(errors="replace")), stream))
            for file, stream in shown:
                stream.writelines(line for line in file if not line.startswith("submitit INFO"))
                stream.flush()
            if done:
                return
            try:
                time.sleep(0.2)
            except KeyboardInterrupt:
                if interrupted:
                    job._process.kill()
                    raise
                interrupted = True
                sys.stderr.write("stopping after a checkpoint; Ctrl-C again does not wait.\n")


def _refusal(error: FailedJobError) -> str:
    said = [line for line in str(error).splitlines() if "error" in line.lower()]
    return (
        f"SLURM refuses the job: {' '.join(said) or error} Check the facts about the cluster, "
        "which come from flags and from the file of --cluster; or add --local to run it here."
    )
