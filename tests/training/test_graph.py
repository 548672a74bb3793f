"""Steps as graphs, on a CPU: their oracle is the step that is taken operator by operator."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ranks import run_in_ranks
from tests.training.graphed_steps import BAD, NUM_STEPS, RecordedGraphs, graphed_and_not, steps
from tests.training.small_engine import equal
from vggdist.distributed.process import Process
from vggdist.training.graph import WARM_UP_STEPS

pytestmark = pytest.mark.multi_process


def assert_the_same(found: dict[str, Any]) -> None:
    assert found["captured"] == 2
    assert found["replayed"] == NUM_STEPS - WARM_UP_STEPS
    plain, graphed = found["seen"]
    assert graphed == plain
    assert found["weights"]
    assert found["momentum"]
    assert found["finite"]


SETTINGS: list[dict[str, Any]] = [
    {},
    {"batch_norm": True, "clip": 0.5},
    {"precision": "bf16"},
    {"optimizer": {"name": "lars", "learning_rate": 0.1}},
]


@pytest.mark.parametrize("changes", SETTINGS, ids=["plain", "clipped", "bf16", "lars"])
def test_a_replayed_step_is_to_the_bit_the_step_itself(changes: dict[str, Any]) -> None:
    (found,) = run_in_ranks(graphed_and_not, 1, BAD, changes)
    assert_the_same(found)
    assert found["masked"] == [0.0] * BAD + [1.0] * (NUM_STEPS - BAD), "for good"


def test_in_fp16_a_replayed_overflow_leaves_out_one_update_and_halves_the_scale() -> None:
    (found,) = run_in_ranks(graphed_and_not, 1, BAD, {"precision": "fp16", "batch_norm": True})
    assert_the_same(found)
    assert found["masked"][BAD] == 1.0
    assert found["masked"][-1] == 0.0


@pytest.mark.parametrize("exchange", ["factors", "all_reduce"])
def test_two_ranks_replay_their_exchange_with_the_step(exchange: str) -> None:
    for found in run_in_ranks(graphed_and_not, 2, BAD, {"exchange": exchange}):
        assert_the_same(found)


def interrupted(process: Process, fails_at: int) -> dict[str, Any]:
    graphs = RecordedGraphs(fails_at)
    plain = steps(process, None, -1, {})
    graphed = steps(process, graphs, -1, {})
    return {
        "captured": graphs.num_captured,
        "sums": (plain["sums"], graphed["sums"]),
        "weights": equal(plain["weights"], graphed["weights"]),
    }


@pytest.mark.parametrize("fails_at", [10, 60, 150])
def test_where_no_graph_can_be_captured_the_same_training_goes_on_without(fails_at: int) -> None:
    (found,) = run_in_ranks(interrupted, 1, fails_at)
    assert found["captured"] == 0
    plain, graphed = found["sums"]
    assert graphed == plain
    assert found["weights"]
