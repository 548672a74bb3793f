"""Looks at every operator on a GPU: for what makes the host wait, and how many there are."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.fake_cuda import runtime

_READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_WITHOUT_A_KERNEL = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("_unsafe_view", "_local_scalar_dense"),
}
_CPU = torch.device("cpu")


class Watch(TorchDispatchMode):
    """Notes what a rank's step must not do; other threads may wait.

    Attributes:
        operators: how many there were on the GPU, by name; those that only take memory or make
            views are not counted.
    """

    def __init__(self, device: torch.device) -> None:
        """Looks while it is entered.

        Args:
            device: the rank's own.
        """
        super().__init__()
        self._own = device
        self._thread = threading.current_thread().name
        self._pinned: dict[int, Tensor] = {}
        self.start()

    def start(self) -> None:
        """Forgets what was before."""
        self.operators: Counter[str] = Counter()
        self._faults: list[str] = []
        self._first_call = len(runtime.calls)

    @property
    def calls(self) -> list[runtime.Call]:
        """Of CUDA, of all threads."""
        return runtime.calls[self._first_call :]

    @property
    def faults(self) -> list[str]:
        """What has made the host wait, or left the rank's GPU, and where."""
        return self._faults + [
            f"{call.name}, GPU {call.device}: {call.place}"
            for call in self.calls
            if self._is_fault(call)
        ]

    def _is_fault(self, call: runtime.Call) -> bool:
        if call.name.endswith("synchronize"):
            if call.thread != self._thread:
                return False
            if call.name == "Event.synchronize":
                return call.since >= self._first_call
            return not call.own_stream
        return call.device != self._own.index

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        name = func.name().partition("::")[2].partition(".")[0]
        given = _tensors((args, kwargs))
        if name == "copy_":
            non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
            self._look_at_copy(source=args[1], target=args[0], non_blocking=non_blocking)
        else:
            self._look_at(func, given)
        result = func(*args, **kwargs)
        made = _tensors(result)
        if name == "_to_copy":
            self._look_at_copy(args[0], result, kwargs.get("non_blocking", False))
        if name == "_pin_memory" or kwargs.get("pin_memory"):
            self._pinned |= {_memory(tensor): tensor for tensor in made}
        devices = {_device(tensor) for tensor in given + made} - {_CPU}
        for device in devices - {self._own}:
            self._note(f"{func.name()} on {device}, not the rank's own GPU")
        if devices and not (func.is_view or name in _WITHOUT_A_KERNEL):
            self.operators[f"{func.namespace}::{name}"] += 1
        return result

    def _look_at(self, func: Any, given: Sequence[Tensor]) -> None:
        # A single number on the CPU is handed to the kernel.
        devices = {_device(t) for t in given if t.dim() > 0 or _device(t) != _CPU}
        if len(devices) > 1:
            self._note(f"{func.name()} of tensors on {' and '.join(sorted(map(str, devices)))}")
        if devices - {_CPU} and _READS.intersection(func.tags):
            self._note(f"the host reads what is on the GPU ({func.name()})")

    def _look_at_copy(self, source: Tensor, target: Tensor, non_blocking: bool) -> None:
        if _device(source) == _device(target):
            return
        on_host = source if _device(source) == _CPU else target
        # Between two layouts, torch arranges the elements on the host.
        alike = source.stride() == target.stride()
        if not (non_blocking and alike and _memory(on_host) in self._pinned):
            self._note(f"a copy from {_device(source)} to {_device(target)} that is waited for")

    def _note(self, fault: str) -> None:
        self._faults.append(f"{fault}: {runtime.place()}")


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _device(tensor: Tensor) -> torch.device:
    # The other way is slow for fake tensors.
    return tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
