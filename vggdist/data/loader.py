"""Batches of images on the rank's device: plan and manifest in, tensors out.

A loader makes batches in its own threads, a few ahead of the consumer. It knows its rank and the
world size only as integers and does not communicate with other ranks.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections.abc import Callable, Sequence, Set
from typing import Any, Generic, Self

import numpy as np
import torch

from vggdist.config import BatchSplit, DataConfig
from vggdist.data.batch import Batch
from vggdist.data.manifest import Manifest
from vggdist.data.plan import SamplePlan, Samples, evaluation_samples, evaluation_share
from vggdist.data.producer import BatchProducer, Made, Producer


class Loader(Generic[Made]):
    """An iterator over batches that threads make ahead; close it, or use it in `with`."""

    def __init__(self, producer: Producer[Any, Made], prefetch: int) -> None:
        threads = torch.get_num_threads()  # fixes the calling thread's number
        room = -(-prefetch // producer.num_lanes)
        self._producer = producer
        self._queues: list[_Queue] = [queue.Queue(room) for _ in range(producer.num_lanes)]
        self._taken = 0
        self._error: BaseException | None = None
        stop, ready = threading.Event(), threading.Barrier(producer.num_lanes + 1, timeout=60)
        lanes = [
            threading.Thread(
                target=_produce,
                args=(producer, lane, finished, ready, stop),
                name=f"vggdist-loader-{lane}",
                daemon=True,
            )
            for lane, finished in enumerate(self._queues)
        ]
        # Also runs when the loader is garbage collected or the interpreter exits: DALI's threads
        # must not outlive it.
        self._finalize = weakref.finalize(self, _shut_down, producer, lanes, self._queues, stop)
        for lane in lanes:
            lane.start()
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
        """The next batch, or what the producer makes of one.

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
            made: Made = item
            if self._producer.device.type == "cuda":
                stream = torch.cuda.current_stream(self._producer.device)
                for tensor in self._producer.tensors(made):
                    tensor.record_stream(stream)
            return made
        self._error = item
        self.close()
        raise item

    def close(self) -> None:
        """Ends the threads and frees memory; the loader is empty afterwards."""
        self._finalize()


class TrainingLoader(Loader[Batch]):
    """The micro batches of one rank, step by step, without end.

    Micro batch k of a step on rank r is the global batch's images from (k x world size + r) x
    micro on, so the ranks together see the same images in the same order, whatever their number.

    Args:
        manifest: the training set.
        plan: the sample plan, for this manifest and the split's global batch.
        data: crop size, mean, prefetch.
        split: how a global batch is divided.
        rank: of `split.world_size`.
        device: of the batches.
        dtype: of the images: float32, bfloat16 or float16.
        first_step: the step that comes first, counted from 0.
        last_step: the step before which to end; None: never.
        known_bad: returns the images to replace; called for every batch.
        max_bad: how many more this rank may find before it fails; None: all.
        num_threads: decoding threads.
    """

    def __init__(
        self,
        manifest: Manifest,
        plan: SamplePlan,
        data: DataConfig,
        split: BatchSplit,
        *,
        rank: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        first_step: int = 0,
        last_step: int | None = None,
        known_bad: Callable[[], Set[int]] = frozenset,
        max_bad: int | None = None,
        num_threads: int = 1,
    ) -> None:
        assert plan.num_images == manifest.num_images
        assert plan.global_batch == split.global_batch

        def samples(number: int, bad: Set[int]) -> Samples | None:
            steps, k = divmod(number, split.accumulation_steps)
            step = first_step + steps
            if last_step is not None and step >= last_step:
                return None
            first = (k * split.world_size + rank) * split.micro
            return plan.batch(step, first, first + split.micro, bad)

        producer = BatchProducer(manifest, samples, split.micro, data, device, dtype, num_threads)
        if data.policy == "substitute":
            producer.max_bad = manifest.num_images if max_bad is None else max_bad
        producer.remedy = "data.policy=substitute would show another in its place."
        producer.known_bad = known_bad
        super().__init__(producer, data.prefetch)


class EvaluationLoader(Loader[Batch]):
    """Centre crops of one rank's share of the images: each image of the set on one rank, once.

    Args:
        manifest: the set.
        data: crop size, mean, prefetch.
        scale: Q, the rescaled shorter side, pixels.
        batch_size: images per batch; a rank's last batch may have fewer.
        only: numbers of the images to share, instead of the whole set.
        rank: of `world_size`.
        world_size: ranks that share the set.
        device: of the batches.
        dtype: of the images.
        num_threads: decoding threads.
    """

    def __init__(
        self,
        manifest: Manifest,
        data: DataConfig,
        *,
        scale: int,
        batch_size: int,
        only: Sequence[int] | None = None,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        num_threads: int = 1,
    ) -> None:
        images = np.asarray(range(manifest.num_images) if only is None else only, dtype=np.int64)
        share = images[evaluation_share(len(images), rank, world_size)]
        self.num_images = len(share)
        self.num_batches = -(-len(share) // batch_size)
        # Of the rank with the most: all ranks may need the same number of collectives.
        most = len(evaluation_share(len(images), 0, world_size))
        self.num_rounds = -(-most // batch_size)

        def samples(number: int, _known_bad: Set[int]) -> Samples | None:
            part = share[number * batch_size : (number + 1) * batch_size]
            return evaluation_samples(part, scale) if len(part) else None

        producer = BatchProducer(manifest, samples, batch_size, data, device, dtype, num_threads)
        super().__init__(producer, data.prefetch)


_Queue = queue.Queue[Any]  # a batch, or a BaseException


def _produce(
    producer: Producer[Any, Any],
    lane: int,
    finished: _Queue,
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
        with _own_stream(producer.device), contextlib.closing(producer.batches(lane)) as batches:
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
    producer: Producer[Any, Any],
    lanes: Sequence[threading.Thread],
    queues: Sequence[_Queue],
    stop: threading.Event,
) -> None:
    stop.set()
    if threading.current_thread() in lanes:  # the garbage collector ran in this thread
        again = threading.Thread(
            target=_shut_down, args=(producer, lanes, queues, stop), daemon=True
        )
        again.start()
        return
    for lane, finished in zip(lanes, queues, strict=True):
        while lane.is_alive():  # it may be waiting for space in the queue
            with contextlib.suppress(queue.Empty):
                finished.get(timeout=0.05)
        while not finished.empty():
            finished.get_nowait()
    producer.close()
