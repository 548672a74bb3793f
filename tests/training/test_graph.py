"""Steps as graphs, on a CPU: their oracle is the step that is taken operator by operator."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ranks import run_in_ranks
from tests.training.graphed_steps import (
    BAD,
    NUM_STEPS,
    SETTINGS,
    RecordedGraphs,
    assert_equal,
    graphed_and_not,
    steps,
)
from tests.training.small_engine import equal
from vggdist.distributed.process import Process
from vggdist.training.graph import WARM_UP_STEPS

pytestmark = pytest.mark.multi_process


def assert_the_same(found: dict[str, Any]) -> None:
    assert found["captured"] == 2
    assert found["replayed"] == NUM_STEPS - WARM_UP_STEPS
    assert_equal(found)
    assert found["finite"]


def test_a_replayed_step_is_to_the_bit_the_step_itself() -> None:
    (found,) = run_in_ranks(graphed_and_not, 1, BAD, SETTINGS)
    for compared in found:
        assert_the_same(compared)
        assert compared["masked"] == [0.0] * BAD + [1.0] * (NUM_STEPS - BAD), "for good"


def test_in_fp16_a_replayed_overflow_leaves_out_one_update_and_halves_the_scale() -> None:
    ((found,),) = run_in_ranks(graphed_and_not, 1, BAD, [{"precision": "fp16", "batch_norm": True}])
    assert_the_same(found)
    assert found["masked"][BAD] == 1.0
    assert found["masked"][-1] == 0.0


def test_two_ranks_replay_their_exchange_with_the_step() -> None:
    settings = [{"exchange": "factors"}, {"exchange": "all_reduce"}]
    for compared in run_in_ranks(graphed_and_not, 2, BAD, settings):
        for found in compared:
            assert_the_same(found)


def interrupted(process: Process, places: list[int]) -> list[dict[str, Any]]:
    """Steps whose capture fails at an operator, beside steps without a graph."""
    plain = steps(process, None, -1, {})
    found = []
    for place in places:
        graphs = RecordedGraphs(place)
        graphed = steps(process, graphs, -1, {})
        same = equal(plain["weights"], graphed["weights"])
        found.append({"num": graphs.num_captured, "sums": graphed["sums"], "weights": same})
    return [*found, {"num": 0, "sums": plain["sums"], "weights": True}]


def test_where_no_graph_can_be_captured_the_same_training_goes_on_without() -> None:
    (found,) = run_in_ranks(interrupted, 1, [10, 60, 150])
    for graphed in found:
        assert graphed["num"] == 0
        assert graphed["sums"] == found[-1]["sums"]
        assert graphed["weights"]
