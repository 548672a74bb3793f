"""One process among others, as the environment of a launcher describes it."""

import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
import torch
from torch import distributed

from tests.ranks import free_port, run_in_ranks
from vggdist.distributed import process as world
from vggdist.distributed.process import Process
from vggdist.errors import DistributedError

Launched = Callable[..., None]
LAUNCHED = {
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.fixture(autouse=True)
def launched(monkeypatch: pytest.MonkeyPatch) -> Launched:
    """No launcher's variables, until it is called: then these, but for what is changed."""
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", os.environ["PATH"])  # `start` may change it

    def launch(**changes: str | None) -> None:
        for name, value in (LAUNCHED | changes).items():
            if value is not None:
                monkeypatch.setenv(name, value)

    return launch


def start_error(start: Callable[[str], Process] = world._from_environment) -> str:
    with pytest.raises(DistributedError) as caught:
        start("cpu")
    return str(caught.value)


def test_a_process_that_no_launcher_started_is_a_world_of_one() -> None:
    process = world.start("cpu")
    try:
        assert process == Process(
            0, 0, 1, torch.device("cpu"), num_cores=len(os.sched_getaffinity(0))
        )
        assert process.is_main
        assert distributed.get_world_size() == 1
        assert world.sum_over_ranks(torch.tensor([3])).tolist() == [3]
        assert world.all_agree(True, process.device)
        assert not world.all_agree(False, process.device)
        assert world.from_main(7) == 7
    finally:
        world.stop()
    assert not distributed.is_initialized()
    world.stop()  # once more does no harm


def test_a_process_is_what_its_launcher_says(launched: Launched) -> None:
    launched()
    process = world._from_environment("cpu")
    assert process == Process(1, 1, 4, torch.device("cpu"))
    assert not process.is_main


def cores(process: Process, affinity: list[set[int]]) -> int:
    """`num_cores` of a rank that may use the cores of its place in `affinity`."""
    world.stop()
    os.sched_getaffinity = lambda _: affinity[process.rank]
    return world.start("cpu").num_cores


@pytest.mark.multi_process
def test_ranks_divide_the_cores_that_they_share_and_keep_those_of_their_own() -> None:
    shared, own = {0, 1, 2, 3, 4, 5}, {6, 7}
    assert run_in_ranks(cores, 3, [shared, own, shared]) == [3, 2, 3]


def test_a_rank_takes_no_more_cores_than_slurm_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    found = []
    for given in ("2", "9", "nonsense"):
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", given)
        found.append(world.start("cpu").num_cores)
        world.stop()
    assert found == [2, 6, 6]


@pytest.mark.parametrize(
    ("present", "missing"),
    [
        ("RANK", "LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        ("MASTER_PORT", "RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR"),
        ("RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT", "LOCAL_RANK"),
    ],
)
def test_half_an_environment_is_refused_with_what_is_missing(
    launched: Launched, present: str, missing: str
) -> None:
    launched(**dict.fromkeys(missing.split(", ")))
    assert start_error() == (
        f"the environment sets {present} but not {missing}; start with deepspeed, torchrun or "
        "submitit, which set all of them, or unset them all for one process."
    )


@pytest.mark.parametrize("left", [("MASTER_ADDR",), ("MASTER_ADDR", "MASTER_PORT")])
def test_an_address_alone_is_no_launcher(launched: Launched, left: tuple[str, ...]) -> None:
    """Some clusters set it in every shell."""
    launched(**{name: None for name in LAUNCHED if name not in left})
    assert world._from_environment("cpu").world_size == 1


@pytest.mark.parametrize(
    "changes",
    [{"RANK": "4"}, {"RANK": "-1"}, {"WORLD_SIZE": "0"}, {"LOCAL_RANK": "-1"}],
)
def test_a_rank_outside_the_world_is_refused(launched: Launched, changes: dict[str, str]) -> None:
    launched(**changes)
    shown = LAUNCHED | changes
    assert start_error() == (
        f"RANK is {shown['RANK']}, LOCAL_RANK {shown['LOCAL_RANK']} and WORLD_SIZE "
        f"{shown['WORLD_SIZE']}; ranks are counted from 0 to WORLD_SIZE - 1."
    )


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "WORLD_SIZE"])
@pytest.mark.parametrize("text", ["two", "", "1.0"])
def test_a_number_that_is_none_is_refused(launched: Launched, name: str, text: str) -> None:
    launched(**{name: text})
    assert start_error() == f"{name} is {text!r}, not a whole number."


def test_a_rank_that_waits_in_vain_says_where_and_what_to_look_at(
    launched: Launched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world, "START_TIMEOUT", timedelta(seconds=1))
    launched(RANK="0", LOCAL_RANK="0", WORLD_SIZE="2", MASTER_PORT="0")
    text = start_error(world.start)
    assert text.startswith("rank 0 of 2 did not meet the others at 127.0.0.1:0: ")
    assert "Check that every rank was started, that the address can be reached" in text
    assert "GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME" in text
    assert not distributed.is_initialized()


def test_a_port_that_is_taken_is_named_with_how_to_choose_another(launched: Launched) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        launched(RANK="0", LOCAL_RANK="0", WORLD_SIZE="2", MASTER_PORT=str(port))
        error = start_error(world.start)
    assert error == (
        f"port {port} of this machine is in use, perhaps by another training, and the ranks were "
        f"to meet there; name another, such as {port + 1}: deepspeed --master_port {port + 1}, "
        f"torchrun --master-port {port + 1}, or MASTER_PORT."
    )


def speak(process: Process) -> dict[str, object]:
    device = process.device
    return {
        "process": (process.rank, process.world_size, process.is_main),
        "sum": world.sum_over_ranks(torch.tensor([process.rank + 1, 10])).tolist(),
        "all": world.all_agree(True, device),
        "one": world.all_agree(process.rank == 0, device),
        "none": world.all_agree(False, device),
        "main": world.from_main(2**53 + 1 if process.is_main else -1),
        "late": late(process),
    }


def late(process: Process) -> bool:
    """Whether a rank may come to an agreement later than it may come to the start."""
    port = world.from_main(free_port())
    world.stop()
    os.environ["MASTER_PORT"] = str(port)
    world.START_TIMEOUT = timedelta(seconds=2)
    process = world.start("cpu")
    time.sleep(3 * process.rank)
    return world.all_agree(True, process.device)


@pytest.mark.multi_process
def test_two_ranks_add_up_agree_and_listen_to_the_main_one() -> None:
    said = {"sum": [3, 20], "all": True, "one": False, "none": False, "main": 2**53 + 1}
    said["late"] = True
    assert run_in_ranks(speak, 2) == [
        {"process": (0, 2, True)} | said,
        {"process": (1, 2, False)} | said,
    ]
