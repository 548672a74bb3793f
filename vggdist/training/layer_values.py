"""Norms and histograms of each layer's weights and gradients, read by the host in few transfers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn

from vggdist.model.vgg import layer_name
from vggdist.training.optimizer import in_memory_order, trained_parameters

NUM_BINS = 64
_EXACT = 1 << 24
"""Elements that fp32 counts one by one."""


@dataclass(frozen=True)
class Histogram:
    """Counts of values in equal bins from the lowest to the highest."""

    lowest: float
    highest: float
    counts: tuple[int, ...]

    def edges(self) -> list[float]:
        """The upper end of each bin."""
        width = (self.highest - self.lowest) / len(self.counts)
        return [self.lowest + width * number for number in range(1, len(self.counts) + 1)]


def layer_weights(network: nn.Module) -> dict[str, nn.Parameter]:
    """The trained matrices and kernels by the paper's name of their layer."""
    trained = trained_parameters(network)
    return {layer_name(path): weights for path, weights in trained.items() if weights.dim() > 1}


def norms(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """The Euclidean norm of each tensor, a scalar on its device."""
    return torch._foreach_norm(list(tensors))


@torch.no_grad()
def histograms(tensors: Mapping[str, Tensor], scale: float = 1.0) -> dict[str, Histogram]:
    """A histogram of each tensor's values over `scale`; none of one with values not finite.

    The host waits for the device twice, however many tensors there are.
    """
    if not tensors:
        return {}
    ends = torch.stack([torch.stack(torch.aminmax(values)) for values in tensors.values()]).tolist()
    found, counts = {}, []
    for (name, values), (lowest, highest) in zip(tensors.items(), ends, strict=True):
        if not (isfinite(lowest) and isfinite(highest)):
            continue
        # torch would choose other ends than two equal ones.
        end = highest if highest > lowest else lowest + (abs(lowest) or 1.0)
        # torch counts in fp32, which is exact in parts.
        parts = torch.split(in_memory_order(values), _EXACT)
        histogram = torch.stack([torch.histc(p, NUM_BINS, lowest, end).double() for p in parts])
        counts.append(histogram.sum(0))
        found[name] = (lowest / scale, end / scale)
    if not counts:
        return {}
    return {
        name: Histogram(*found[name], tuple(map(int, row)))
        for name, row in zip(found, torch.stack(counts).tolist(), strict=True)
    }
