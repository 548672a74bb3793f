"""Memory of the tensors on a GPU: what is there at once, and what it is for."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vggdist.training.engine import Engine
from vggdist.training.optimizer import trained_parameters


@dataclass
class _Memory:
    """Of one tensor and its views."""

    num_bytes: int
    kind: str = "others"


class DeviceMemory(TorchDispatchMode):
    """Follows the memory of every tensor on a GPU that is made while it is entered.

    What CUDA, cuDNN and NCCL take for themselves, and what an allocator loses between tensors, is
    not in it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, _Memory] = {}
        self.start()

    def start(self) -> None:
        """Forgets the peak."""
        self._peak = list(self._live.values())

    def follow_gradients(self, network: nn.Module) -> None:
        """Tells gradients from other tensors, from now on."""
        for parameter in trained_parameters(network).values():
            parameter.register_post_accumulate_grad_hook(self._note_gradient)

    def peak(self, engine: Engine) -> dict[str, int]:
        """Bytes at the moment of the most, by what they are for, and their sum, `total`."""
        self._mark(engine.module.parameters(), "weights")
        states = engine.optimizer.state.values()
        self._mark((state["momentum_buffer"] for state in states), "momentum")
        num_bytes: Counter[str] = Counter()
        for memory in self._peak:
            num_bytes[memory.kind] += memory.num_bytes
        return {**num_bytes, "total": num_bytes.total()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device.type == "cuda":
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._live:
            self._live[key] = _Memory(storage.nbytes())
            weakref.finalize(storage, self._live.pop, key)
            if _sum(self._live.values()) > _sum(self._peak):
                self._peak = list(self._live.values())

    def _note_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:  # it has none where factors are sent
            self._mark([parameter.grad], "gradients")

    def _mark(self, tensors: Iterable[Tensor], kind: str) -> None:
        for tensor in tensors:
            self._live[tensor.untyped_storage()._cdata].kind = kind


def _sum(memory: Iterable[_Memory]) -> int:
    return sum(one.num_bytes for one in memory)
