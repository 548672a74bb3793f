"""Five training steps in fp32 from the same weights on the same images, beside a CPU's."""

import pytest
import torch

from tests.ranks import run_in_ranks
from tests.training.small_engine import (
    NUM_CLASSES,
    State,
    batch_of_step,
    equal,
    loss_of,
    small_engine,
    whole_difference,
)
from vggdist.distributed.process import Process

pytestmark = pytest.mark.gpu

MODEL = {
    "configuration": [["3-16", "3-16"], ["3-32"]],
    "num_classes": NUM_CLASSES,
    "fc_width": 64,
    "dropout": 0.5,
}
# Of the change that the steps made. Without TF32 only the order of sums differs, in fp32's 24 bits.
# TF32 keeps 11 bits of what is multiplied in a convolution. On a CPU, weights that are off by as
# much are 0.03 apart afterwards, and bf16's 0.11, since ReLUs magnify.
TOLERANCE = {False: 1e-3, True: 0.1}


def five_steps(process: Process) -> dict[bool, tuple[State, State]]:
    """The weights before and after, without and with TF32; two micro batches a step, dropout on."""
    found = {}
    for tf32 in TOLERANCE:
        torch.backends.cudnn.allow_tf32 = tf32
        engine = small_engine(process, micro=4, model=MODEL)
        engine.optimizer.set_learning_rate(0.01)
        before = engine.weights()
        for step in range(5):
            parts = [one.to(process.device).chunk(2) for one in batch_of_step(step)]
            for images, labels, keys in zip(*parts, strict=True):
                engine.backward(loss_of(engine, images, labels, keys))
                engine.step()
        found[tf32] = before, engine.weights()
    return found


def test_five_steps_move_the_weights_to_where_a_cpu_moves_them(in_ranks, figure):
    (ours,), (on_a_cpu,) = in_ranks(five_steps, 1), run_in_ranks(five_steps, 1)
    for tf32, tolerance in TOLERANCE.items():
        before, expected = on_a_cpu[tf32]
        assert equal(ours[tf32][0], before)
        difference = whole_difference(ours[tf32][1], expected, before)
        name = "with TF32, as torch has it" if tf32 else "in fp32"
        figure(f"difference {name}, relative to the change", difference)
        assert difference < tolerance
