"""Top-1 and top-5 errors as integer counts, so that sums over ranks are exact."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Errors:
    """The result of an evaluation; errors are fractions of `num_images`."""

    num_images: int
    top1_error: float
    top5_error: float
    loss: float


def count_errors(logits: Tensor, labels: Tensor) -> Tensor:
    """Counts images whose class is not first, and not among the first five.

    Classes with equal logits are ranked by number, so that the count is deterministic. A nan logit
    ranks last, and its class is an error.

    Args:
        logits: (n, num_classes), or posteriors.
        labels: (n,) int64.

    Returns:
        (2,) int64 on the device of `logits`: top-1 errors, top-5 errors.
    """
    columns = labels.unsqueeze(1)
    own = logits.gather(1, columns)
    numbers = torch.arange(logits.shape[1], device=logits.device)
    # Comparisons with nan are false, so a logit that is nan is never ahead.
    ahead = (logits > own) | ((logits == own) & (numbers < columns))
    rank = ahead.sum(dim=1)
    wrong = torch.isnan(own).squeeze(1)
    return torch.stack([((rank >= k) | wrong).sum() for k in (1, 5)])
