"""How gradients travel between ranks: averaged while the backward pass still runs.

DeepSpeed's own reduction at ZeRO stage 0 waits for the end of the backward pass and copies every
gradient even on a single rank, so the engine's is switched off (`training/engine.py`) and this one
takes its place. fc6, three quarters of VGG-16's parameters, is ready almost first.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, distributed

BUCKET_ELEMENTS = 1 << 20
"""Gradients below this many elements travel together, larger ones alone and in place."""


class GradientExchange:
    """All-reduces gradients to their mean over ranks, asynchronously, in the last micro batch.

    Gradients are taken as they become ready (a hook behind each parameter's accumulation), so the
    order of the collectives is the order of the backward pass, the same on every rank. A world of
    one does nothing at all.
    """

    def __init__(
        self, parameters: Sequence[torch.nn.Parameter], is_last_micro_batch: Callable[[], bool]
    ) -> None:
        self.world_size = distributed.get_world_size()
        self._is_last = is_last_micro_batch
        self._in_flight: list[tuple[distributed.Work, Tensor, list[Tensor]]] = []
        self._bucket: list[Tensor] = []
        self._bucket_elements = 0
        if self.world_size > 1:
            for parameter in parameters:
                parameter.register_post_accumulate_grad_hook(self._ready)  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        """Returns when every gradient of this step holds the mean over ranks."""
        self._send_bucket()
        for work, flat, gradients in self._in_flight:
            work.wait()
            if len(gradients) > 1:
                start = 0
                for gradient in gradients:
                    view = in_memory_order(gradient)
                    view.copy_(flat[start : start + view.numel()])
                    start += view.numel()
        self._in_flight.clear()

    def _ready(self, parameter: Tensor) -> None:
        if not self._is_last():
            return
        gradient = parameter.grad
        assert gradient is not None
        if gradient.numel() >= BUCKET_ELEMENTS:
            self._send(in_memory_order(gradient), [gradient])
            return
        self._bucket.append(gradient)
        self._bucket_elements += gradient.numel()
        if self._bucket_elements >= BUCKET_ELEMENTS:
            self._send_bucket()

    def _send_bucket(self) -> None:
        if self._bucket:
            views = [in_memory_order(gradient) for gradient in self._bucket]
            self._send(views[0] if len(views) == 1 else torch.cat(views), self._bucket)
            self._bucket, self._bucket_elements = [], 0

    def _send(self, flat: Tensor, gradients: list[Tensor]) -> None:
        # Divided before the sum, so that fp16's scaled gradients cannot overflow in it.
        flat.div_(self.world_size)
        work = distributed.all_reduce(flat, async_op=True)
        assert work is not None
        self._in_flight.append((work, flat, gradients))


def in_memory_order(tensor: Tensor) -> Tensor:
    """A flat view of a dense tensor in the order of its memory, whatever its memory format.

    Collectives want contiguous tensors, which channels_last gradients are not; their memory is, and
    it is laid out alike on every rank.
    """
    return tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())
