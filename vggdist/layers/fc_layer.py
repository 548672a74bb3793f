"""The fully connected layers fc6, fc7 and fc8."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggdist.layers.dropout import KeyedDropout

TakeFactors = Callable[[Tensor, Tensor], None]


class FCLayer(nn.Module):
    """Linear, ReLU, dropout (fc6, fc7); the last layer (fc8) is only linear.

    The paper has dropout after the ReLU. torchvision once had it before fc6; moving it lowered its
    errors by about a point (pytorch/vision pull request 107).

    Attributes:
        take_factors: if set, weights and biases get no gradients. Instead, every backward pass
            calls it with their factors: the inputs X (n, in_features) and the gradients dY (n,
            out_features) of the outputs, in the type of the computation. The weights' gradient is
            dY^T X, the biases' the sum of dY over n.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        number: int,
        dropout: float = 0.0,
        last: bool = False,
    ) -> None:
        """Builds the layer.

        Args:
            in_features: input units.
            out_features: output units.
            number: the layer's number in the paper, 6 to 8; its dropout masks depend on it.
            dropout: dropout ratio; not used in the last layer.
            last: no ReLU and no dropout, for logits.
        """
        super().__init__()
        self.linear = _Linear(in_features, out_features)
        self.dropout = None if last else KeyedDropout(dropout, number)
        self.take_factors: TakeFactors | None = None
        self._rounded: Tensor | None = None

    def forward(self, x: Tensor, dropout_keys: Tensor | None = None) -> Tensor:
        """(n, in_features) -> (n, out_features); `dropout_keys` (n,) as in `KeyedDropout`."""
        units: Tensor
        if self.take_factors is None or not torch.is_grad_enabled():
            units = self.linear(x)
        else:
            linear = self.linear
            kind = x.device.type
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
            units = _FactoredLinear.apply(
                x.to(dtype),
                linear.weight,
                self._weights_in(dtype),
                linear.bias.to(dtype),
                self.take_factors,
            )
        if self.dropout is None:
            return units
        dropped: Tensor = self.dropout(units.relu(), dropout_keys)
        return dropped

    @torch.no_grad()
    def _weights_in(self, dtype: torch.dtype) -> Tensor:
        """The weights, rounded to `dtype`."""
        weight = self.linear.weight
        if weight.is_cuda or weight.dtype == dtype:
            return weight.detach().to(dtype)
        # On a CPU, reuse the same memory: fresh memory costs three times as much as the rounding.
        if self._rounded is None or self._rounded.dtype != dtype:
            self._rounded = torch.empty_like(weight, dtype=dtype)
        return self._rounded.copy_(weight)


class _Linear(nn.Linear):
    """`nn.Linear`, but faster on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return _linear(x, self.weight, self.bias)


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`F.linear` of x (n, in_features) -> (n, out_features)."""
    exact = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if weight.is_cuda or not exact or torch.compiler.is_exporting():
        return F.linear(x, weight, bias)
    # Multiply the weights by columns of units: with 8 to 32 images, where reading the weights
    # dominates, this takes a fifth to a half less time in fp32 on a CPU.
    return torch.addmm(bias[:, None], weight, x.T).T.contiguous()


class _FactoredLinear(torch.autograd.Function):
    """`F.linear` that passes on the factors of its weights' gradient.

    Takes the weights twice: the trained ones, and a copy in the type of the computation.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        trained: Tensor,
        weight: Tensor,
        bias: Tensor,
        take_factors: TakeFactors,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.take_factors = take_factors
        return _linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        # First, so that they are sent while the rest is computed.
        ctx.take_factors(x, gradient)
        return gradient @ weight if ctx.needs_input_grad[0] else None, None, None, None, None
