"""What SLURM sets in a task, as ranks; the environments are those that SLURM 22.05 was seen to set.

`tests/slurm` compares with a real cluster.
"""

import os

import pytest
import torch

from vggdist.distributed import process as world
from vggdist.distributed import srun
from vggdist.distributed.process import Process
from vggdist.errors import ConfigError, DistributedError

# `sbatch --nodes 2 --ntasks-per-node 2`: its script, and task 3 of an `srun` in it.
SCRIPT = {
    "SLURM_JOB_ID": "3",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0",
    "SLURMD_NODENAME": "node1",
}
TASK = SCRIPT | {
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "3",
    "SLURM_STEP_ID": "1",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURMD_NODENAME": "node2",
}
# The shell of `salloc --nodes 2 --ntasks 4` where the cluster starts it as an interactive step.
INTERACTIVE = SCRIPT | {
    "SLURM_STEP_ID": "4294967290",
    "SLURM_STEP_NODELIST": "node1",
    "SLURM_STEP_NUM_TASKS": "1",
}
RANK = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": str(20_000 + 64 * 3 + 8),
}


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of this process, without what a launcher or SLURM may have set."""
    launched = {"MASTER_ADDR", "MASTER_PORT", *RANK}
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in launched and not name.startswith("SLURM")
    }
    monkeypatch.setattr(os, "environ", kept)
    return kept


def error_of(environment: dict[str, str]) -> str:
    with pytest.raises(DistributedError) as caught:
        srun.rank_variables(environment)
    return str(caught.value)


def test_a_task_of_several_is_a_rank(variables: dict[str, str]) -> None:
    assert srun.rank_variables(TASK) == RANK
    variables.update(TASK)
    assert world.announced_rank() == "3"
    for _ in range(2):  # as often as the process likes
        assert world._from_environment("cpu") == Process(3, 1, 4, torch.device("cpu"))
    assert {name: variables[name] for name in RANK} == RANK


@pytest.mark.parametrize(
    "environment",
    [{}, SCRIPT, INTERACTIVE, SCRIPT | {"SLURM_RESTART_COUNT": "1"}],
    ids=["no SLURM", "batch script", "interactive shell", "requeued batch script"],
)
def test_what_srun_has_not_started_several_times_is_a_world_of_one(
    variables: dict[str, str], environment: dict[str, str]
) -> None:
    variables.update(environment)
    assert world.announced_rank() == "0"
    assert world._from_environment("cpu") == Process(0, 0, 1, torch.device("cpu"))
    assert "RANK" not in variables


def test_a_launcher_that_srun_has_started_is_the_nearer_one(variables: dict[str, str]) -> None:
    variables.update(
        TASK,
        RANK="5",
        LOCAL_RANK="2",
        WORLD_SIZE="6",
        MASTER_ADDR="10.0.0.1",
        MASTER_PORT="29500",
    )
    assert world.announced_rank() == "5"
    assert world._from_environment("cpu") == Process(5, 2, 6, torch.device("cpu"))
    assert variables["MASTER_ADDR"] == "10.0.0.1"


@pytest.mark.parametrize("given", [{"MASTER_ADDR": "10.0.0.1"}, {"MASTER_PORT": "29500"}])
def test_an_address_that_the_user_names_is_kept(given: dict[str, str]) -> None:
    assert srun.rank_variables(TASK | given) == RANK | given


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node1", "node1"),
        ("node[1-2,5]", "node1"),
        ("node[5,7-9]", "node5"),
        ("a,b[01-03]", "a"),
        ("b[01-03],a", "b01"),
        ("rack[1-2]n[1-4]", "rack1n1"),
        ("gpu-a-[007-012,020].cluster.edu,login", "gpu-a-007.cluster.edu"),
        ("127.0.0.[1-2]", "127.0.0.1"),
    ],
)
def test_the_first_host_is_that_of_slurms_notation(hosts: str, first: str) -> None:
    assert srun.first_host(hosts) == first


@pytest.mark.parametrize(
    "hosts", ["", ",", "a,", ",a", "a,,b", "node[1-2", "node1-2]", "node[]", "node[a-b]", "a b"]
)
def test_what_is_no_list_of_hosts_is_refused(hosts: str) -> None:
    assert error_of(TASK | {"SLURM_STEP_NODELIST": hosts}) == (
        f"SLURM_STEP_NODELIST is {hosts!r}, which is not a list of hosts such as node[1-2,5]; set "
        "MASTER_ADDR to the host of rank 0."
    )
    assert srun.rank_variables(TASK | {"SLURM_STEP_NODELIST": hosts, "MASTER_ADDR": "node1"})


def test_neighbouring_jobs_steps_and_restarts_meet_at_different_ports() -> None:
    ports = [
        int(
            srun.rank_variables(
                TASK
                | {
                    "SLURM_JOB_ID": str(job),
                    "SLURM_STEP_ID": str(step),
                    "SLURM_RESTART_COUNT": str(restarts),
                }
            )["MASTER_PORT"]
        )
        for job in range(123_400, 123_500)
        for step in range(8)
        for restarts in range(8)
    ]
    assert len(set(ports)) == len(ports)
    assert min(ports) >= 20_000
    assert max(ports) < 32_768, "Linux gives out ports from here on"


def test_a_rank_0_that_is_not_on_the_first_host_says_so() -> None:
    """`srun --distribution arbitrary`; the other ranks would look for it in vain."""
    first = TASK | {"SLURM_PROCID": "0"}
    assert error_of(first) == (
        "SLURM has put rank 0 on node2 and not on node1, the first host of the step, where the "
        "other ranks look for it; use another distribution of tasks, or set MASTER_ADDR to the "
        "host of rank 0 for all ranks."
    )
    assert srun.rank_variables(first | {"MASTER_ADDR": "node2"})["MASTER_ADDR"] == "node2"


@pytest.mark.parametrize(
    "name",
    ["SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID", "SLURM_STEP_ID"],
)
def test_half_of_slurms_environment_is_refused_with_what_is_missing(name: str) -> None:
    assert error_of({key: value for key, value in TASK.items() if key != name}) == (
        "SLURM_STEP_NUM_TASKS is 4, so this process is one of several that srun has started, but "
        f"{name} is not set; start it with srun and leave SLURM's variables as they are, or unset "
        "SLURM_STEP_NUM_TASKS for one process."
    )


@pytest.mark.parametrize(
    "name",
    [
        *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS"),
        *("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"),
    ],
)
@pytest.mark.parametrize("text", ["two", "", "-1", "1.0"])
def test_a_number_of_slurm_that_is_none_is_refused(name: str, text: str) -> None:
    assert error_of(TASK | {name: text}) == f"{name} is {text!r}, not a whole number."


def test_a_task_outside_its_step_is_refused(variables: dict[str, str]) -> None:
    variables.update(TASK, SLURM_PROCID="4")
    with pytest.raises(DistributedError, match="RANK is 4, LOCAL_RANK 1 and WORLD_SIZE 4; ranks "):
        world._from_environment("cpu")


@pytest.mark.parametrize(
    ("num_visible", "on_node", "local_rank", "index"),
    [
        (4, "4", 3, 3),  # all tasks see all GPUs
        (1, "4", 3, 0),  # --gpus-per-task 1
        (2, "8", 1, 1),  # --gpus-per-task 2
        (2, "8", 3, 0),
        (4, None, 3, 3),  # SLURM does not know of GPUs
    ],
)
def test_a_rank_takes_its_own_gpu_whether_or_not_it_sees_the_others(
    variables: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    num_visible: int,
    on_node: str | None,
    local_rank: int,
    index: int,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_visible)
    variables.update(TASK, SLURM_LOCALID=str(local_rank))
    if on_node is not None:
        variables["SLURM_GPUS_ON_NODE"] = on_node
    for _ in range(2):
        process = world._from_environment("auto")
        assert process == Process(3, local_rank, 4, torch.device("cuda", index))


@pytest.mark.parametrize("on_node", ["1", None, "many"])
def test_a_gpu_that_several_ranks_see_is_not_every_ranks_own(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, on_node: str | None
) -> None:
    """`srun --ntasks-per-node 2 --gres gpu:1`: each sees the same one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    variables.update(TASK)
    if on_node is not None:
        variables["SLURM_GPUS_ON_NODE"] = on_node
    with pytest.raises(
        ConfigError, match="local rank 1 has no GPU of its own: this machine shows 1"
    ):
        world._from_environment("auto")
