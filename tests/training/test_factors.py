"""The oracle of factors is the all-reduce of the matrices, and plain torch in one process."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ranks import run_in_ranks
from tests.training.small_engine import (
    CROP_SIZE,
    NUM_CLASSES,
    equal,
    given_gradients,
    loss_of,
    momentum_of,
    relative_difference,
    small_config,
    small_network,
    weights_of,
)
from vggdist.artifacts import checkpoint
from vggdist.config import Exchange, split_batch
from vggdist.distributed import collectives
from vggdist.distributed.process import Process
from vggdist.training.engine import Engine
from vggdist.training.factors import factored_layers, render_traffic
from vggdist.training.zero import build_engine

WORLD_SIZES = (1, 2, 3, 4)
GLOBAL_BATCH = 48
CASES: dict[str, dict[str, Any]] = {
    "one micro batch": {},
    "accumulation and dropout": {"num_micro": 2, "dropout": 0.5},
    "gradient clipping": {"num_micro": 2, "clip": 0.05},
    "batch normalization": {"num_micro": 2, "batch_norm": True, "dropout": 0.5},
    "frozen convolutions": {"frozen": ("features",)},
    "frozen fc7": {"frozen": ("fc7",)},
}
FACTORED = {
    f"{layer}.linear.{part}" for layer in ("fc6", "fc7", "fc8") for part in ("weight", "bias")
}
BF16_ROUNDING = 2.0**-8
"""Largest relative difference of a number and its nearest in bf16."""


class Trained:
    """An engine on this rank's share, and the gradients that its optimizer has been given."""

    def __init__(self, process: Process, exchange: str, seed: int = 1, **changes: Any) -> None:
        self._process, self._num_micro = process, changes.pop("num_micro", 1)
        frozen = changes.pop("frozen", ())
        micro = GLOBAL_BATCH // process.world_size // self._num_micro
        config = small_config(**({"exchange": exchange} | changes), micro=micro)
        config = config.model_copy(
            update={"batch": config.batch.model_copy(update={"global_": GLOBAL_BATCH})}
        )
        network = small_network(config, seed)
        for name in frozen:
            network.get_submodule(name).requires_grad_(False)
        split = split_batch(config.batch, process.world_size)
        self.engine = build_engine(network, config, split, process)
        self.gradients: dict[str, Tensor] = {}
        self.clipped = 0.0
        optimizer = self.engine.optimizer
        optimizer.register_step_pre_hook(lambda *_: self._note())
        optimizer.register_step_post_hook(lambda *_: self._note_clipped())

    def _note(self) -> None:
        self.gradients = given_gradients(self.engine)

    def _note_clipped(self) -> None:
        """The norm of the gradient as the update used it, where all of it is in memory."""
        gradients = [
            p.grad.flatten() for p in self.engine.optimizer.parameters() if p.grad is not None
        ]
        self.clipped = torch.cat(gradients).norm().item()

    def step(self, number: int) -> None:
        rank, world_size = self._process.rank, self._process.world_size
        shares = [tensor.chunk(world_size)[rank].chunk(self._num_micro) for tensor in batch(number)]
        for images, labels, keys in zip(*shares, strict=True):
            self.engine.backward(loss_of(self.engine, images, labels, keys))
            self.engine.step()


def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    images = torch.randn(GLOBAL_BATCH, 3, CROP_SIZE, CROP_SIZE, generator=generator)
    labels = torch.randint(NUM_CLASSES, (GLOBAL_BATCH,), generator=generator)
    keys = torch.randint(-(2**63), 2**63 - 1, (GLOBAL_BATCH,), generator=generator)
    return images, labels, keys


def all_measurements(process: Process, folder: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name, changes in CASES.items():
        results[name] = both_ways(process, **changes)
    results["plain torch"] = beside_plain_torch(process)
    if process.world_size == 2:
        results["moved"] = moved(process, folder)
    for precision in ("bf16", "fp16"):
        results[precision] = both_ways(process, num_micro=2, precision=precision)
    results["fp32 matrices"] = both_ways(process, precision="bf16", exchange_precision="fp32")
    results["bf16 sent"] = both_ways(process, precision="fp32", exchange_precision="bf16")
    results["overflow"] = overflow(process)
    return results


def both_ways(process: Process, **changes: Any) -> dict[str, Any]:
    """Each gradient's difference between the two ways, by its norm, in the first step."""
    trained = [Trained(process, exchange, **changes) for exchange in ("all_reduce", "factors")]
    for one in trained:
        one.engine.measure_norm = True
        if changes.get("precision") == "fp16":
            set_loss_scale(one.engine, 256.0)
        one.step(0)
    matrix, factors = (one.gradients for one in trained)
    assert matrix.keys() == factors.keys()
    return {
        "differences": {
            name: ((factors[name] - gradient).double().norm() / gradient.double().norm()).item()
            for name, gradient in matrix.items()
        },
        "norms": [one.engine.gradient_norm() for one in trained],
        "clipped": [one.clipped for one in trained],
        "gradients": factors,
    }


def both_ways_on_two_nodes(process: Process) -> dict[str, Any]:
    """Four ranks, two on each node as far as they know."""
    collectives.gather = lambda value: ["a", "a", "b", "b"]  # type: ignore[assignment]
    return both_ways(process)


def beside_plain_torch(process: Process) -> float:
    """The factors' largest difference from the gradient of the whole batch in one process."""
    trained = Trained(process, "factors", num_micro=2, dropout=0.5)
    network = small_network(trained.engine.config)
    network.to(memory_format=torch.channels_last)
    trained.step(0)
    loss_of(network, *batch(0)).backward()
    plain = {name: parameter.grad for name, parameter in network.named_parameters()}
    return relative_difference(trained.gradients, plain)


def set_loss_scale(engine: Engine, scale: float) -> None:
    state = engine.scaler_state()
    engine.load(weights_of(engine), momentum_of(engine), state | {"scale": scale})


def moved(process: Process, folder: Path) -> dict[str, Any]:
    """A checkpoint of one way, continued in both."""
    results = {}
    for old in ("factors", "all_reduce"):
        first = Trained(process, old, num_micro=2, dropout=0.5)
        first.step(0)
        if process.is_main:
            state = checkpoint.Checkpoint(
                1, weights_of(first.engine), momentum_of(first.engine), {}
            )
            checkpoint.save(folder / f"{process.world_size}-{old}", state, keep=2)
        torch.distributed.barrier()
        path = checkpoint.newest(folder / f"{process.world_size}-{old}")
        assert path is not None
        saved = checkpoint.load(path)
        first.step(1)
        for new in ("factors", "all_reduce"):
            second = Trained(process, new, seed=2, num_micro=2, dropout=0.5)
            second.engine.load(saved.weights, saved.momentum, {})
            second.step(1)
            ours, theirs = weights_of(second.engine), weights_of(first.engine)
            results[old, new] = {
                "difference": relative_difference(ours, theirs, saved.weights),
                "bit for bit": equal(ours, theirs)
                and equal(momentum_of(second.engine), momentum_of(first.engine)),
            }
    return results


def overflow(process: Process) -> dict[str, Any]:
    """fp16's first loss scale, 65,536, halved until no rank's factors overflow."""
    trained = Trained(process, "factors", precision="fp16")
    engine = trained.engine
    origin, unmoved = weights_of(engine), True
    scales, masked = [], []
    while len(scales) < 12:
        trained.step(0)
        scales.append(engine.loss_scale())
        masked.append(bool(engine.masked.item()))
        if not masked[-1]:
            break
        unmoved &= equal(weights_of(engine), origin)
    return {"scales": scales, "masked": masked, "unmoved": unmoved, "weights": weights_of(engine)}


@pytest.fixture(scope="module", params=WORLD_SIZES)
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    return run_in_ranks(all_measurements, request.param, tmp_path_factory.mktemp("checkpoints"))


@pytest.mark.multi_process
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_factors_give_the_gradients_of_an_all_reduce(
    world: list[dict[str, Any]], case: str
) -> None:
    for results in world:
        differences = results[case]["differences"]
        assert max(differences.values()) <= 1e-6, differences
        frozen = CASES[case].get("frozen", ())
        expected = {name for name in FACTORED if name.partition(".")[0] not in frozen}
        assert expected <= differences.keys()
        assert not any(name.partition(".")[0] in frozen for name in differences)


@pytest.mark.multi_process
@pytest.mark.slow
def test_all_ranks_have_the_same_gradients_bit_for_bit(world: list[dict[str, Any]]) -> None:
    for case in CASES:
        first, *others = (results[case]["gradients"] for results in world)
        assert all(equal(other, first) for other in others)


@pytest.mark.multi_process
@pytest.mark.slow
def test_they_are_the_gradients_of_the_whole_batch_in_one_process(
    world: list[dict[str, Any]],
) -> None:
    for results in world:
        assert results["plain torch"] < 1e-5


@pytest.mark.multi_process
@pytest.mark.slow
def test_in_16_bits_they_differ_by_its_rounding(world: list[dict[str, Any]]) -> None:
    """Of a matrix whose parts were rounded once on each rank and once more in every sum."""
    for results in world:
        for precision in ("bf16", "fp16"):
            differences = results[precision]["differences"]
            assert max(differences.values()) < 2 * BF16_ROUNDING, differences
        differences = results["fp32 matrices"]["differences"]
        assert max(differences.values()) < BF16_ROUNDING, differences
        differences = results["bf16 sent"]["differences"]
        assert max(differences.values()) < 2 * BF16_ROUNDING, differences


@pytest.mark.multi_process
@pytest.mark.slow
def test_the_clipped_norm_is_that_of_the_whole_gradient(world: list[dict[str, Any]]) -> None:
    for results in world:
        norms, clipped = (results["gradient clipping"][name] for name in ("norms", "clipped"))
        assert norms[0] == pytest.approx(norms[1], rel=1e-6)
        assert min(norms) > 0.1
        assert clipped == pytest.approx([0.05, 0.05], rel=1e-4)


@pytest.mark.multi_process
@pytest.mark.slow
def test_an_overflow_masks_the_step_on_all_ranks(world: list[dict[str, Any]]) -> None:
    first, *others = (results["overflow"] for results in world)
    assert first["masked"][0]
    assert not first["masked"][-1]
    assert first["scales"][0] == 32768.0
    assert first["unmoved"]
    for other in others:
        assert other["scales"] == first["scales"]
        assert equal(other["weights"], first["weights"])


@pytest.mark.multi_process
@pytest.mark.slow
def test_between_nodes_factors_give_the_gradients_of_an_all_reduce_too() -> None:
    for results in run_in_ranks(both_ways_on_two_nodes, 4):
        for name, difference in results["differences"].items():
            assert difference < 1e-5, name


@pytest.mark.multi_process
@pytest.mark.slow
@pytest.mark.parametrize("world", [2], indirect=True)
def test_a_checkpoint_moves_between_the_two_ways(world: list[dict[str, Any]]) -> None:
    for results in world:
        for (old, new), result in results["moved"].items():
            assert result["difference"] < 1e-5
            if old == new:
                assert result["bit for bit"]


# Without ranks


def test_frozen_layers_are_never_factored() -> None:
    config = small_config()
    network = small_network(config)
    network.fc6.requires_grad_(False)
    ways: dict[str, Exchange] = {"fc7": "factors", "fc8": "all_reduce"}
    split = split_batch(config.batch, 2)
    assert factored_layers(network, ways, config, split, tell=False) == [network.fc7]


def test_the_table_has_the_bytes_of_both_ways(caplog: pytest.LogCaptureFixture) -> None:
    config = small_config(exchange="auto")
    split = split_batch(config.batch, 2)
    ways: dict[str, Exchange] = {"fc6": "factors", "fc7": "factors", "fc8": "all_reduce"}
    with caplog.at_level(logging.DEBUG, logger="vggdist"):
        factored_layers(small_network(config), ways, config, split, tell=True)
    lines = caplog.messages[0].splitlines()
    assert lines[0] == (
        "Gradient exchange, MB sent by each of 2 ranks in a step of 4 images of its own:"
    )
    assert lines[1].split() == [
        "layer",
        "matrix",
        "(fp32)",
        "factors",
        "(fp32)",
        "exchange=auto",
        "takes",
    ]
    assert [line.split()[0] for line in lines[2:]] == ["fc6", "fc7", "fc8", "all", "together"]
    assert lines[2].split()[1:] == ["0.02", "0.01", "the", "factors"]
    assert lines[4].split()[-2:] == ["the", "matrix"]
    assert render_traffic([], {}, 1_000_000, config, split).splitlines()[-1].split()[1] == "4.00"
