"""The oracles are NumPy's histogram, and the weights before and after a step."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.ranks import run_in_ranks
from tests.training.small_engine import engine_step, given_gradients, small_engine, weights_of
from vggdist.distributed.process import Process
from vggdist.training import layer_values
from vggdist.training.layer_values import NUM_BINS, histograms

LAYERS = ("conv1_1", "conv2_1", "conv2_2", "fc6", "fc7", "fc8")
GRADIENTS = 256.0
"""fp16's loss scale."""


def test_a_histogram_is_numpys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_values, "_EXACT", 7)  # in parts, of which the last is smaller
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(6, 3, 3, 3, generator=generator).to(memory_format=torch.channels_last)
    found = histograms({"conv": values, "scaled": 8 * values}, scale=8.0)
    counts, edges = np.histogram(values.numpy() / 8, NUM_BINS)
    assert sum(found["conv"].counts) == values.numel()
    assert np.abs(np.array(found["conv"].counts) - counts).sum() <= 2  # rounded at an edge
    assert found["conv"].edges() == pytest.approx(edges[1:].tolist(), abs=1e-6)
    assert found["scaled"].lowest == pytest.approx(values.min().item())


def test_equal_values_are_in_one_bin_and_values_that_are_not_finite_in_none() -> None:
    equal = torch.full((5,), 2.0)
    found = histograms({"nan": torch.tensor([1.0, math.nan]), "zero": torch.zeros(3), "two": equal})
    assert found.keys() == {"zero", "two"}
    assert {max(histogram.counts) for histogram in found.values()} == {3, 5}
    assert found["two"].lowest == 2.0
    assert histograms({"nan": torch.tensor([math.nan])}) == {} == histograms({})


def matrices(state: dict[str, Tensor]) -> list[Tensor]:
    return [tensor.double() for tensor in state.values() if tensor.dim() > 1]


def measured(process: Process, changes: dict[str, Any]) -> dict[str, Any]:
    """A second step of an engine: what it says of its layers, and what they were."""
    engine = small_engine(process, **changes)
    if engine._scaler is not None:
        engine._scaler.load_state_dict(engine._scaler.state_dict() | {"scale": GRADIENTS})
    engine_step(engine, process, 0)
    engine.measure_norm = engine.measure_histograms = True
    gradients: list[float] = []
    if not changes.get("zero_stage"):
        engine.optimizer.register_step_pre_hook(
            lambda *_: gradients.extend(g.norm().item() for g in matrices(given_gradients(engine)))
        )
    before = matrices(weights_of(engine))
    engine_step(engine, process, 1)
    after = matrices(weights_of(engine))
    scale = GRADIENTS if changes.get("precision") == "fp16" else 1.0
    return {
        "said": engine.layer_norms(),
        "whole": engine.gradient_norm(),
        "gradient_norm": [value / scale for value in gradients],
        "weight_norm": [weights.norm().item() for weights in after],
        "update_ratio": [
            ((new - old).norm() / new.norm()).item() for old, new in zip(before, after, strict=True)
        ],
        "gradients": set(engine.gradient_histograms),
        "weights": set(engine.weight_histograms()),
        "waited": engine.exchange_wait(),
    }


@pytest.mark.multi_process
@pytest.mark.parametrize(
    ("world_size", "changes", "groups"),
    [
        (1, {"precision": "fp16"}, {"gradient_norm", "weight_norm", "update_ratio"}),
        (2, {"exchange": "factors"}, {"gradient_norm", "weight_norm", "update_ratio"}),
        (1, {"momentum": 0.0}, {"gradient_norm", "weight_norm"}),
        (2, {"zero_stage": 1, "exchange": "auto"}, {"weight_norm"}),
    ],
)
def test_norms_by_layer_are_those_of_the_step(
    world_size: int, changes: dict[str, Any], groups: set[str]
) -> None:
    results = run_in_ranks(measured, world_size, changes)
    for result in results:
        said = result["said"]
        assert said.keys() == {f"{group}/{layer}" for group in groups for layer in LAYERS}
        for group in groups:
            found = [said[f"{group}/{layer}"] for layer in LAYERS]
            assert found == pytest.approx(result[group], rel=1e-3), group
        assert result["weights"] == set(LAYERS)
    main = results[0]
    if "zero_stage" in changes:
        assert main["waited"] is None
        return
    assert main["whole"] > max(main["gradient_norm"])
    factored = {"fc6", "fc7", "fc8"} if "exchange" in changes else set()
    assert main["gradients"] == set(LAYERS) - factored
    assert (main["waited"] is None) == (world_size == 1)
    assert world_size == 1 or 0.0 < main["waited"] < 60.0
