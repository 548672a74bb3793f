"""Training steps from the same weights on the same images: in fp32 and TF32 beside a CPU's, as a
graph and with compiled convolutions beside those without.
"""

import pytest

from tests.ranks import run_in_ranks
from tests.training.graphed_steps import BAD, SETTINGS, assert_equal, graphed_and_not
from tests.training.small_engine import (
    NUM_CLASSES,
    State,
    batch_of_step,
    equal,
    loss_of,
    small_engine,
    weights_of,
    whole_difference,
)
from tests.training.test_compilation import compiled_and_not
from vggdist.config import Precision
from vggdist.distributed.precision import use_precision
from vggdist.distributed.process import Process

pytestmark = pytest.mark.gpu

MODEL = {
    "configuration": [["3-16", "3-16"], ["3-32"]],
    "num_classes": NUM_CLASSES,
    "fc_width": 64,
    "dropout": 0.5,
}
# Of the change that the steps made. Without TF32 only the order of sums differs, in fp32's 24 bits.
# TF32 keeps 11 bits of what is multiplied; weights that are off by as much are 0.03 apart
# afterwards on a CPU, and bf16's are 0.11, since ReLUs magnify.
TOLERANCE: dict[Precision, float] = {"fp32": 1e-3, "tf32": 0.1}


def five_steps(process: Process) -> dict[Precision, tuple[State, State]]:
    """The weights before and after, in each precision; two micro batches a step, dropout on."""
    found = {}
    for precision in TOLERANCE:
        use_precision(precision)
        engine = small_engine(process, micro=4, model=MODEL, precision=precision)
        engine.optimizer.set_learning_rate(0.01)
        before = weights_of(engine)
        for step in range(5):
            parts = [one.to(process.device).chunk(2) for one in batch_of_step(step)]
            for images, labels, keys in zip(*parts, strict=True):
                engine.backward(loss_of(engine, images, labels, keys))
                engine.step()
        found[precision] = before, weights_of(engine)
    return found


def test_five_steps_move_the_weights_to_where_a_cpu_moves_them(in_ranks, figure):
    (ours,), (on_a_cpu,) = in_ranks(five_steps, 1), run_in_ranks(five_steps, 1)
    for precision, tolerance in TOLERANCE.items():
        before, expected = on_a_cpu[precision]
        assert equal(ours[precision][0], before)
        difference = whole_difference(ours[precision][1], expected, before)
        figure(f"difference in {precision}, relative to the change", difference)
        assert difference < tolerance


def test_a_graph_repeats_steps_to_the_bit(in_ranks, rehearsal):
    settings = [*SETTINGS, {"precision": "fp16"}]
    if rehearsal:
        settings = settings[:1]  # tests/training/test_graph.py has the others
    (found,) = in_ranks(graphed_and_not, 1, BAD, settings)
    for compared in found:
        assert_equal(compared)


def test_compiled_convolutions_move_the_weights_alike(in_ranks, rehearsal, figure, monkeypatch):
    backend, tolerances = "inductor", {"fp32": 1e-3, "bf16": 0.1}
    if rehearsal:
        backend, tolerances = "aot_eager", {"fp32": 1e-3}
        monkeypatch.setenv("CXX", "true")  # which is all that this back end needs
    for precision, tolerance in tolerances.items():
        (found,) = in_ranks(compiled_and_not, 1, precision, backend)
        plain, compiled = found["plain"], found["compiled"]
        difference = whole_difference(compiled["weights"], plain["weights"], plain["before"])
        figure(f"difference in {precision}, relative to the change", difference)
        assert difference < tolerance
        assert compiled["graphs"] == 0
