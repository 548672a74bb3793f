"""Batches that threads make ahead of their consumer."""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Generic, Self

import torch
from torch import Tensor

from vggdist.data.decode import Made
from vggdist.data.lanes import Lanes

_Queue = queue.Queue[Any]  # a batch, or a BaseException


class Prefetcher(Generic[Made]):
    """An iterator over batches that threads make ahead; close it, or use it in `with`.

    Args:
        lanes: make the batches; may not hold this object, which would then never be collected.
        prefetch: how many finished batches may wait, over all lanes.
    """

    def __init__(self, lanes: Lanes[Made], prefetch: int) -> None:
        threads = torch.get_num_threads()  # fixes the calling thread's number
        room = -(-prefetch // lanes.num_lanes)
        self._device = lanes.device
        self._queues: list[_Queue] = [queue.Queue(room) for _ in range(lanes.num_lanes)]
        self._taken = 0
        self._error: BaseException | None = None
        stop, ready = threading.Event(), threading.Barrier(lanes.num_lanes + 1, timeout=60)
        workers = [
            threading.Thread(
                target=_fill,
                args=(finished, lanes, lane, ready, stop),
                name=f"vggdist-loader-{lane}",
                daemon=True,
            )
            for lane, finished in enumerate(self._queues)
        ]
        # Also runs when this object is garbage collected or the interpreter exits: DALI's threads
        # must not outlive it.
        self._finalize = weakref.finalize(self, _shut_down, lanes, workers, self._queues, stop)
        for worker in workers:
            worker.start()
        # The threads have limited themselves, and thereby all threads that have not computed yet.
        ready.wait()
        torch.set_num_threads(threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Made:
        """The next batch.

        Raises:
            DataError: an image is bad, and must not be replaced.
        """
        if self._error is not None:
            raise self._error
        if not self._finalize.alive:
            raise StopIteration
        item = self._queues[self._taken % len(self._queues)].get()
        self._taken += 1
        if not isinstance(item, BaseException):
            batch: Made = item
            if self._device.type == "cuda":
                stream = torch.cuda.current_stream(self._device)
                for tensor in _tensors(batch):  # not to be reused while they are read there
                    tensor.record_stream(stream)
            return batch
        self._error = item
        self.close()
        raise item

    def close(self) -> None:
        """Ends the threads and frees memory; nothing is left to iterate over."""
        self._finalize()


def _tensors(batch: Any) -> Iterator[Tensor]:
    """Those of a dataclass, or of several in a list."""
    for part in batch if isinstance(batch, list) else [batch]:
        yield from (value for value in vars(part).values() if isinstance(value, Tensor))


def _fill(
    finished: _Queue,
    lanes: Lanes[Any],
    lane: int,
    ready: threading.Barrier,
    stop: threading.Event,
) -> None:
    """A lane's thread: queues batches, and finally StopIteration or the error."""
    torch.get_num_threads()  # a thread takes the common number at its first query, not later
    torch.set_num_threads(1)  # the cores are busy decoding
    ready.wait()
    end: BaseException = StopIteration()
    try:
        # Closing frees DALI in this thread, which built it.
        with _own_stream(lanes.device), contextlib.closing(lanes.batches(lane)) as batches:
            for batch in batches:
                finished.put(batch)
                if stop.is_set():
                    break
    except BaseException as error:  # whatever it is, the consumer must not wait forever
        end = error
    if not stop.is_set():
        finished.put(end)


def _own_stream(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A CUDA stream for this thread: on the default stream its copies would wait for the network.

    A thread starts on GPU 0, and returns there when a stream's context ends; otherwise every rank
    would open a context on it, which takes half a gigabyte.
    """
    if device.type != "cuda":
        return contextlib.nullcontext()
    torch.cuda.set_device(device)
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return torch.cuda.stream(stream)


def _shut_down(
    lanes: Lanes[Any],
    workers: Sequence[threading.Thread],
    queues: Sequence[_Queue],
    stop: threading.Event,
) -> None:
    stop.set()
    if threading.current_thread() in workers:  # the garbage collector ran in this thread
        again = threading.Thread(
            target=_shut_down, args=(lanes, workers, queues, stop), daemon=True
        )
        again.start()
        return
    for worker, finished in zip(workers, queues, strict=True):
        while worker.is_alive():  # it may be waiting for space in the queue
            with contextlib.suppress(queue.Empty):
                finished.get(timeout=0.05)
        while not finished.empty():
            finished.get_nowait()
    lanes.close()
