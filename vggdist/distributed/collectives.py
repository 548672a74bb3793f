"""All-reduce and all-gather that run during the computation.

On GPUs they are NCCL's own: it knows the links of a node and those between nodes, and picks rings
or trees that fit. gloo has one ring in the order of the ranks. So on CPUs, if all nodes have the
same number of ranks, more than one, little is sent between nodes: a sum is first computed within
each node, each of its ranks exchanges one part of it with the other nodes, and the parts are
gathered within the node. All-gather works the other way round: each rank's tensor is sent once to
every other node, then to the ranks within.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, distributed

from vggdist.distributed.process import WORK_TIMEOUT, gather
from vggdist.distributed.traffic import PIECE_ELEMENTS

Wait = Callable[[], object]
"""Returns when the result can be used; on a GPU, by work queued after the call."""


class Collectives:
    """All-reduce and all-gather of all ranks, started at once and waited for later.

    Every rank must start the same collectives in the same order.

    Attributes:
        world_size: ranks.
        waiting: the time spent waiting for them.
    """

    def __init__(self, device: torch.device) -> None:
        """On a CPU collective: the ranks exchange their host names."""
        self.world_size = distributed.get_world_size()
        self.waiting = WaitClock(device)
        self._between: _BetweenNodes | None = None
        if device.type == "cpu" and is_regular(nodes := nodes_of(gather(os.uname().nodename))):
            self._between = _BetweenNodes(nodes)

    def all_reduce(self, flat: Tensor) -> Wait:
        """Sums a contiguous tensor (n,) over all ranks, in place."""
        if self._between is not None:
            return self.waiting.timed(self._between.all_reduce(flat))
        work = distributed.all_reduce(flat, async_op=True)
        assert work is not None
        return self.waiting.timed(work.wait)

    def all_gather(self, own: Tensor) -> tuple[Tensor, Wait]:
        """The rows (n, d) of all ranks, n the same everywhere -> (world_size n, d).

        Their order is the same on all ranks, but not always rank order.
        """
        gathered = own.new_empty((self.world_size * own.shape[0], *own.shape[1:]))
        # A layer's inputs require a gradient, which autograd would track in the other thread.
        own = own.detach().contiguous()
        if self._between is not None:
            return gathered, self.waiting.timed(self._between.all_gather(gathered, own))
        work = distributed.all_gather_single(gathered, own, async_op=True)
        assert work is not None
        return gathered, self.waiting.timed(work.wait)


class WaitClock:
    """Sums the time of waits: the host's on a CPU, the stream's on a GPU, where no host waits.

    Those that a CUDA graph repeats are not known.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._is_known = True
        self._seconds = 0.0
        self._spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def timed(self, wait: Wait) -> Wait:
        """The same wait, whose time counts."""
        return partial(self._time_on_gpu if self._on_gpu else self._time, wait)

    def take(self) -> float | None:
        """Seconds since the last call, if known; on a GPU, whose work must be done."""
        spans, self._spans = self._spans, []
        seconds, self._seconds = self._seconds, 0.0
        milliseconds: float = sum(start.elapsed_time(end) for start, end in spans)
        return seconds + milliseconds / 1000 if self._is_known else None

    def _time(self, wait: Wait) -> None:
        started_at = time.monotonic()
        wait()
        self._seconds += time.monotonic() - started_at

    def _time_on_gpu(self, wait: Wait) -> None:
        if torch.cuda.is_current_stream_capturing():
            self._is_known = False
            wait()
            return
        stream = torch.cuda.current_stream()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        stream.record_event(start)
        wait()
        stream.record_event(end)
        self._spans.append((start, end))


def nodes_of(hosts: Sequence[str]) -> list[list[int]]:
    """Host name of each rank -> the ranks of each node, in the order of their first ranks."""
    return [
        [rank for rank, name in enumerate(hosts) if name == host]
        for host in dict(zip(hosts, hosts, strict=True))
    ]


def is_regular(nodes: Sequence[Sequence[int]]) -> bool:
    """Whether there are several nodes, all with the same number of ranks, more than one."""
    sizes = {len(ranks) for ranks in nodes}
    return len(nodes) > 1 and len(sizes) == 1 and sizes != {1}


class _BetweenNodes:
    """gloo's collectives in a world of n nodes with r ranks each, in consecutive steps."""

    def __init__(self, nodes: Sequence[Sequence[int]]) -> None:
        rank = distributed.get_rank()
        (inside,) = (ranks for ranks in nodes if rank in ranks)
        place = inside.index(rank)
        self._inside = _group(inside)
        self._across = _group([ranks[place] for ranks in nodes])
        self._ranks_per_node, self._num_nodes = len(inside), len(nodes)
        self._thread = _Thread()

    def all_reduce(self, flat: Tensor) -> Wait:
        def work() -> None:
            for piece in torch.split(flat, PIECE_ELEMENTS):
                self._sum(piece)

        return self._thread.start(work)

    def _sum(self, flat: Tensor) -> None:
        rest = -flat.numel() % self._ranks_per_node
        padded = F.pad(flat, (0, rest)) if rest else flat
        parts = torch.empty_like(padded)
        distributed.all_to_all_single(parts, padded, group=self._inside)
        # The same part, from all ranks of the node; 16-bit numbers are added in fp32.
        parts = parts.view(self._ranks_per_node, -1)
        own = parts.sum(0, dtype=torch.float32).to(flat.dtype)
        distributed.all_reduce(own, group=self._across)
        distributed.all_gather_single(padded, own, group=self._inside)
        if rest:
            flat.copy_(padded[: flat.numel()])

    def all_gather(self, gathered: Tensor, own: Tensor) -> Wait:
        def work() -> None:
            of_place = own.new_empty((self._num_nodes * own.shape[0], *own.shape[1:]))
            distributed.all_gather_single(of_place, own, group=self._across)
            distributed.all_gather_single(gathered, of_place, group=self._inside)

        return self._thread.start(work)


def _group(ranks: Sequence[int]) -> distributed.ProcessGroup:
    group = distributed.new_group(list(ranks), timeout=WORK_TIMEOUT, use_local_synchronization=True)
    assert isinstance(group, distributed.ProcessGroup)
    return group


class _Thread:
    """Runs collectives one after another, during the computation."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Callable[[], None], Future[None]]] = (
            queue.SimpleQueue()
        )
        # A daemon: a rank that fails must not wait for data that others no longer send.
        threading.Thread(target=self._work, daemon=True).start()

    def start(self, work: Callable[[], None]) -> Wait:
        future: Future[None] = Future()
        self._waiting.put((work, future))
        return future.result

    def _work(self) -> None:
        while True:
            work, future = self._waiting.get()
            try:
                work()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(None)
            del work, future  # they hold tensors
