"""SGD with momentum (section 3.1) that keeps gradients that are not finite out of the weights."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from vggdist.config import OptimizerConfig


class MaskedSGD(torch.optim.SGD):
    """`torch.optim.SGD` whose fused update the device itself leaves out after a bad gradient.

    Nothing is read back to the host: one pass over the gradients sets a flag on the device, and
    torch's fused kernel returns without touching weights and momentum where it is set. Under fp16
    a `GradScaler` brings the flag (attribute `found_inf`) and every overflow is one skipped step;
    without a scaler the first bad gradient sets the flag for good, so the weights stay those
    before it until the host has noticed.

    Attributes:
        masked: float (1,), 1 where the latest update was left out.
    """

    def __init__(self, params: ParamsT, config: OptimizerConfig) -> None:
        super().__init__(
            params,
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.masked: Tensor | None = None
        self.found_inf: Tensor

    def parameters(self) -> list[Tensor]:
        """All parameters, in order."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def start_momentum(self) -> None:
        """Gives every parameter a zero momentum buffer of its own memory format.

        torch makes them at the first step, uninitialized: masked, that step would leave garbage.
        From zero, the first update is the same as torch's.
        """
        for group in self.param_groups:
            if group["momentum"]:
                for parameter in group["params"]:
                    if not self.state[parameter]:
                        self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def set_learning_rate(self, learning_rate: float) -> None:
        """For all parameters."""
        for group in self.param_groups:
            group["lr"] = learning_rate

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update, unless a gradient is not finite."""
        self.start_momentum()
        scaled = hasattr(self, "found_inf")
        if scaled:
            self.masked = self.found_inf
        else:
            bad = any_not_finite(p.grad for p in self.parameters() if p.grad is not None)
            self.masked = bad if self.masked is None else torch.maximum(self.masked, bad)
            self.found_inf = self.masked
        super().step()
        if not scaled:
            del self.found_inf


def trained_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that are trained, by name; the frozen rest has no gradient and no momentum."""
    named = network.named_parameters()
    return {name: parameter for name, parameter in named if parameter.requires_grad}


def norm(tensors: Iterable[Tensor]) -> Tensor:
    """The Euclidean norm of all elements together, as a scalar on their device."""
    whole: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))
    return whole


def any_not_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Float (1,) on the tensors' device: 1 where any element is infinite or not a number.

    A sum is finite exactly when its terms are, short of a sum beyond 3e38, and costs one read.
    """
    sums = torch.stack([tensor.sum() for tensor in tensors])
    return (~torch.isfinite(sums.sum())).to(torch.float32).reshape(1)
