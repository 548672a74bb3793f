"""The same steps with and without a graph; on a CPU the graph is one of torch's own operators.

As on a GPU, capturing changes nothing, and a replay computes the same operators on the same memory:
numbers that Python has put into them stay as they were, and so do the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.training.small_engine import equal, momentum_of, small_engine, weights_of
from tests.training.small_training import GLOBAL_BATCH, batch_of, part_of
from vggdist.data.batch import Batch
from vggdist.distributed.precision import DTYPES
from vggdist.distributed.process import Process
from vggdist.training.flags import SharedFlags
from vggdist.training.graph import GraphedStep, Graphs, build_step
from vggdist.training.step import Meter

NUM_STEPS, LOGGED, BAD = 10, (2, 5, 6, 9), 7
"""The steps whose norms are measured, and one with an image that is not finite."""
SETTINGS: list[dict[str, Any]] = [
    {},
    {"batch_norm": True, "clip": 0.5},
    {"optimizer": {"name": "lars", "learning_rate": 0.1}},
    {"precision": "bf16"},
]


def micro_batches(process: Process, step: int, precision: str, bad: int) -> list[Batch]:
    """This rank's two micro batches of a step, as a loader makes them."""
    batch = batch_of(step, GLOBAL_BATCH)
    if step == bad:
        batch.mean[0, 0] = float("nan")
    share = GLOBAL_BATCH // process.world_size
    first, half = process.rank * share, share // 2
    parts = [part_of(batch, start, start + half) for start in (first, first + half)]
    return [on_device(part, process.device, precision) for part in parts]


def on_device(batch: Batch, device: torch.device, precision: str = "fp32") -> Batch:
    """As a loader makes it."""
    return replace(
        batch,
        pixels=batch.pixels.to(device, memory_format=torch.channels_last),
        mean=batch.mean.to(device),
        labels=batch.labels.to(device),
        dropout_keys=batch.dropout_keys.to(device),
        dtype=DTYPES[precision],
    )


def steps(
    process: Process, graphs: RecordedGraphs | Graphs | None, bad: int, changes: dict[str, Any]
) -> dict[str, Any]:
    """Some steps, with all that they leave behind."""
    micro = GLOBAL_BATCH // process.world_size // 2
    engine = small_engine(process, micro=micro, dropout=0.5, **changes)
    meter, flags = Meter(process.device), SharedFlags(engine)
    take = (
        build_step(engine, engine.config, process, meter)
        if graphs is None
        else GraphedStep(engine, process, meter, graphs)  # type: ignore[arg-type]
    )
    seen: dict[str, list[Any]] = {"flags": [], "sums": [], "norms": [], "layers": []}
    for step in range(NUM_STEPS):
        engine.optimizer.set_learning_rate(0.01 * (step + 1))
        engine.measure_norm = step in LOGGED
        flags.begin()
        take(micro_batches(process, step, engine.config.resolved_precision, bad))
        seen["flags"].append(flags.end(engine, stop_requested=step == 4).tolist())
        seen["sums"].append(meter.sums.tolist())
        if engine.measure_norm:
            seen["norms"].append(engine.gradient_norm())
            seen["layers"].append(engine.layer_norms())
    return seen | {"weights": weights_of(engine), "momentum": momentum_of(engine)}


def graphed_and_not(
    process: Process, bad: int, settings: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """What the steps leave behind without and with a graph, compared; in each of some settings."""
    torch.backends.cudnn.deterministic = True  # else the order of sums may differ
    return [_compare(process, bad, changes) for changes in settings]


def assert_equal(found: dict[str, Any]) -> None:
    """The graph has changed nothing, to the bit."""
    plain, graphed = found["seen"]
    assert graphed == plain, found["changes"]
    assert found["weights"], found["changes"]
    assert found["momentum"], found["changes"]


def _compare(process: Process, bad: int, changes: dict[str, Any]) -> dict[str, Any]:
    on_cpu = process.device.type == "cpu"
    recorded = RecordedGraphs()
    plain = steps(process, None, bad, changes)
    graphed = steps(process, recorded if on_cpu else Graphs(process.device), bad, changes)
    return {
        "changes": changes,
        "replayed": recorded.num_replayed,
        "captured": recorded.num_captured,
        "seen": [
            {key: repr(found[key]) for key in ("flags", "sums", "norms", "layers")}
            for found in (plain, graphed)
        ],
        "masked": [flags[1] for flags in plain["flags"]],
        "weights": equal(plain["weights"], graphed["weights"]),
        "momentum": equal(plain["momentum"], graphed["momentum"]),
        "finite": all(bool(torch.isfinite(w).all()) for w in plain["weights"].values()),
    }


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
