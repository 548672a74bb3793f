"""Micro batches -> one weight update."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from vggdist.data.batch import Batch
from vggdist.evaluation.metrics import count_errors
from vggdist.training.engine import Engine
from vggdist.training.ranges import named


class Meter:
    """Sums over the training images since the last log, kept on the device."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Adds a micro batch of n images: loss, top-1 errors, top-5 errors, images."""
        self.sums[0] += loss * len(labels)
        self.sums[1:3] += count_errors(logits, labels)
        self.sums[3] += len(labels)


def train_step(engine: Engine, micro_batches: Iterable[Batch], meter: Meter) -> None:
    """One step: loss and gradients of each micro batch, and the update after the last.

    Args:
        engine: counts the micro batches to find the last.
        micro_batches: `accumulation_steps` of them; images (n, 3, c, c), labels (n,).
        meter: accumulates loss and errors without reading them back.
    """
    with _convolutions_timed():
        for batch in micro_batches:
            with named("forward"):
                logits = engine(batch.images, batch.dropout_keys).float()
                loss = F.cross_entropy(logits, batch.labels)
            with named("backward"):
                engine.backward(loss)
            meter.add(loss.detach(), logits.detach(), batch.labels)
            engine.step()


@contextmanager
def _convolutions_timed() -> Iterator[None]:
    """Lets cuDNN time its algorithms for each new shape and keep the fastest.

    Only for training, where one shape recurs; every shape of an evaluation would be timed.
    """
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = False
