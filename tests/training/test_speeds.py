"""What is measured is read off the clock; that the ranks agree on it is what counts."""

from typing import Any

import pytest

from tests.ranks import run_in_ranks
from tests.training.small_engine import small_config, small_engine
from vggdist.config import split_batch
from vggdist.distributed.collectives import Collectives
from vggdist.distributed.exchange_time import Speeds
from vggdist.distributed.process import Process
from vggdist.training.speeds import choose_ways, measure_speeds, to_state

pytestmark = pytest.mark.multi_process


def decide(process: Process) -> dict[str, Any]:
    config = small_config(exchange="auto")
    split = split_batch(config.batch, process.world_size)
    collectives = Collectives(process.device)
    engine = small_engine(process, exchange="auto")
    kept = engine.exchange_state
    assert kept is not None
    waited = engine.exchange_wait()
    # The opposite of what was decided is kept as well, and by no other batch.
    ways = {
        name: "factors" if way == "all_reduce" else "all_reduce"
        for name, way in kept["ways"].items()
    }
    opposite = kept | {"ways": ways}
    other_batch = opposite | {"per_rank": 2 * split.per_rank}
    return {
        "speeds": measure_speeds(config, split, process, collectives),
        "waited": waited,
        "state": kept,
        "kept": choose_ways(config, split, process, collectives, opposite),
        "opposite": ways,
        "new": to_state(choose_ways(config, split, process, collectives, other_batch), split),
        "set": choose_ways(small_config(exchange="all_reduce"), split, process, collectives),
        "frozen": choose_ways(
            small_config(
                exchange="factors",
                optimizer={"learning_rate": 0.1, "trained_layers": ["fc8"]},
            ),
            split,
            process,
            collectives,
        ),
    }


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_in_ranks(decide, 2)


def test_waits_of_the_measurement_count_for_no_step(ranks: list[dict[str, Any]]) -> None:
    assert [rank["waited"] for rank in ranks] == [0.0, 0.0]


def test_all_ranks_measure_and_decide_alike(ranks: list[dict[str, Any]]) -> None:
    first, second = ranks
    assert first == second
    speeds: Speeds = first["speeds"]
    assert 1e5 < speeds.sent_bytes_per_second < 1e12
    assert 1e7 < speeds.multiply_adds_per_second < 1e14
    assert 1e7 < speeds.product_multiply_adds_per_second < 1e14
    assert 1e7 < speeds.memory_bytes_per_second < 1e13
    assert 0 < speeds.all_reduce_latency < 10
    assert 0 < speeds.all_gather_latency < 10
    assert 0 < speeds.held_up_seconds_per_byte < 1e-3


def test_an_earlier_decision_is_kept_for_the_same_ranks_and_images(
    ranks: list[dict[str, Any]],
) -> None:
    for rank in ranks:
        assert rank["kept"] == rank["opposite"]
        assert rank["new"]["per_rank"] == rank["state"]["per_rank"]
        assert set(rank["new"]["ways"]) == {"fc6", "fc7", "fc8"}


def test_a_setting_is_not_measured(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["set"] == dict.fromkeys(("fc6", "fc7", "fc8"), "all_reduce")
        assert rank["frozen"] == {"fc8": "factors"}
