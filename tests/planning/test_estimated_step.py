"""Published rates of one device, simulated ranks, and arithmetic on the back of an envelope."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from tests.planning.best_ways import WORLDS, compare, compare_all, summary, table, work_of
from vggdist.config import Config
from vggdist.config_file import load_config
from vggdist.model.layer_costs import count_layers
from vggdist.planning.devices import DEVICES
from vggdist.planning.links import Cluster, parse_rate
from vggdist.planning.messages import Way, Work, choose_ways
from vggdist.planning.step import StepTime, compute_seconds, time_step

PAGE = Path(__file__).resolve().parents[2] / "docs" / "planning.md"
LAYERS = count_layers(Config())
FAST = DEVICES["p100"].model_copy(
    update={
        "step_spread": 0.0,
        "bus_gigabytes_per_second": 1e9,
        "bus_latency_microseconds": 0.0,
        "network_latency_microseconds": 0.0,
    }
)
"""A P100 whose links cost nothing, so that only arithmetic is left."""


def work(images: int = 64, steps: int = 1, precision: str = "bf16") -> Work:
    return Work(LAYERS, precision, precision, precision, images, steps)  # type: ignore[arg-type]


def test_one_p100_trains_as_fast_as_published() -> None:
    """154 images/s at batch 64, tensorflow.org, Benchmarks; at batch 32 it is 144."""
    one = Cluster(1, 1, DEVICES["p100"], 25e9)
    assert 64 / compute_seconds(work(64), one) == pytest.approx(154, rel=0.01)
    assert 32 / compute_seconds(work(32), one) == pytest.approx(144, rel=0.06)


@pytest.mark.parametrize("world_size", [2, 8, 128, 1024])
def test_the_slowest_of_n_ranks_is_that_of_n_random_ranks(world_size: int) -> None:
    drawn = np.random.default_rng(0).standard_normal((4000, world_size)).max(axis=1).mean()
    device = DEVICES["p100"].model_copy(update={"step_spread": 0.5})
    assert Cluster(world_size, 1, device, 25e9).slowness == pytest.approx(
        1 + 0.5 * drawn, abs=0.015
    )


def test_one_rank_waits_for_no_one() -> None:
    assert Cluster(1, 1, DEVICES["p100"], 25e9).slowness == 1.0
    step = time_step(work(), Cluster(1, 1, DEVICES["p100"], 25e9), "auto")
    assert step.seconds == pytest.approx(step.compute_seconds)
    assert step.exposed_seconds == step.hidden_seconds == step.sent_bytes == 0.0


@pytest.mark.parametrize("way", ["fp32_ring", "all_reduce", "factors", "auto"])
def test_the_parts_of_a_step_add_up(way: str) -> None:
    step = time_step(work(), Cluster(16, 4, DEVICES["p100"], 25e9), way)  # type: ignore[arg-type]
    parts = step.compute_seconds + step.straggling_seconds + step.exposed_seconds
    assert step.seconds == pytest.approx(parts)
    assert min(step.straggling_seconds, step.exposed_seconds, step.hidden_seconds) >= 0.0


@pytest.mark.parametrize("ranks", [2, 8, 32])
def test_factors_cost_a_quarter_percent_of_the_arithmetic_for_each_further_rank(ranks: int) -> None:
    """(n - 1) x 123.6 M multiply-adds beside 3 x 15.47 G, for each image, whatever the batch."""
    step = time_step(work(), Cluster(1, ranks, FAST, 1e15), "factors")
    share = step.seconds / step.compute_seconds - 1
    assert share == pytest.approx((ranks - 1) * 123.6 / (3 * 15470), abs=0.01)


def test_block_by_block_a_factored_gradient_is_neither_written_nor_read() -> None:
    """Memory of 1 GB/s and arithmetic for nothing: two passes less over 123.6 M weights."""
    slow = FAST.model_copy(
        update={"sustained_teraflops": {"fp32": 1e9}, "memory_gigabytes_per_second": 1.0}
    )
    whole = work(precision="fp32")
    seconds = [
        time_step(one, Cluster(2, 1, slow, 1e18), "factors").seconds
        for one in (whole, replace(whole, by_blocks=True))
    ]
    assert seconds[0] - seconds[1] == pytest.approx(2 * 4 * 123.64e6 / 1e9, rel=1e-3)


def test_a_slow_link_is_all_that_counts() -> None:
    """Two nodes at 1 Gb/s: 553 MB each way, beginning when fc8 has gone backward."""
    step = time_step(work(), Cluster(2, 1, FAST, 1e9), "fp32_ring")
    on_the_way = 553.4e6 / (0.93 * 1e9 / 8)
    forward = step.compute_seconds / 3
    assert step.seconds == pytest.approx(forward + on_the_way, rel=0.01)


def test_gradients_in_16_bits_are_half_the_bytes() -> None:
    cluster = Cluster(2, 1, FAST, 1e9)
    record, ours = time_step(work(), cluster, "fp32_ring"), time_step(work(), cluster, "all_reduce")
    assert record.sent_bytes == pytest.approx(553.4e6, rel=1e-3)
    assert ours.sent_bytes == pytest.approx(276.7e6, rel=1e-3)


def test_accumulation_exchanges_once_and_sends_more_factors() -> None:
    cluster = Cluster(2, 1, FAST, 1e9)

    def of(way: str, steps: int) -> StepTime:
        return time_step(work(16, steps), cluster, way)  # type: ignore[arg-type]

    assert of("all_reduce", 4).sent_bytes == of("all_reduce", 1).sent_bytes
    convolutions = 2 * 14_714_688
    one, four = of("factors", 1).sent_bytes, of("factors", 4).sent_bytes
    assert four - convolutions == pytest.approx(4 * (one - convolutions))


def test_auto_is_what_the_training_would_choose() -> None:
    def chosen(world_size: int, way: Way = "auto") -> dict[str, str]:
        return choose_ways(work(), Cluster(world_size, 1, DEVICES["p100"], 25e9), way)

    assert set(chosen(2).values()) == {"factors"}
    assert set(chosen(512).values()) == {"all_reduce"}
    assert set(chosen(512, "factors").values()) == {"factors"}
    assert chosen(512, "fp32_ring") == {}


@pytest.mark.parametrize("configuration", ["A", "B", "D", "E"])
@pytest.mark.parametrize(
    ("device", "precision", "networks"),
    [
        ("p100", "fp32", ("10gbit", "25gbit", "100gbit")),
        ("a100", "bf16", ("25gbit", "200gbit")),
        ("h100", "bf16", ("100gbit", "400gbit")),
        ("cpu", "fp32", ("1gbit", "10gbit")),
    ],
)
def test_auto_is_within_a_point_of_the_best_way(
    configuration: str, device: str, precision: str, networks: tuple[str, ...]
) -> None:
    """Of all ways of sending fc6, fc7 and fc8, on 2 to 1024 ranks; by bytes alone it was 47."""
    config = load_config(None, [f"model.configuration={configuration}", f"precision={precision}"])
    micro = 16 if device == "cpu" else 64
    for network, ranks_per_node in product(networks, (1, 8)):
        for world_size in WORLDS:
            if world_size < ranks_per_node:
                continue
            cluster = Cluster(
                world_size // ranks_per_node, ranks_per_node, DEVICES[device], parse_rate(network)
            )
            comparison = compare(work_of(config, world_size, micro), cluster)
            assert comparison.loss < 0.01, (network, ranks_per_node, world_size)


def test_the_page_shows_what_auto_takes_and_what_the_best_way_would_keep() -> None:
    cells = compare_all()
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert " ".join(table(cells).split()) in page
    assert summary(cells) in page


def test_frozen_layers_send_nothing() -> None:
    config = Config()
    optimizer = config.optimizer.model_copy(update={"trained_layers": ("fc8",)})
    layers = count_layers(config.model_copy(update={"optimizer": optimizer}))
    step = time_step(
        Work(layers, "fp32", "fp32", "fp32", 64, 1), Cluster(2, 1, FAST, 1e9), "fp32_ring"
    )
    assert step.sent_bytes == 4 * 4_097_000


def test_two_cores_take_as_long_as_they_were_measured() -> None:
    """4.8 s for 16 images of 224 px in bf16 (`vggdist bench step`)."""
    cores = Cluster(1, 1, DEVICES["cpu"], 1e9)
    assert compute_seconds(work(16), cores) == pytest.approx(4.8, rel=0.05)
