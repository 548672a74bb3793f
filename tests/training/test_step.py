"""The oracle is the loss and the errors of the whole batch in one pass."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggdist.data.batch import Batch
from vggdist.training.step import Meter, train_step


class Recorder:
    """An engine that only notes what is asked of it."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.calls = network, []
        self.losses: list[Tensor] = []
        self.keys: list[Tensor] = []
        self.algorithms_are_timed: set[bool] = set()

    def __call__(self, images: Tensor, dropout_keys: Tensor) -> Tensor:
        self.calls.append("forward")
        self.algorithms_are_timed.add(torch.backends.cudnn.benchmark)
        self.keys.append(dropout_keys)
        logits: Tensor = self.network(images).bfloat16()
        return logits

    def backward(self, loss: Tensor) -> None:
        self.calls.append("backward")
        self.algorithms_are_timed.add(torch.backends.cudnn.benchmark)
        self.losses.append(loss)

    def step(self) -> None:
        self.calls.append("step")


def batches(sizes: list[int]) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        Batch(
            pixels=torch.randint(256, (n, 3, 4, 4), dtype=torch.uint8, generator=generator),
            mean=torch.full((n, 3), 120.0),
            labels=torch.randint(7, (n,), generator=generator),
            dropout_keys=torch.full((n,), number),
            index=np.arange(n),
        )
        for number, n in enumerate(sizes)
    ]


@pytest.fixture
def recorder() -> Any:
    torch.manual_seed(0)
    return Recorder(nn.Sequential(nn.Flatten(), nn.Linear(48, 7)))


def test_every_micro_batch_goes_forward_back_and_to_the_engines_step(recorder: Any) -> None:
    train_step(recorder, batches([4, 4]), Meter(torch.device("cpu")))
    assert recorder.calls == ["forward", "backward", "step"] * 2
    assert [keys.tolist() for keys in recorder.keys] == [[0] * 4, [1] * 4]
    assert all(loss.requires_grad and loss.dtype == torch.float32 for loss in recorder.losses)


def test_cudnn_times_its_algorithms_in_steps_alone(recorder: Any) -> None:
    train_step(recorder, batches([4]), Meter(torch.device("cpu")))
    assert recorder.algorithms_are_timed == {True}
    assert not torch.backends.cudnn.benchmark


def test_the_meter_adds_up_over_images_and_not_over_batches(recorder: Any) -> None:
    data = batches([2, 4, 1])
    meter = Meter(torch.device("cpu"))
    train_step(recorder, data[:2], meter)
    train_step(recorder, data[2:], meter)
    logits = torch.cat([recorder.network(b.images) for b in data]).bfloat16().float()
    labels = torch.cat([batch.labels for batch in data])
    top = logits.topk(5).indices == labels[:, None]
    expected = [
        F.cross_entropy(logits, labels, reduction="sum").item(),
        7 - top[:, 0].sum().item(),
        7 - top.any(dim=1).sum().item(),
        7,
    ]
    assert meter.sums.tolist() == pytest.approx(expected, rel=1e-6)
    assert not meter.sums.requires_grad
