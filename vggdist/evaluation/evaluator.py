"""One protocol over a set of images, over all ranks: each image counted exactly once."""

from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vggdist.distributed.process import sum_over_ranks
from vggdist.evaluation.confusion import class_errors, count_predictions
from vggdist.evaluation.metrics import Errors, count_errors
from vggdist.evaluation.mistakes import Mistakes


class LabelledImages(Protocol):
    """A micro batch: images (n, 3, c, c) and labels (n,) on one device, and the images' numbers."""

    @property
    def images(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def index(self) -> NDArray[np.int64]: ...


@torch.no_grad()
def evaluate(
    network: Callable[[Tensor], Tensor],
    batches: Iterable[LabelledImages],
    num_images: int,
    num_classes: int,
    device: torch.device,
    num_mistakes: int = 0,
) -> Errors:
    """Errors, also by class, worst mistakes and mean loss of `network` on all ranks' images.

    Args:
        network: images -> logits (n, num_classes), in evaluation mode.
        batches: this rank's share.
        num_images: total images of all shares.
        device: where the counts stay until the end, so that the host does not wait.
        num_mistakes: how many of the worst are returned.

    Raises:
        RuntimeError: the shares do not add up to `num_images`.
    """
    counts = torch.zeros(3, dtype=torch.int64, device=device)
    predictions = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
    loss = torch.zeros(1, dtype=torch.float64, device=device)
    mistakes = Mistakes(num_mistakes)
    for batch in batches:
        logits = network(batch.images).float()
        counts[:2] += count_errors(logits, batch.labels)
        counts[2] += len(batch.labels)
        count_predictions(predictions, logits, batch.labels)
        mistakes.add(logits, batch.labels, batch.index)
        loss += F.cross_entropy(logits, batch.labels, reduction="sum")
    top1, top5, counted = sum_over_ranks(counts).tolist()
    if counted != num_images:
        raise RuntimeError(f"an evaluation counted {counted} images of {num_images}")
    mean_loss = float(sum_over_ranks(loss).item()) / num_images
    classes = class_errors(np.array(sum_over_ranks(predictions).tolist()))
    worst = mistakes.worst()
    return Errors(num_images, top1 / num_images, top5 / num_images, mean_loss, classes, worst)
