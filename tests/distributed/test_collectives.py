"""The oracle is the sum; for traffic it is `traffic.py`'s arithmetic and the cable's counters."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

from tests.distributed.on_hosts import COLUMNS, ELEMENTS, ROWS
from tests.ranks import free_port, run_in_ranks
from vggdist.distributed import collectives, traffic
from vggdist.distributed.collectives import Collectives, is_regular, nodes_of
from vggdist.distributed.process import Process
from vggdist.profiling.hosts import Hosts

ROOT = Path(__file__).resolve().parents[2]


def test_ranks_of_the_same_host_name_are_a_node() -> None:
    assert nodes_of(["a", "a", "b", "b"]) == [[0, 1], [2, 3]]
    assert nodes_of(["b", "a", "b", "a"]) == [[0, 2], [1, 3]]
    assert nodes_of(["a"]) == [[0]]


def test_only_several_nodes_of_as_many_ranks_each_are_taken_into_account() -> None:
    assert is_regular([[0, 1], [2, 3]])
    assert not is_regular([[0, 1, 2, 3]])
    assert not is_regular([[0], [1]])
    assert not is_regular([[0, 1], [2]])


def test_on_gpus_sums_and_gatherings_are_nccls_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four ranks on two nodes, which are not even asked for."""
    started: list[tuple[str, object]] = []

    def note(name: str) -> Callable[..., distributed.Work]:
        def start(tensor: Tensor, *_: Tensor, **settings: object) -> distributed.Work:
            started.append((f"{name} of {tuple(tensor.shape)}", settings))
            return distributed.Work()

        return start

    monkeypatch.setattr(distributed, "get_world_size", lambda: 4)
    monkeypatch.setattr(collectives, "gather", lambda _: pytest.fail("hosts were exchanged"))
    for name in ("all_reduce", "all_gather_single"):
        monkeypatch.setattr(distributed, name, note(name))
    on_gpu = Collectives(torch.device("cuda"))
    on_gpu.all_reduce(torch.ones(5))
    on_gpu.all_gather(torch.ones(2, 3))
    assert started == [
        ("all_reduce of (5,)", {"async_op": True}),
        ("all_gather_single of (8, 3)", {"async_op": True}),
    ]


def on_two_nodes(process: Process, hosts: list[str]) -> dict[str, Any]:
    """Sums and gatherings of sizes that do and do not divide, several under way at once."""
    collectives.gather = lambda value: hosts  # type: ignore[assignment]
    collectives.PIECE_ELEMENTS = 10
    ours = Collectives(process.device)
    sizes = (1, 4, 10, 37)
    tensors = [torch.arange(float(size)) + process.rank for size in sizes]
    rows = torch.full((2, 3), float(process.rank))
    started = [ours.all_reduce(tensor) for tensor in tensors]
    gathered, wait = ours.all_gather(rows.T.contiguous().T)  # whose memory is not in order
    started.append(wait)
    halves = torch.full((33,), 1.0 + process.rank, dtype=torch.bfloat16)
    started.append(ours.all_reduce(halves))
    for one in started:
        one()
    return {"sums": tensors, "gathered": gathered, "halves": halves, "aware": bool(ours._between)}


@pytest.mark.multi_process
@pytest.mark.parametrize("hosts", [["a", "a", "b", "b"], ["a", "b", "a", "b"], ["a"] * 4])
def test_sums_and_gatherings_are_right_however_the_ranks_are_placed(hosts: list[str]) -> None:
    results = run_in_ranks(on_two_nodes, 4, hosts)
    for result in results:
        assert result["aware"] == (len(set(hosts)) == 2)
        for tensor in result["sums"]:
            assert torch.equal(tensor, 4 * torch.arange(float(len(tensor))) + 6)
        assert torch.equal(result["halves"], torch.full((33,), 10.0, dtype=torch.bfloat16))
        rows = result["gathered"]
        assert rows.shape == (8, 3)
        assert sorted(rows[::2, 0].tolist()) == [0, 1, 2, 3]
        assert torch.equal(rows[0::2], rows[1::2])
        assert torch.equal(rows, results[0]["gathered"])


@pytest.fixture(scope="module")
def across_hosts() -> list[dict[str, Any]]:
    """The ranks of two hosts with two ranks each."""
    if os.geteuid() != 0 or shutil.which("tc") is None:
        reason = "network namespaces need root and iproute2"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    with Hosts("none") as hosts:
        shared = {
            "WORLD_SIZE": "4",
            "MASTER_ADDR": hosts.address,
            "MASTER_PORT": str(free_port()),
            "GLOO_SOCKET_IFNAME": hosts.interface,
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "tests.distributed.on_hosts"]
        ranks = [
            subprocess.Popen(
                hosts.command(rank // 2, command),
                env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank % 2)},
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            for rank in range(4)
        ]
        answers = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0, 0, 0]
    return [json.loads(answer) for answer in answers]


@pytest.mark.netns
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_between_hosts_goes_what_is_computed_and_less_than_in_one_ring(
    across_hosts: list[dict[str, Any]], precision: str
) -> None:
    element_bytes = {"float32": 4, "bfloat16": 2}[precision]
    expected = {
        "all_reduce": traffic.all_reduce_bytes_between_nodes(ELEMENTS, 2, 2, element_bytes),
        "all_gather": traffic.factor_bytes_between_nodes(COLUMNS, 0, ROWS, 2, 2, element_bytes),
    }
    for rank in across_hosts:
        assert (rank["aware"], rank["flat"]) == (True, False)
        for name, number in expected.items():
            assert rank[f"good, aware, {precision}"]
            assert rank[f"good, flat, {precision}"]
            aware, flat = (rank[f"{name}, {way}, {precision}"] for way in ("aware", "flat"))
            # Headers, acknowledgements and the barriers around are counted with it.
            assert number < aware < 1.08 * number
            assert flat > 1.4 * aware
