"""SGD with momentum (section 3.1) and LARS, which skip updates with non-finite gradients."""

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT
from torch.optim.sgd import sgd

from vggdist.config import OptimizerConfig
from vggdist.training.product import Product


class MaskedSGD(torch.optim.SGD):
    """`torch.optim.SGD` whose fused update the device itself skips after a bad gradient.

    Nothing is read back to the host: one pass over the gradients sets a flag on the device, and if
    it is set, torch's fused kernel returns without touching weights and momentum. In fp16 a
    `GradScaler` provides the flag (attribute `found_inf`), and every overflow skips one step;
    without a scaler the first bad gradient sets the flag permanently, so the weights stay as they
    were before it until the host notices.

    Attributes:
        masked: float (1,), 1 if the latest update was skipped.
        products: gradients of weights that have none in memory, for the next step; not with fp16's
            loss scale.
    """

    # torch's own imports its compiler, only to exclude itself: two seconds at every start.
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)

    def __init__(self, params: ParamsT, config: OptimizerConfig) -> None:
        super().__init__(
            params,
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._largest_norm = config.gradient_clipping
        self.masked: Tensor | None = None
        self.products: list[Product] = []
        self.found_inf: Tensor

    def parameters(self) -> list[Tensor]:
        """All parameters, in order."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def start_momentum(self) -> None:
        """Gives every parameter a zero momentum buffer of its own memory format.

        torch creates them uninitialized at the first step; if that step is masked, they hold
        garbage. From zero, the first update equals torch's.
        """
        for group in self.param_groups:
            if group["momentum"]:
                for parameter in group["params"]:
                    if not self.state[parameter]:
                        self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Sets it for all parameters."""
        for group in self.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(learning_rate)
            else:
                group["lr"] = learning_rate

    def keep_learning_rate_on(self, device: torch.device) -> None:
        """From now on it is a number on the device, for a CUDA graph, which repeats all others."""
        for group in self.param_groups:
            group["lr"] = torch.full((), float(group["lr"]), device=device)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update, unless a gradient is not finite."""
        self.start_momentum()
        scaled = hasattr(self, "found_inf")
        if scaled:
            assert not self.products
            bad = self.found_inf
        else:
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            bad = any_not_finite([*gradients, *(product.bound() for product in self.products)])
        if self.masked is None:
            self.masked = torch.zeros_like(bad)
        # In place: a CUDA graph always reads and writes the same memory.
        if scaled:
            self.masked.copy_(bad)
        else:
            self.found_inf = torch.maximum(self.masked, bad, out=self.masked)
        if self._largest_norm:
            self._clip()
        self._adapt_gradients()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            self._descend(group, weights, [p.grad for p in weights], self._momentum_of(weights))
        for product in self.products:
            (group,) = self.param_groups
            (momentum,) = self._momentum_of([product.weight])
            for rows, gradient in product.blocks():
                part = momentum[rows] if momentum is not None else None
                self._descend(group, [product.weight[rows]], [gradient], [part])
        self.products.clear()
        if not scaled:
            del self.found_inf

    def _momentum_of(self, parameters: Sequence[Tensor]) -> list[Tensor | None]:
        return [self.state[parameter].get("momentum_buffer") for parameter in parameters]

    def _descend(
        self,
        group: dict[str, Any],
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        momentum: Sequence[Tensor | None],
    ) -> None:
        """torch's fused update, masked by `found_inf`."""
        # Flat, since on a CPU it would copy channels_last tensors.
        sgd(
            [in_memory_order(weight) for weight in weights],
            [
                in_memory_order(laid_out_like(weight, gradient))
                for weight, gradient in zip(weights, gradients, strict=True)
            ],
            [in_memory_order(buffer) if buffer is not None else None for buffer in momentum],
            fused=True,
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=self.found_inf,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
        )

    def _clip(self) -> None:
        """`torch.nn.utils.clip_grad_norm_` without host synchronization, also with a loss scale."""
        assert not self.products
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        whole = norm(gradients)
        scale = getattr(self, "grad_scale", None)
        if scale is not None:
            whole = whole / scale.reshape(())
        torch._foreach_mul_(gradients, (self._largest_norm / (whole + 1e-6)).clamp(max=1.0))

    def _adapt_gradients(self) -> None:
        """Changes the gradients before the update; for subclasses."""


class MaskedLARS(MaskedSGD):
    """`MaskedSGD` with a learning rate for each layer (You, Gitman & Ginsburg, arXiv:1708.03888).

    The gradient g of weights w, with weight decay b and trust coefficient c, is replaced by

        c |w| / (|g| + b |w|) (g + b w)

    and then used as in SGD. Biases and the parameters of batch normalization have no trust ratio
    and no weight decay, as usual with LARS.
    """

    def __init__(self, params: Iterable[nn.Parameter], config: OptimizerConfig) -> None:
        params = list(params)
        weights = [parameter for parameter in params if parameter.dim() > 1]
        others = [parameter for parameter in params if parameter.dim() <= 1]
        groups = [{"params": group} for group in (weights, others) if group]
        super().__init__(groups, config.model_copy(update={"weight_decay": 0.0}))
        self._weights = weights
        self._trust, self._decay = config.trust_coefficient, config.weight_decay

    def _adapt_gradients(self) -> None:
        weights: list[Tensor] = [w for w in self._weights if w.grad is not None]
        if not weights:
            return
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        scale = getattr(self, "grad_scale", None)
        if scale is not None:  # fp16's, which the fused kernel would remove only later
            every = [p.grad for p in self.parameters() if p.grad is not None]
            torch._foreach_mul_(every, scale.reciprocal().reshape(()))
            self.grad_scale = None
        of_weights = torch.stack(torch._foreach_norm(weights))
        of_gradients = torch.stack(torch._foreach_norm(gradients))
        trust = self._trust * of_weights / (of_gradients + self._decay * of_weights)
        # All-zero weights would never change, and without a gradient become nan.
        ratios = torch.where((of_weights > 0) & (of_gradients > 0), trust, 1.0)
        torch._foreach_add_(gradients, weights, alpha=self._decay)
        torch._foreach_mul_(gradients, list(ratios.unbind()))


def build_optimizer(params: Iterable[nn.Parameter], config: OptimizerConfig) -> MaskedSGD:
    """The configured optimizer for some parameters."""
    return (MaskedLARS if config.name == "lars" else MaskedSGD)(list(params), config)


def trained_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Trained parameters by name; frozen ones have no gradient and no momentum."""
    named = network.named_parameters()
    return {name: parameter for name, parameter in named if parameter.requires_grad}


def in_memory_order(tensor: Tensor) -> Tensor:
    """A flat view of a dense tensor in the order of its memory, whatever its memory format.

    Collectives and torch's fused update need contiguous tensors. channels_last tensors are not
    contiguous, but their memory is, with the same layout on every rank.
    """
    return tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())


def laid_out_like(pattern: Tensor, tensor: Tensor) -> Tensor:
    """The tensor in the memory format of another one of its shape; itself, if that is its own."""
    if tensor.stride() == pattern.stride():
        return tensor
    return torch.empty_like(pattern, dtype=tensor.dtype).copy_(tensor)


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
