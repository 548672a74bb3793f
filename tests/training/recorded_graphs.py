"""Graphs on a CPU: what a CUDA graph captures and repeats, by torch's own operators.

As on a GPU, capturing changes nothing, and a replay computes the same operators on the same memory:
numbers that Python has put into them stay as they were, and so do the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class _Operation:
    function: Any
    args: Any
    kwargs: Any
    made: list[Tensor]
    """Results in memory of their own."""
    results: list[int]
    """Which results those are."""

    def repeat(self) -> None:
        results = tree_leaves(self.function(*self.args, **self.kwargs))
        if self.function.namespace == "c10d":
            results[-1].wait()
        for made, number in zip(self.made, self.results, strict=True):
            made.copy_(results[number])


class _Recorder(TorchDispatchMode):
    """Notes every operator while it is entered, and can undo them."""

    def __init__(self, fails_at: int | None) -> None:
        super().__init__()
        self.operations: list[_Operation] = []
        self._fails_at = fails_at
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "profiler":
            return func(*args, **kwargs)
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("the host reads a number of the device")
        if len(self.operations) == self._fails_at:
            raise RuntimeError("operation not permitted when stream is capturing")
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in given:
            key = _memory(tensor)
            if key not in self._made and key not in self._before:
                whole = tensor.detach().as_strided(
                    (tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0
                )
                self._before[key] = whole, whole.clone()
        result = func(*args, **kwargs)
        shared = {_memory(tensor) for tensor in given}
        leaves = tree_leaves(result)
        numbers = [
            number
            for number, leaf in enumerate(leaves)
            if isinstance(leaf, Tensor) and _memory(leaf) not in shared
        ]
        made = [leaves[number].detach() for number in numbers]
        self._made |= {_memory(tensor) for tensor in made}
        self.operations.append(_Operation(func, args, kwargs, made, numbers))
        return result

    def undo(self) -> None:
        for tensor, before in self._before.values():
            tensor.copy_(before)


class RecordedGraphs:
    """In place of `Graphs`.

    Attributes:
        num_captured, num_replayed: graphs so far.
    """

    def __init__(self, fails_at: int | None = None) -> None:
        """With `fails_at`, a capture fails at its operator of this number."""
        self._fails_at = fails_at
        self.num_captured = self.num_replayed = 0

    @contextmanager
    def stream(self) -> Iterator[None]:
        yield

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        recorder = _Recorder(self._fails_at)
        try:
            with recorder:
                work()
        finally:
            with torch.no_grad():
                recorder.undo()
        self.num_captured += 1

        @torch.no_grad()
        def replay() -> None:
            self.num_replayed += 1
            for operation in recorder.operations:
                operation.repeat()

        return replay


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
