"""By hand, and by the bytes that a simulated ring really moves."""

import math

import pytest

from vggdist.distributed.traffic import PIECE_ELEMENTS
from vggdist.errors import ConfigError
from vggdist.planning.devices import DEVICES, Device
from vggdist.planning.links import (
    LAUNCH_SECONDS,
    PAYLOAD_SHARE,
    TREE_RATE,
    Cluster,
    parse_rate,
)

NO_LATENCY = {"bus_latency_microseconds": 0.0, "network_latency_microseconds": 0.0}
GPU = DEVICES["p100"].model_copy(update=NO_LATENCY)
CPU = DEVICES["cpu"].model_copy(update={**NO_LATENCY, "bus_gigabytes_per_second": 10.0})


def cluster(nodes: int, ranks: int, device: Device = GPU) -> Cluster:
    """One gigabyte of data a second between nodes, ten inside of them."""
    return Cluster(nodes, ranks, device, 8e9 / PAYLOAD_SHARE)


@pytest.mark.parametrize(
    ("text", "rate"), [("25gbit", 25e9), ("2.5gbit", 2.5e9), ("100mbit", 1e8), (" 1GBIT ", 1e9)]
)
def test_rates_are_written_as_tc_writes_them(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["25", "25g", "25gb", "0gbit", "-1gbit", "fast"])
def test_what_is_no_rate_is_refused_with_the_remedy(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_rate(text)
    assert str(error.value) == (
        f"{text!r} is not the rate of a link; write a number and kbit, mbit or gbit, such as "
        "25gbit for a node's link to the others."
    )


def ring_steps(world_size: int, size: float) -> float:
    """What each rank sends in a ring, by going through its steps."""
    chunk = size / world_size
    return sum(chunk for _ in ("reduce-scatter", "gather") for _ in range(world_size - 1))


def test_a_ring_over_nodes_is_as_slow_as_the_link_between_them() -> None:
    (leg,) = cluster(4, 4).ring_all_reduce(250_000_000, 4)
    assert leg.link == "network"
    assert leg.seconds == pytest.approx(ring_steps(16, 1.0) + LAUNCH_SECONDS)


def test_a_ring_in_one_node_uses_its_bus() -> None:
    (leg,) = cluster(1, 4).all_reduce(250_000_000, 4)
    assert leg.link == "bus"
    assert leg.seconds == pytest.approx(ring_steps(4, 1.0) / 10 + LAUNCH_SECONDS)


def test_over_gloo_the_network_carries_each_quarter_once() -> None:
    """Four rings of a quarter each share the node's link, so it carries 2 (n - 1) / n in all."""
    legs = cluster(8, 4, CPU).all_reduce(250_000_000, 4)
    assert len(legs) == 3 * math.ceil(250_000_000 / PIECE_ELEMENTS)
    launched = LAUNCH_SECONDS * len(legs) / 3
    bus = sum(leg.seconds for leg in legs if leg.link == "bus")
    network = sum(leg.seconds for leg in legs if leg.link == "network")
    assert bus == pytest.approx(2 * (3 / 4 / 10 + launched))
    assert network == pytest.approx(ring_steps(8, 1.0) + launched)


def test_on_gpus_a_large_sum_is_a_ring_over_all_ranks_whatever_their_nodes() -> None:
    ours = cluster(8, 4)
    assert ours.all_reduce(250_000_000, 4) == ours.ring_all_reduce(250_000_000, 4)


def test_two_nodes_send_a_sum_once_in_a_tree_and_almost_twice_in_a_ring() -> None:
    """1 GB at 92 % of 1 GB/s; eight ranks in a ring send 1.75 GB."""
    (tree,) = cluster(2, 4).all_reduce(250_000_000, 4)
    assert tree.seconds == pytest.approx(1 / TREE_RATE, rel=1e-3)
    (ring,) = cluster(2, 4).ring_all_reduce(250_000_000, 4)
    assert ring.seconds == pytest.approx(1.75, rel=1e-3)


def test_on_gpus_factors_go_round_one_ring() -> None:
    """2 nodes x 2 ranks, 100 images of 50 + 50 elements of 2 bytes: 20 kB of each rank."""
    (leg,) = cluster(2, 2).gather_factors((50, 50), 100, 2)
    assert leg.link == "network"
    assert leg.seconds == pytest.approx(3 * 20e3 / 1e9 + LAUNCH_SECONDS)


def test_over_gloo_factors_go_once_to_each_other_node_and_then_to_its_ranks() -> None:
    """As above."""
    between, inside = cluster(2, 2, CPU).gather_factors((50, 50), 100, 2)
    assert between.seconds == pytest.approx(2 * 20e3 / 1e9 + LAUNCH_SECONDS)
    assert inside.seconds == pytest.approx(2 * 20e3 / 10e9 + LAUNCH_SECONDS)


def test_latency_grows_with_the_ranks_of_a_ring() -> None:
    """NCCL's model: 14 us for each step between nodes, 5.7 for the others."""
    (leg,) = Cluster(128, 4, DEVICES["p100"], 25e9).ring_all_reduce(0, 4)
    expected = 2 * 127 * 14 + (2 * 511 - 2 * 127) * 5.7
    assert leg.seconds == pytest.approx(expected * 1e-6 + LAUNCH_SECONDS)


def test_over_many_nodes_a_tree_has_less_latency_and_a_ring_more_rate() -> None:
    """A tree of 128 nodes has 7 levels above 3 steps in a node, up and down, of 28 us each."""
    ours = Cluster(128, 4, DEVICES["p100"], 25e9)
    (small,) = ours.all_reduce(1, 2)
    assert small.seconds == pytest.approx(20 * 28e-6 + LAUNCH_SECONDS, rel=1e-3)
    assert ours.all_reduce(1_000_000_000, 2) == ours.ring_all_reduce(1_000_000_000, 2)


def test_gloo_has_no_trees() -> None:
    one_rank = Cluster(128, 1, DEVICES["cpu"], 1e9)
    assert one_rank.all_reduce(1, 2) == one_rank.ring_all_reduce(1, 2)


@pytest.mark.parametrize(
    ("world_size", "nodes", "ranks"), [(1, 1, 1), (2, 1, 2), (4, 1, 4), (8, 2, 4), (6, 2, 3)]
)
def test_fewer_ranks_fill_as_few_nodes_as_share_them_equally(
    world_size: int, nodes: int, ranks: int
) -> None:
    smaller = cluster(128, 4).of_world(world_size)
    assert (smaller.nodes, smaller.ranks_per_node) == (nodes, ranks)


def test_one_rank_sends_nothing() -> None:
    alone = cluster(1, 1)
    assert alone.ring_all_reduce(1000, 4) == alone.all_reduce(1000, 4) == ()
    assert alone.gather_factors((10, 10), 5, 2) == ()
