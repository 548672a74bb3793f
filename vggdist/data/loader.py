"""Batches of images on the rank's device: plan and manifest in, tensors out.

A loader makes batches in a thread of its own, a few ahead of the consumer. It knows its rank and
the world size as integers and talks to no other rank.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggdist.config import BatchSplit, DataConfig
from vggdist.data.color import subtracted_mean
from vggdist.data.manifest import Manifest
from vggdist.data.pipeline import ImageFormat, ImagePipeline, Work
from vggdist.data.plan import SamplePlan, Samples, evaluation_samples, evaluation_share


@dataclass(frozen=True, eq=False)
class Batch:
    """n finished images with what belongs to them."""

    images: Tensor
    """(n, 3, crop_size, crop_size), channels_last, RGB in grey levels less the mean, on the
    device."""
    labels: Tensor
    """(n,) int64, on the device."""
    dropout_keys: Tensor
    """(n,) int64, on the device; 0 in evaluations."""
    index: NDArray[np.int64]
    """(n,), numbers of the images in their manifest."""

    def __len__(self) -> int:
        return len(self.index)


class _Loader:
    """An iterator over batches that a thread makes ahead; close it, or use it in `with`."""

    def __init__(
        self,
        manifest: Manifest,
        samples: Iterator[Samples],
        batch_size: int,
        data: DataConfig,
        image_format: ImageFormat,
        num_threads: int,
    ) -> None:
        torch.get_num_threads()  # settles the calling thread's number; see data/finish.py
        batches = _batches(manifest, samples, batch_size, data, image_format, num_threads)
        self._queue: _Queue = queue.Queue(data.prefetch)
        self._error: BaseException | None = None
        stop = threading.Event()
        self._thread = threading.Thread(
            target=_produce,
            args=(batches, image_format.device, self._queue, stop),
            name="vggdist-loader",
            daemon=True,
        )
        # Also runs when the loader is forgotten or the interpreter ends: DALI's threads must not
        # outlive it.
        self._finalize = weakref.finalize(self, _shut_down, self._thread, self._queue, stop)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            DataError: an image cannot be read.
        """
        if self._error is not None:
            raise self._error
        if not self._finalize.alive:
            raise StopIteration
        item = self._queue.get()
        if isinstance(item, Batch):
            if item.images.is_cuda:
                for tensor in (item.images, item.labels, item.dropout_keys):
                    tensor.record_stream(torch.cuda.current_stream(tensor.device))
            return item
        self._error = item
        self.close()
        raise item

    def close(self) -> None:
        """Ends the thread and gives memory back; the loader is empty afterwards."""
        self._finalize()


class TrainingLoader(_Loader):
    """The micro batches of one rank, step by step, in order and without end.

    Micro batch k of a step on rank r is the global batch's images from (k x world size + r) x
    micro on, so the ranks together see the same images in the same order however many they are.

    Args:
        manifest: the training set.
        plan: what happens to each image; of this manifest and the split's global batch.
        data: crop size, mean, prefetch.
        split: how a global batch is divided.
        rank: of `split.world_size`.
        device: where the batches are wanted.
        dtype: of the images: float32, bfloat16 or float16.
        first_step: the step that comes first, counted from 0.
        last_step: the step before which to end; none: never.
        num_threads: threads that decode, and as many that finish.
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
        num_threads: int = 1,
    ) -> None:
        assert plan.num_images == manifest.num_images
        assert plan.global_batch == split.global_batch
        super().__init__(
            manifest,
            _training_samples(plan, split, rank, first_step, last_step),
            split.micro,
            data,
            ImageFormat(data.crop_size, _with_index(device), dtype),
            num_threads,
        )


class EvaluationLoader(_Loader):
    """Centre crops of the images that fall to one rank: each image of the set on one rank, once.

    Args:
        manifest: the set.
        data: crop size, mean, prefetch.
        scale: Q, the rescaled shorter side, pixels.
        batch_size: images of a batch; a rank's last one may have fewer.
        only: numbers of the images to share, in place of the whole set.
        rank: of `world_size`.
        world_size: ranks that share the set.
        device: where the batches are wanted.
        dtype: of the images.
        num_threads: threads that decode, and as many that finish.
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
        parts = (share[first : first + batch_size] for first in range(0, len(share), batch_size))
        super().__init__(
            manifest,
            (evaluation_samples(part, scale) for part in parts),
            batch_size,
            data,
            ImageFormat(data.crop_size, _with_index(device), dtype),
            num_threads,
        )


_Queue = queue.Queue[Batch | BaseException]


def _with_index(device: torch.device | str) -> torch.device:
    """`device` with a number if it is a GPU: the caller's current one is not the producer's."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _training_samples(
    plan: SamplePlan, split: BatchSplit, rank: int, first_step: int, last_step: int | None
) -> Iterator[Samples]:
    step = first_step
    while last_step is None or step < last_step:
        for k in range(split.accumulation_steps):
            first = (k * split.world_size + rank) * split.micro
            yield plan.batch(step, first, first + split.micro)
        step += 1


def _batches(
    manifest: Manifest,
    samples: Iterator[Samples],
    batch_size: int,
    data: DataConfig,
    image_format: ImageFormat,
    num_threads: int,
) -> Generator[Batch]:
    def work() -> Iterator[Work]:
        for some in samples:
            paths = [np.frombuffer(manifest.place(int(i)).path, np.uint8) for i in some.image]
            yield Work(paths, some, subtracted_mean(data.mean, some.color_draw))

    def on_device(numbers: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(numbers).to(image_format.device)

    with ImagePipeline(work(), batch_size, image_format, num_threads) as pipeline:
        for done, images in pipeline:
            image = done.samples.image
            keys = on_device(done.samples.dropout_key)
            batch = Batch(images, on_device(manifest.labels[image]), keys, image)
            if images.is_cuda:
                torch.cuda.current_stream().synchronize()  # the consumer reads on another stream
            yield batch


def _produce(
    batches: Generator[Batch], device: torch.device, finished: _Queue, stop: threading.Event
) -> None:
    """The producer thread: puts batches, and at last StopIteration or what went wrong."""
    end: BaseException = StopIteration()
    try:
        # Closing frees DALI in this thread, which built it.
        with _own_stream(device), contextlib.closing(batches):
            for batch in batches:
                finished.put(batch)
                if stop.is_set():
                    break
    except BaseException as error:  # whatever it is, the consumer must not wait for ever
        end = error
    if not stop.is_set():
        finished.put(end)


def _own_stream(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A CUDA stream for this thread: on the common one its copies would wait for the network."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return torch.cuda.stream(stream)


def _shut_down(thread: threading.Thread, finished: _Queue, stop: threading.Event) -> None:
    stop.set()
    while thread.is_alive():  # the producer may be waiting for a place in the queue
        try:
            finished.get(timeout=0.05)
        except queue.Empty:
            continue
    while not finished.empty():
        finished.get_nowait()
