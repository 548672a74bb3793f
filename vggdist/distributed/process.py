"""This process among the ranks: rank, world size, device; joining, agreeing, summing.

The only interface to launchers is the environment that all of them set (RANK, LOCAL_RANK,
WORLD_SIZE, MASTER_ADDR, MASTER_PORT); under plain `srun` it is derived from SLURM's. A process
without it is a world of one.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar, cast

import torch
from torch import Tensor, distributed
from torch._C._distributed_c10d import HashStore, PrefixStore
from torch.distributed.rendezvous import rendezvous

from vggdist.distributed import srun
from vggdist.distributed.device import choose_device, require_kernels
from vggdist.errors import DistributedError

T = TypeVar("T")

START_TIMEOUT = timedelta(minutes=5)
WORK_TIMEOUT = timedelta(minutes=30)
"""How long ranks wait while one writes a checkpoint; torch's default."""
RENDEZVOUS_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Process:
    """One rank of the world, and its device."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    num_cores: int = 1
    """This rank's own processor cores, or its share of cores used by several ranks."""

    @property
    def is_main(self) -> bool:
        """The main rank writes files and prints."""
        return self.rank == 0


def announced_rank() -> str:
    """The launcher's name for this process, available before `start`; may be no number."""
    return os.environ.get("RANK") or srun.announced_rank(os.environ) or "0"


def start(device: str = "auto") -> Process:
    """Joins the world described by the launcher's environment, or creates a world of one.

    Raises:
        ConfigError: there is no such device, or torch cannot use it.
        DistributedError: the environment is incomplete, or not all ranks joined in five minutes.
    """
    process = _from_environment(device)
    require_kernels(process.device)
    if process.device.type == "cuda":
        torch.cuda.set_device(process.device)
    _join(process)
    process = replace(process, num_cores=_count_cores(process.device))
    if process.device.type == "cpu":
        # torchrun sets one thread per rank, the deepspeed launcher no number.
        torch.set_num_threads(process.num_cores)
    return process


def _join(process: Process) -> None:
    backend = "nccl" if process.device.type == "cuda" else "gloo"
    if process.world_size == 1:
        distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        return
    try:
        store, rank, world_size = next(rendezvous("env://", timeout=START_TIMEOUT))
        distributed.init_process_group(
            backend,
            store=PrefixStore("vggdist", store),
            rank=rank,
            world_size=world_size,
            timeout=WORK_TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        if "EADDRINUSE" in str(error) or "address already in use" in str(error):
            port = int(os.environ["MASTER_PORT"])
            raise DistributedError(
                f"port {port} of this machine is in use, perhaps by another training, and the "
                f"ranks were to meet there; name another, such as {port + 1}: deepspeed "
                f"--master_port {port + 1}, torchrun --master-port {port + 1}, or MASTER_PORT."
            ) from error
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise DistributedError(
            f"rank {process.rank} of {process.world_size} did not meet the others at {address}: "
            f"{error}. Check that every rank was started, that the address can be reached from "
            "every node, and that the port is free; GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME "
            "names the network interface to use."
        ) from error


def _count_cores(device: torch.device) -> int:
    """Cores that this rank may use, divided by the ranks that may use exactly the same cores.

    SLURM and `deepspeed --bind_cores_to_rank` give each rank its own cores; other launchers let all
    ranks of a node use all cores. So does SLURM without affinity, where threads of different jobs
    would compete for cores: there it is the number that was requested.
    """
    cores = sorted(os.sched_getaffinity(0))
    name = f"{os.uname().nodename} {cores}".encode()
    key = int.from_bytes(hashlib.sha256(name).digest()[:8], "big", signed=True)
    own = torch.tensor([key], device=device)
    keys = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(keys, own)
    share = max(1, len(cores) // torch.cat(keys).tolist().count(key))
    return min(share, srun.num_cpus(os.environ) or share)


def _from_environment(device: str) -> Process:
    os.environ.update(srun.rank_variables(os.environ))
    present = [name for name in RENDEZVOUS_VARIABLES if name in os.environ]
    if not present or present == ["MASTER_ADDR"] or present == ["MASTER_ADDR", "MASTER_PORT"]:
        return Process(0, 0, 1, choose_device(device, 0))
    missing = [name for name in RENDEZVOUS_VARIABLES if name not in os.environ]
    if missing:
        raise DistributedError(
            f"the environment sets {', '.join(present)} but not {', '.join(missing)}; start with "
            "deepspeed, torchrun or submitit, which set all of them, or unset them all for one "
            "process."
        )
    rank, local_rank, world_size = (_integer(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    if not 0 <= rank < world_size or local_rank < 0:
        raise DistributedError(
            f"RANK is {rank}, LOCAL_RANK {local_rank} and WORLD_SIZE {world_size}; ranks are "
            "counted from 0 to WORLD_SIZE - 1."
        )
    chosen = choose_device(device, local_rank, srun.num_gpus(os.environ))
    return Process(rank, local_rank, world_size, chosen)


def _integer(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise DistributedError(f"{name} is {os.environ[name]!r}, not a whole number.") from None


@contextlib.contextmanager
def joined(device: str = "auto") -> Iterator[Process]:
    """The world for a `with` block: `start`, and `stop` after success.

    An error does not tear down a world of several ranks: others may be in a collective, and NCCL
    would wait for them, up to `WORK_TIMEOUT`, before the error is shown. The process should then
    end (`vggdist.distributed.rank.leave`), and its launcher ends the others.
    """
    process = start(device)
    try:
        yield process
    except BaseException:
        if process.world_size == 1:
            stop()
        raise
    stop()


def stop() -> None:
    """Leaves the world."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of every rank's `values`, on all ranks; changes `values` in place."""
    if distributed.get_world_size() > 1:
        distributed.all_reduce(values)
    return values


def all_agree(yes: bool, device: torch.device) -> bool:
    """Whether `yes` is true on every rank."""
    refusals = torch.tensor([0 if yes else 1], device=device)
    return int(sum_over_ranks(refusals).item()) == 0


def from_main(value: T) -> T:
    """The main rank's object, on all ranks; for small objects and rare use."""
    values = [value]
    if distributed.get_world_size() > 1:
        distributed.broadcast_object_list(values, src=0)
    return values[0]


def gather_rows(rows: Tensor) -> Tensor | None:
    """All ranks' rows in rank order, on the main rank; None on the others.

    Args:
        rows: (n, d) on the rank's device; n may differ between ranks.
    """
    world_size = distributed.get_world_size()
    if world_size == 1:
        return rows
    counts = gather(len(rows))
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows
    if distributed.get_rank() > 0:
        distributed.gather(padded)
        return None
    gathered = [torch.empty_like(padded) for _ in range(world_size)]
    distributed.gather(padded, gathered)
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])


def gather(value: T) -> list[T]:
    """Every rank's object, in rank order, on all ranks; for small objects and rare use."""
    gathered: list[T | None] = [None] * distributed.get_world_size()
    if len(gathered) == 1:
        return [value]
    distributed.all_gather_object(gathered, value)
    return cast("list[T]", gathered)
