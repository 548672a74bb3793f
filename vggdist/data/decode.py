"""Encoded images -> crops or whole rescaled images: one DALI graph for CPU and GPU.

Only the visible window of each image is decoded. The rest (resize, flip) is done by the graph for
crops on a GPU, otherwise by `data/resize.py`. The output is 8-bit RGB for every file format. EXIF
orientation is ignored: the paper's data did not use it, nor does torchvision.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, Self, TypeVar

import numpy as np
import nvidia.dali as dali
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, types
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from vggdist.data.geometry import source_windows
from vggdist.data.plan import Samples
from vggdist.data.read import EncodedImage
from vggdist.data.resize import SameShape, WholeFinisher, WindowFinisher

Resize = Literal["dali", "torch"]
Finished = TypeVar("Finished")
"""The result for a batch of images."""

# The largest ImageNet image: preallocated, so that GPU memory does not grow for epochs (DALI issues
# 278 and 5087).
_LARGEST_WIDTH, _LARGEST_HEIGHT = 5980, 6430
# nvJPEG preallocates for this many images of that size, and does not report the memory: 42 of a
# micro batch of 64 would be 4.8 GB, 166 of 256 19 GB. For larger images it allocates more later.
_MOST_PREALLOCATED_BYTES = 1 << 30
_HARDWARE_DECODERS = 8  # of an H100; nvImageCodec rounds the number of images up to a multiple
_DALI_QUEUE = 2  # batches that DALI works on ahead of the caller
_CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Work:
    """A batch to make: n images and what is done to each."""

    images: list[EncodedImage]
    samples: Samples


class ImageFormat(ABC, Generic[Finished]):
    """What is made of images, and on which device."""

    device: torch.device
    """The device of the results."""
    hardware_decoder_share: float
    """Fraction of the JPEGs for a GPU's hardware decoder, 0 to 1."""

    @abstractmethod
    def graph(self) -> Any:
        """The function that defines the DALI graph."""

    @abstractmethod
    def inputs(self, work: Work) -> tuple[Any, ...]:
        """The graph's external inputs."""

    @abstractmethod
    def finisher(self) -> Callable[[Any, Work], Finished]:
        """Processes the graph's output, in the thread that requests it."""


@dataclass(frozen=True)
class CropFormat(ImageFormat[Tensor]):
    """Crops according to `Work.samples`: (n, 3, crop_size, crop_size) uint8, channels_last."""

    crop_size: int
    """Side, pixels."""
    device: torch.device
    resize: Resize | None = None
    """The library that resizes and flips; None: DALI on a GPU, torch on a CPU."""
    hardware_decoder_share: float = 0.65

    @property
    def by_dali(self) -> bool:
        """Whether the DALI graph does all the work."""
        return (self.resize or ("torch" if self.device.type == "cpu" else "dali")) == "dali"

    def graph(self) -> Any:
        return partial(_crop_graph, crop_size=self.crop_size) if self.by_dali else _window_graph

    def inputs(self, work: Work) -> tuple[Any, ...]:
        samples = work.samples
        sizes = [(image.height, image.width) for image in work.images]
        side, start = source_windows(sizes, samples.scale, samples.position, self.crop_size)
        # Computed here: every operator of a graph costs time per run, however little it does.
        inputs = _inputs(work, start, np.repeat(side[:, None], 2, axis=1))
        return (*inputs, samples.flip.astype(np.int32)) if self.by_dali else inputs

    def finisher(self) -> Callable[[Any, Work], Tensor]:
        if self.by_dali:
            # Copied to torch's own memory: DALI would reuse its buffer as soon as this thread
            # releases it, even while the network still reads it.
            return lambda output, _: from_dlpack(output.as_tensor()).clone().permute(0, 3, 1, 2)
        finisher = WindowFinisher(self.crop_size)
        return lambda output, work: finisher.finish(output, work.samples.flip)


@dataclass(frozen=True)
class WholeFormat(ImageFormat[list[SameShape]]):
    """Whole images at several scales; uses only the image numbers of `Work.samples`."""

    scales: tuple[int, ...]
    """Values of Q, the rescaled shorter side, pixels."""
    device: torch.device
    hardware_decoder_share: float = 0.65

    def graph(self) -> Any:
        return _window_graph

    def inputs(self, work: Work) -> tuple[Any, ...]:
        sizes = np.array([(image.height, image.width) for image in work.images])
        return _inputs(work, np.zeros_like(sizes), sizes)

    def finisher(self) -> Callable[[Any, Work], list[SameShape]]:
        finisher = WholeFinisher(self.scales, self.device)
        return lambda output, _: finisher.finish(output)


class UndecodableError(Exception):
    """DALI has failed, and its pipeline is dead.

    Attributes:
        bad: the images that it cannot decode, number -> encoded bytes; empty if it decodes each
            alone.
    """

    def __init__(self, bad: dict[int, NDArray[np.uint8]]) -> None:
        super().__init__(f"DALI failed; of the images under way {len(bad)} are not decoded alone")
        self.bad = bad


class ImagePipeline(Generic[Finished]):
    """Iterates over (work, its result) in the order of `work`; used by one thread.

    Args:
        work: batches to make, read a few ahead.
        batch_size: images of the largest batch.
        image_format: what is made of them.
        num_threads: decoding threads.

    Raises:
        UndecodableError: an image of the started batches cannot be decoded. The iterator is then
            unusable.
    """

    def __init__(
        self,
        work: Iterator[Work],
        batch_size: int,
        image_format: ImageFormat[Finished],
        num_threads: int,
    ) -> None:
        self._format = image_format
        self._ahead: deque[tuple[Work, tuple[Any, ...]]] = deque()  # started, with DALI's inputs
        self._feed_failed = False  # then it is not DALI's fault
        self._pipe = _build(
            self._feed(work), batch_size, image_format, num_threads, image_format.device
        )
        self._finish = image_format.finisher()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[tuple[Work, Finished]]:
        return self

    def __next__(self) -> tuple[Work, Finished]:
        failure = None
        try:
            (output,) = self._pipe.run()
        except RuntimeError as error:
            if self._feed_failed:
                raise
            # The frames of its traceback would keep the dead pipeline, and so the GPU's memory.
            failure = error.with_traceback(None)
        if failure is not None:
            self.close()
            raise UndecodableError(self._undecodable()) from failure
        work, _ = self._ahead.popleft()
        finished = self._finish(output, work)
        if self._format.device.type == "cuda":
            torch.cuda.current_stream().synchronize()  # before DALI uses its buffers again
        return work, finished

    def close(self) -> None:
        """Frees threads and memory."""
        self._pipe = None

    def _feed(self, work: Iterator[Work]) -> Iterator[tuple[Any, ...]]:
        try:
            for batch in work:
                inputs = self._format.inputs(batch)
                self._ahead.append((batch, inputs))
                yield inputs
        except Exception:
            self._feed_failed = True
            raise

    def _undecodable(self) -> dict[int, NDArray[np.uint8]]:
        """The images that fail alone: DALI reports neither the batch nor the image that failed."""
        pending = [
            (int(work.samples.image[i]), _only(work, i))
            for work, _ in self._ahead
            for i in range(len(work.images))
        ]
        # Apart from bugs, a GPU decodes what a CPU does; it is tried only if the CPU finds nothing.
        for device in dict.fromkeys((_CPU, self._format.device)):
            if bad := self._fail_alone(pending, device):
                return bad
        return {}

    def _fail_alone(
        self, pending: list[tuple[int, Work]], device: torch.device
    ) -> dict[int, NDArray[np.uint8]]:
        """The images that a device does not decode."""
        bad = {}
        while pending:
            # Reuse a graph until an image fails: on a GPU each costs memory and time.
            alone = [self._format.inputs(work) for _, work in pending]
            pipe = _build(iter(alone), 1, self._format, 1, device, ahead=False)
            done = 0
            try:
                while done < len(pending):
                    pipe.run()
                    done += 1
            except RuntimeError:
                number, work = pending[done]
                bad[number] = work.images[0].encoded
                done += 1
            pending = pending[done:]
            del pipe  # before the next one allocates memory
        return bad


def _only(work: Work, i: int) -> Work:
    """A batch of one image."""
    rows = {name: values[i : i + 1] for name, values in vars(work.samples).items()}
    return Work([work.images[i]], Samples(**rows))


def _inputs(work: Work, start: NDArray[np.int64], shape: NDArray[np.int64]) -> tuple[Any, Any, Any]:
    """Encoded images, and the starts and shapes of their windows, (n, 2) each."""
    encoded = [image.encoded for image in work.images]
    return encoded, start.astype(np.int32), shape.astype(np.int32)


def _build(
    inputs: Iterator[tuple[Any, ...]],
    batch_size: int,
    image_format: ImageFormat[Any],
    num_threads: int,
    device: torch.device,
    ahead: bool = True,
) -> Any:
    """A pipeline; if not `ahead`, it starts each batch only on request."""
    gpu = device.type == "cuda"
    pipe = dali.pipeline_def(image_format.graph())(
        inputs,
        gpu_decoding(image_format.hardware_decoder_share, batch_size) if gpu else None,
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=device.index if gpu else None,
        prefetch_queue_depth=_DALI_QUEUE if ahead else 1,
        exec_async=ahead,
        exec_pipelined=ahead,
    )
    pipe.build()
    return pipe


def gpu_decoding(hardware_share: float, batch_size: int) -> dict[str, Any]:
    """Additional settings of a decoder on a GPU.

    Args:
        hardware_share: fraction of the JPEGs for the hardware decoder, 0 to 1.
        batch_size: images of the largest batch.
    """
    num_images = hardware_share * batch_size + _HARDWARE_DECODERS
    largest_bytes = 3 * _LARGEST_WIDTH * _LARGEST_HEIGHT
    shrink = min(1.0, math.sqrt(_MOST_PREALLOCATED_BYTES / (num_images * largest_bytes)))
    return {
        # 0.65 is DALI's default: 0.90 is 2 % faster, but with a longer tail of slow batches (DALI
        # issue 6366).
        "hw_decoder_load": hardware_share,
        "preallocate_width_hint": int(shrink * _LARGEST_WIDTH),
        "preallocate_height_hint": int(shrink * _LARGEST_HEIGHT),
        "jpeg_fancy_upsampling": True,  # like libjpeg on the CPU, so that both devices agree
    }


def _window_graph(inputs: Iterator[tuple[Any, ...]], gpu: dict[str, Any] | None) -> Any:
    """Only the decoded windows, (height, width, 3) uint8 each."""
    encoded, start, shape = _external(inputs, [types.UINT8, types.INT32, types.INT32], 1, 1, 1)
    return _decoded_windows(encoded, start, shape, gpu)


def _crop_graph(
    inputs: Iterator[tuple[Any, ...]], gpu: dict[str, Any] | None, crop_size: int
) -> Any:
    """Finished crops, (crop_size, crop_size, 3) uint8 each."""
    encoded, start, shape, flip = _external(
        inputs, [types.UINT8, types.INT32, types.INT32, types.INT32], 1, 1, 1, 0
    )
    windows = _decoded_windows(encoded, start, shape, gpu)
    resized = fn.resize(
        windows, size=[crop_size, crop_size], interp_type=types.INTERP_LINEAR, antialias=True
    )
    return fn.flip(resized, horizontal=flip)


def _external(inputs: Iterator[tuple[Any, ...]], dtypes: list[Any], *ndims: int) -> Any:
    # Not copied: ImagePipeline keeps the inputs until their batch is done.
    return fn.external_source(
        inputs, num_outputs=len(dtypes), batch=True, dtype=dtypes, ndim=list(ndims), no_copy=True
    )


def _decoded_windows(encoded: Any, start: Any, shape: Any, gpu: dict[str, Any] | None) -> Any:
    """One pixel outside the image would kill the pipeline; `source_windows` stays inside."""
    return fn.decoders.image_slice(
        encoded,
        device="cpu" if gpu is None else "mixed",
        start=start,
        shape=shape,
        axes=[0, 1],
        output_type=types.RGB,
        adjust_orientation=False,
        **(gpu or {}),
    )
