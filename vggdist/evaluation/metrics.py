"""Top-1 and top-5 errors as integer counts, so that sums over ranks are exact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from vggdist.evaluation.confusion import ClassErrors
from vggdist.evaluation.mistakes import Mistake

TOP5 = 5
"""With so many classes or fewer the top-5 error is always 0, and people are not told it."""


@dataclass(frozen=True)
class Errors:
    """The result of an evaluation; errors are fractions of `num_images`."""

    num_images: int
    top1_error: float
    top5_error: float
    loss: float
    classes: ClassErrors = field(default_factory=ClassErrors)
    mistakes: tuple[Mistake, ...] = field(default=(), compare=False)
    """The surest first; for pictures, and in no checkpoint."""

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        state = asdict(self)
        del state["mistakes"]
        return state

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> Errors:
        """What `state` returned; checkpoints of earlier versions know of no classes."""
        classes = ClassErrors.from_state(state.get("classes", {}))
        return Errors(**{**state, "classes": classes})


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
    return torch.stack([((rank >= k) | wrong).sum() for k in (1, TOP5)])
