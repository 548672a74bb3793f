"""Ranks under plain `srun`: SLURM's variables translated to those of the other launchers.

One `srun` starts a step, and its tasks have SLURM_STEP_NUM_TASKS. The shells of `sbatch` and
`salloc` lack it, although they have SLURM_NTASKS and SLURM_PROCID; an interactive shell is a step
of one task, whatever the value of SLURM_NTASKS.
"""

import re
from collections.abc import Mapping

from vggdist.errors import DistributedError

FIRST_PORT = 20_000
NUM_PORTS = 12_000
"""These ports end below those that Linux uses for outgoing connections (from 32768 on)."""

_HOST = r"(?:[^][,\s]|\[\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*\])+"


def is_one_of_several(environment: Mapping[str, str]) -> bool:
    """Whether this process is one of several tasks of an `srun`."""
    return environment.get("SLURM_STEP_NUM_TASKS", "1") != "1"


def announced_rank(environment: Mapping[str, str]) -> str | None:
    """SLURM's number of the task, in a step of several tasks."""
    return environment.get("SLURM_PROCID") if is_one_of_several(environment) else None


def rank_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT for a task of a step.

    Empty outside a step of several tasks, and if another launcher has set a rank. An address or
    port set in the environment is kept.

    Raises:
        DistributedError: a variable is missing or invalid.
    """
    launched = any(name in environment for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    if launched or not is_one_of_several(environment):
        return {}
    rank = _number(environment, "SLURM_PROCID")
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(_number(environment, "SLURM_LOCALID")),
        "WORLD_SIZE": str(_number(environment, "SLURM_STEP_NUM_TASKS")),
        "MASTER_ADDR": environment.get("MASTER_ADDR") or _main_host(environment, rank),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(_port(environment)),
    }


def num_gpus(environment: Mapping[str, str]) -> int:
    """GPUs of all of the step's tasks on this node, even if each sees fewer; 0: unknown."""
    given = environment.get("SLURM_GPUS_ON_NODE", "")
    return int(given) if is_one_of_several(environment) and given.isdecimal() else 0


def num_cpus(environment: Mapping[str, str]) -> int | None:
    """CPUs per task, which a cluster without affinity does not enforce; None: unknown."""
    given = environment.get("SLURM_CPUS_PER_TASK", "")
    return int(given) if given.isdecimal() and int(given) else None


def num_restarts(environment: Mapping[str, str]) -> int:
    """How often SLURM has restarted this job.

    Raises:
        DistributedError: SLURM_RESTART_COUNT is not a number.
    """
    name = "SLURM_RESTART_COUNT"
    return _number(environment, name) if name in environment else 0


def first_host(hosts: str) -> str:
    """The first host of a list in SLURM's notation: `rack[1-2]n[07-09,12],login` -> `rack1n07`.

    Raises:
        DistributedError: not such a list.
    """
    if not re.fullmatch(f"{_HOST}(?:,{_HOST})*", hosts):
        raise DistributedError(
            f"SLURM_STEP_NODELIST is {hosts!r}, which is not a list of hosts such as node[1-2,5]; "
            "set MASTER_ADDR to the host of rank 0."
        )
    first = re.match(_HOST, hosts)
    assert first is not None
    return re.sub(r"\[(\d+)[^]]*\]", r"\1", first.group())


def _main_host(environment: Mapping[str, str], rank: int) -> str:
    host = first_host(_text(environment, "SLURM_STEP_NODELIST"))
    # This happens with --distribution=arbitrary; the list is sorted by name even then.
    if rank == 0 and environment.get("SLURM_NODEID", "0") != "0":
        own = environment.get("SLURMD_NODENAME", "another host")
        raise DistributedError(
            f"SLURM has put rank 0 on {own} and not on {host}, the first host of the step, where "
            "the other ranks look for it; use another distribution of tasks, or set MASTER_ADDR to "
            "the host of rank 0 for all ranks."
        )
    return host


def _port(environment: Mapping[str, str]) -> int:
    """A port that differs between successive jobs, between their first steps and their restarts.

    Jobs that share a node mostly have close numbers, and a restarted job must not connect to what
    is left of its last attempt.
    """
    job, step = (_number(environment, name) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return FIRST_PORT + (64 * job + 8 * step + num_restarts(environment)) % NUM_PORTS


def _number(environment: Mapping[str, str], name: str) -> int:
    text = _text(environment, name)
    if not text.isdecimal():
        raise DistributedError(f"{name} is {text!r}, not a whole number.")
    return int(text)


def _text(environment: Mapping[str, str], name: str) -> str:
    if name not in environment:
        raise DistributedError(
            f"SLURM_STEP_NUM_TASKS is {environment['SLURM_STEP_NUM_TASKS']}, so this process is "
            f"one of several that srun has started, but {name} is not set; start it with srun and "
            "leave SLURM's variables as they are, or unset SLURM_STEP_NUM_TASKS for one process."
        )
    return environment[name]
