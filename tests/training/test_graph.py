"""Steps as graphs, on a CPU: their oracle is the step that is taken operator by operator."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from tests.ranks import run_in_ranks
from tests.training.recorded_graphs import RecordedGraphs
from tests.training.small_engine import equal, small_engine
from tests.training.small_training import GLOBAL_BATCH, batch_of, part_of
from vggdist.data.batch import Batch
from vggdist.distributed.precision import DTYPES
from vggdist.distributed.process import Process
from vggdist.training.flags import SharedFlags
from vggdist.training.graph import WARM_UP_STEPS, GraphedStep, build_step
from vggdist.training.step import Meter

pytestmark = pytest.mark.multi_process

NUM_STEPS, LOGGED, BAD = 10, (2, 5, 6, 9), 7
"""The steps whose norms are measured, and one with an image that is not finite."""


def micro_batches(process: Process, step: int, precision: str, bad: int) -> list[Batch]:
    """This rank's two micro batches of a step."""
    share = GLOBAL_BATCH // process.world_size
    batch = batch_of(step, GLOBAL_BATCH)
    batch = dataclasses.replace(batch, dtype=DTYPES[precision])
    if step == bad:
        batch.mean[0, 0] = float("nan")
    first, half = process.rank * share, share // 2
    parts = [part_of(batch, start, start + half) for start in (first, first + half)]
    return [dataclasses.replace(part, dtype=batch.dtype) for part in parts]


def training(
    process: Process, graphs: RecordedGraphs | None, bad: int, changes: dict[str, Any]
) -> dict[str, Any]:
    """Some steps, with all that they leave behind."""
    precision = changes.get("precision", "fp32")
    micro = GLOBAL_BATCH // process.world_size // 2
    engine = small_engine(process, micro=micro, dropout=0.5, **changes)
    meter, flags = Meter(process.device), SharedFlags(engine)
    take = (
        build_step(engine, engine.config, process, meter)
        if graphs is None
        else GraphedStep(engine, process, meter, graphs)  # type: ignore[arg-type]
    )
    seen: dict[str, list[Any]] = {"flags": [], "sums": [], "norms": [], "layers": []}
    for step in range(NUM_STEPS):
        engine.optimizer.set_learning_rate(0.01 * (step + 1))
        engine.measure_norm = step in LOGGED
        flags.begin()
        take(micro_batches(process, step, precision, bad))
        seen["flags"].append(flags.end(engine, stop_requested=step == 4).tolist())
        seen["sums"].append(meter.sums.tolist())
        if engine.measure_norm:
            seen["norms"].append(engine.gradient_norm())
            seen["layers"].append(engine.layer_norms())
    return seen | {"weights": engine.weights(), "momentum": engine.momentum()}


def both(process: Process, bad: int, changes: dict[str, Any]) -> dict[str, Any]:
    graphs = RecordedGraphs()
    plain = training(process, None, bad, changes)
    graphed = training(process, graphs, bad, changes)
    return {
        "replayed": graphs.num_replayed,
        "captured": graphs.num_captured,
        "seen": [
            {key: repr(found[key]) for key in ("flags", "sums", "norms", "layers")}
            for found in (plain, graphed)
        ],
        "masked": [flags[1] for flags in plain["flags"]],
        "weights": equal(plain["weights"], graphed["weights"]),
        "momentum": equal(plain["momentum"], graphed["momentum"]),
        "finite": all(bool(torch.isfinite(w).all()) for w in plain["weights"].values()),
    }


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
    (found,) = run_in_ranks(both, 1, BAD, changes)
    assert_the_same(found)
    assert found["masked"] == [0.0] * BAD + [1.0] * (NUM_STEPS - BAD), "for good"


def test_in_fp16_a_replayed_overflow_leaves_out_one_update_and_halves_the_scale() -> None:
    (found,) = run_in_ranks(both, 1, BAD, {"precision": "fp16", "batch_norm": True})
    assert_the_same(found)
    assert found["masked"][BAD] == 1.0
    assert found["masked"][-1] == 0.0


@pytest.mark.parametrize("exchange", ["factors", "all_reduce"])
def test_two_ranks_replay_their_exchange_with_the_step(exchange: str) -> None:
    for found in run_in_ranks(both, 2, BAD, {"exchange": exchange}):
        assert_the_same(found)


def interrupted(process: Process, fails_at: int) -> dict[str, Any]:
    graphs = RecordedGraphs(fails_at)
    plain = training(process, None, -1, {})
    graphed = training(process, graphs, -1, {})
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
