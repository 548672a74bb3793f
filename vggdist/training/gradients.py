"""Averaging gradients over ranks while the backward pass still runs.

DeepSpeed's own reduction at ZeRO stage 0 waits for the end of the backward pass and copies every
gradient even on a single rank, so `training/engine.py` switches it off and uses this one. fc6, with
three quarters of VGG-16's parameters, is ready almost first; its gradient and those of fc7 and fc8
may be sent as factors (`training/factors.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from vggdist.distributed.collectives import Collectives, Wait
from vggdist.distributed.traffic import BUCKET_ELEMENTS
from vggdist.layers.fc_layer import FCLayer
from vggdist.training.factors import FactoredGradient
from vggdist.training.optimizer import in_memory_order
from vggdist.training.product import Product
from vggdist.training.ranges import SEND, named


class GradientExchange:
    """Makes every gradient the sum over ranks, or their mean.

    Gradients are all-reduced as they become ready in the last micro batch (by a hook after each
    parameter's accumulation); those of `factored` layers are computed from factors gathered in
    every micro batch. So the collectives follow the order of the backward pass, the same on every
    rank. A world of one does nothing.
    """

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        is_last_micro_batch: Callable[[], bool],
        collectives: Collectives,
        *,
        factored: Sequence[FCLayer] = (),
        dtype: torch.dtype = torch.float32,
        factor_dtype: torch.dtype | None = None,
        products: list[Product] | None = None,
        divisor: int = 1,
    ) -> None:
        """Installs the hooks.

        Args:
            parameters: the trained ones.
            is_last_micro_batch: whether the current backward pass is the last of its step.
            collectives: of all ranks.
            factored: layers whose gradients are sent as factors.
            dtype: of the other gradients when sent.
            factor_dtype: of factors when sent; None: as computed.
            products: list that receives the products of the factored layers' weights in every step;
                None: they are multiplied, and weights have normal gradients.
            divisor: of every gradient, before the sum; the number of ranks, unless the loss has
                been divided by it.
        """
        self._products = products
        self.world_size = collectives.world_size
        self._collectives, self._dtype, self._divisor = collectives, dtype, divisor
        self._is_last = is_last_micro_batch
        self._in_flight: list[tuple[Wait, Tensor, list[Tensor]]] = []
        self._bucket: list[Tensor] = []
        self._bucket_elements = 0
        self._factored: list[FactoredGradient] = []
        if self.world_size > 1:
            self._factored = [
                FactoredGradient(layer, collectives, factor_dtype, divisor) for layer in factored
            ]
            apart = {id(p) for layer in factored for p in layer.parameters()}
            for parameter in parameters:
                if id(parameter) not in apart:
                    parameter.register_post_accumulate_grad_hook(self._ready)  # type: ignore[no-untyped-call]

    def waited(self) -> float | None:
        """Seconds since the last call in which this rank waited for others; None on one rank.

        On a GPU, whose work must be done, those of its stream.
        """
        return self._collectives.waiting.take() if self.world_size > 1 else None

    def wait(self) -> None:
        """Returns when every gradient of this step is that of all ranks.

        Does nothing before the last micro batch.
        """
        if not self._is_last():
            return
        self._send_bucket()
        # While the last bucket is being sent.
        for factored in self._factored:
            product = factored.finish()
            if self._products is None:
                factored.multiply(product)
            else:
                self._products.append(product)
        for wait, flat, gradients in self._in_flight:
            wait()
            start = 0
            for gradient in gradients:
                view = in_memory_order(gradient)
                part = flat[start : start + view.numel()]
                if part.data_ptr() != view.data_ptr():
                    view.copy_(part)
                start += view.numel()
        self._in_flight.clear()

    def forget_step(self) -> None:
        """Drops what is in flight, of a step that has failed half way."""
        self._in_flight.clear()
        self._bucket, self._bucket_elements = [], 0
        for factored in self._factored:
            factored.forget_step()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within the block, every rank keeps its own gradients."""
        is_last, self._is_last = self._is_last, lambda: False
        for factored in self._factored:
            factored.detach()
        try:
            yield
        finally:
            self._is_last = is_last
            for factored in self._factored:
                factored.attach()

    def _ready(self, parameter: Tensor) -> None:
        if not self._is_last():
            return
        gradient = parameter.grad
        assert gradient is not None
        if gradient.numel() >= BUCKET_ELEMENTS:
            with named(SEND):
                self._send([gradient])
            return
        self._bucket.append(gradient)
        self._bucket_elements += gradient.numel()
        if self._bucket_elements >= BUCKET_ELEMENTS:
            self._send_bucket()

    def _send_bucket(self) -> None:
        if self._bucket:
            with named(SEND):
                self._send(self._bucket)
            self._bucket, self._bucket_elements = [], 0

    def _send(self, gradients: list[Tensor]) -> None:
        views = [in_memory_order(gradient) for gradient in gradients]
        if len(views) == 1 and views[0].dtype == self._dtype:
            flat = views[0]
        else:
            flat = views[0].new_empty(sum(view.numel() for view in views), dtype=self._dtype)
        start = 0
        for view in views:
            # Divided before the sum, so that fp16's scaled gradients cannot overflow in it; and
            # before rounding, since a rounding division is several times slower on a CPU.
            if self._divisor != 1:
                view.div_(self._divisor)
            if flat.data_ptr() != view.data_ptr():
                flat[start : start + view.numel()].copy_(view)
            start += view.numel()
        self._in_flight.append((self._collectives.all_reduce(flat), flat, gradients))
