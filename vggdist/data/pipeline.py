"""From files to finished images: the DALI graph, the same for CPU and GPU.

A file is read and the shape of its image found out; the window that the crop will show is
computed as in `data/geometry.py`, and only that window is decoded. The rest (resize to the crop
size, flip, subtract mean and colour shift) is done by the graph on a GPU, and by `data/finish.py`
on a CPU. Images are RGB whatever the file holds, and are never turned by their EXIF orientation:
the paper's data never was, and torchvision does not either.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import nvidia.dali as dali
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, types
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from vggdist.data.finish import WindowFinisher
from vggdist.data.geometry import POSITIONS
from vggdist.data.plan import Samples
from vggdist.data.unreadable import unreadable_error

Resize = Literal["dali", "torch"]

# The largest ImageNet image: preallocated, so that GPU memory does not creep up for epochs.
_LARGEST_WIDTH, _LARGEST_HEIGHT = 5980, 6430
# Share of JPEGs for the GPU's hardware decoder; 0.90 is 2 % faster but has a longer tail of slow
# batches (DALI issue 6366).
_HARDWARE_DECODER_LOAD = 0.65
_DALI_QUEUE = 2  # batches that DALI works on ahead of the caller


@dataclass(frozen=True, eq=False)
class Work:
    """A batch to be made: n files and what is done to each."""

    paths: list[NDArray[np.uint8]]
    """The files' paths as bytes."""
    samples: Samples
    mean: NDArray[np.float32]
    """(n, 3), what is subtracted from each image, grey levels; see `data/color.py`."""


@dataclass(frozen=True)
class ImageFormat:
    """What finished images are like, and how they are made."""

    crop_size: int
    """Side, pixels."""
    device: torch.device
    """Where they are made and left."""
    dtype: torch.dtype = torch.float32
    """float32, bfloat16 or float16."""
    resize: Resize | None = None
    """Who resizes and normalizes; none: DALI on a GPU, torch on a CPU."""

    @property
    def by_dali(self) -> bool:
        """Whether the DALI graph does all the work."""
        return (self.resize or ("torch" if self.device.type == "cpu" else "dali")) == "dali"


class ImagePipeline:
    """Iterates over (work, images) in the order of `work`; used by one thread.

    Args:
        work: what is to be made, read a few batches ahead.
        batch_size: images of the largest batch.
        image_format: what is made of them.
        num_threads: threads that decode, and as many that finish windows.

    Raises:
        DataError: a file cannot be read or decoded; it is named. Nothing can follow then.
    """

    def __init__(
        self, work: Iterator[Work], batch_size: int, image_format: ImageFormat, num_threads: int
    ) -> None:
        self._format = image_format
        self._ahead: deque[Work] = deque()
        self._pipe = _build(self._feed(work), batch_size, image_format, num_threads)
        self._finisher = (
            None
            if image_format.by_dali
            else WindowFinisher(image_format.crop_size, image_format.dtype, num_threads)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[tuple[Work, Tensor]]:
        return self

    def __next__(self) -> tuple[Work, Tensor]:
        try:
            (output,) = self._pipe.run()
        except RuntimeError as error:
            self._raise_for_file(error)
            raise
        work = self._ahead.popleft()
        if self._finisher is not None:
            windows = [from_dlpack(window) for window in output]
            return work, self._finisher.finish(windows, work.samples.flip, work.mean)
        images = from_dlpack(output.as_tensor()).permute(0, 3, 1, 2)
        if images.is_cuda:
            # A copy (30 us) is torch's own memory; DALI would reuse its buffer as soon as this
            # thread lets go of it, even while the network still reads it.
            images = torch.empty_like(images, dtype=self._format.dtype).copy_(images)
            torch.cuda.current_stream().synchronize()
        return work, images.to(self._format.dtype)

    def close(self) -> None:
        """Gives threads and memory back."""
        self._pipe = None
        if self._finisher is not None:
            self._finisher.close()

    def _feed(self, work: Iterator[Work]) -> Iterator[tuple[Any, ...]]:
        for batch in work:
            self._ahead.append(batch)
            yield self._inputs(batch)

    def _inputs(self, work: Work) -> tuple[Any, ...]:
        """What the graph takes from outside."""
        samples = work.samples
        inputs: tuple[Any, ...] = (work.paths, samples.scale, samples.position)
        if self._format.by_dali:
            inputs += (samples.flip.astype(np.int32), work.mean)
        return inputs

    def _raise_for_file(self, error: RuntimeError) -> None:
        """Raises a DataError for the first file that fails alone, if there is one.

        DALI does not say which file of which batch failed, and its pipeline cannot be used again.
        """
        for work in self._ahead:
            for i, path in enumerate(work.paths):
                rows = {name: values[i : i + 1] for name, values in vars(work.samples).items()}
                alone = Work([path], Samples(**rows), work.mean[i : i + 1])
                try:
                    _build(iter([self._inputs(alone)]), 1, self._format, 1).run()
                except RuntimeError:
                    raise unreadable_error(path.tobytes()) from error


def _build(
    inputs: Iterator[tuple[Any, ...]], batch_size: int, image_format: ImageFormat, num_threads: int
) -> Any:
    gpu = image_format.device.type == "cuda"
    graph = _whole_graph if image_format.by_dali else _window_graph
    pipe = dali.pipeline_def(graph)(
        inputs,
        image_format.crop_size,
        "gpu" if gpu else "cpu",
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=image_format.device.index if gpu else None,
        prefetch_queue_depth=_DALI_QUEUE,
    )
    pipe.build()
    return pipe


def _window_graph(inputs: Iterator[tuple[Any, ...]], crop_size: int, device: str) -> Any:
    """Only the decoded windows, (side, side, 3) uint8 each."""
    paths, scale, position = _external(inputs, [types.UINT8, types.INT32, types.INT32], [1, 0, 1])
    return _decoded_windows(paths, scale, position, crop_size, device)


def _whole_graph(inputs: Iterator[tuple[Any, ...]], crop_size: int, device: str) -> Any:
    """Finished images, (crop_size, crop_size, 3) float each."""
    paths, scale, position, flip, mean = _external(
        inputs, [types.UINT8, types.INT32, types.INT32, types.INT32, types.FLOAT], [1, 0, 1, 0, 1]
    )
    windows = _decoded_windows(paths, scale, position, crop_size, device)
    resized = fn.resize(
        windows, size=[crop_size, crop_size], interp_type=types.INTERP_LINEAR, antialias=True
    )
    return fn.crop_mirror_normalize(
        resized, dtype=types.FLOAT, output_layout="HWC", mirror=flip, mean=mean
    )


def _external(inputs: Iterator[tuple[Any, ...]], dtypes: list[Any], ndims: list[int]) -> Any:
    return fn.external_source(inputs, num_outputs=len(dtypes), batch=True, dtype=dtypes, ndim=ndims)


def _decoded_windows(paths: Any, scale: Any, position: Any, crop_size: int, device: str) -> Any:
    # Plain reads: mapping the files is three times slower even in the page cache.
    encoded = fn.io.file.read(paths, dont_use_mmap=True)
    size = fn.peek_image_shape(encoded, adjust_orientation=False)[:2]
    # The same integer operations as geometry.source_windows: one pixel outside the image ends
    # the pipeline. INT64 throughout, because the product with a position exceeds 32 bits.
    scale = fn.cast(scale, dtype=types.INT64)
    shorter = dali.math.min(size[0], size[1])
    side = dali.math.max(1, (2 * crop_size * shorter + scale) // (2 * scale))
    start = (size - side) * fn.cast(position, dtype=types.INT64) // POSITIONS
    gpu_only: dict[str, Any] = (
        {
            "hw_decoder_load": _HARDWARE_DECODER_LOAD,
            "preallocate_width_hint": _LARGEST_WIDTH,
            "preallocate_height_hint": _LARGEST_HEIGHT,
            "jpeg_fancy_upsampling": True,  # as libjpeg on the CPU, so that both devices agree
        }
        if device == "gpu"
        else {}
    )
    return fn.decoders.image_slice(
        encoded,
        device="mixed" if device == "gpu" else "cpu",
        start=fn.cast(start, dtype=types.INT32),
        shape=fn.cast(fn.stack(side, side), dtype=types.INT32),
        axes=[0, 1],
        output_type=types.RGB,
        adjust_orientation=False,
        **gpu_only,
    )
