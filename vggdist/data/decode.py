"""Encoded images -> decoded pixels: one DALI graph for CPU and GPU.

Only the visible window of each image is decoded. The rest (resize, flip) is done by the graph for
crops on a GPU, otherwise by `data/resize.py`. The output is 8-bit RGB for every file format. DALI
turns images by their EXIF orientation if asked to, and then takes windows of the turned image.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import nvidia.dali as dali
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, types

from vggdist.data.geometry import source_windows
from vggdist.data.plan import Samples
from vggdist.data.read import EncodedImage

Made = TypeVar("Made")
"""What a loader makes of a batch."""

# The largest ImageNet image: preallocated, so that GPU memory does not grow for epochs (DALI issues
# 278 and 5087).
_LARGEST_WIDTH, _LARGEST_HEIGHT = 5980, 6430
# nvJPEG preallocates for this many images of that size, and does not report the memory: 42 of a
# micro batch of 64 would be 4.8 GB, 166 of 256 19 GB. For larger images it allocates more later.
_MOST_PREALLOCATED_BYTES = 1 << 30
_HARDWARE_DECODERS = 8  # of an H100; nvImageCodec rounds the number of images up to a multiple
_DALI_QUEUE = 2  # batches that DALI works on ahead of the caller
_CPU = torch.device("cpu")


class EncodedBatch(NamedTuple):
    """n encoded images, and what is done to each."""

    samples: Samples
    images: list[EncodedImage]


@dataclass(frozen=True)
class Graph:
    """What DALI makes of a batch, and where: windows or whole images (height, width, 3) uint8."""

    batch_size: int
    """Images of the largest batch."""
    device: torch.device
    crop_size: int | None = None
    """Side of the crops that are made of the windows, pixels; None: whole images are decoded."""
    resizes: bool = False
    """Whether the graph also resizes and flips the windows."""
    upright: bool = False
    """Whether images are turned by their EXIF orientation; sizes are then of the turned ones."""
    hardware_decoder_share: float = 0.65
    """Fraction of the JPEGs for a GPU's hardware decoder, 0 to 1."""

    def inputs(self, batch: EncodedBatch) -> tuple[Any, ...]:
        """The encoded images, starts and shapes of their windows, (n, 2) each, and flips.

        Computed here: every operator of a graph costs time per run, however little it does.
        """
        samples, images = batch
        shape = np.array([(image.height, image.width) for image in images])
        start = np.zeros_like(shape)
        if self.crop_size is not None:
            side, start = source_windows(shape, samples.scale, samples.position, self.crop_size)
            shape = np.repeat(side[:, None], 2, axis=1)
        encoded = [image.encoded for image in images]
        inputs = encoded, start.astype(np.int32), shape.astype(np.int32)
        return (*inputs, samples.flip.astype(np.int32)) if self.resizes else inputs

    def build(self, inputs: Iterator[tuple[Any, ...]], num_threads: int, ahead: bool = True) -> Any:
        """A pipeline; if not `ahead`, it starts each batch only on request."""
        gpu = self.device.type == "cuda"
        pipe = dali.pipeline_def(_graph)(
            inputs,
            self.crop_size if self.resizes else None,
            self.upright,
            gpu_decoding(self.hardware_decoder_share, self.batch_size) if gpu else None,
            batch_size=self.batch_size,
            num_threads=num_threads,
            device_id=self.device.index if gpu else None,
            prefetch_queue_depth=_DALI_QUEUE if ahead else 1,
            exec_async=ahead,
            exec_pipelined=ahead,
        )
        pipe.build()
        return pipe


class UndecodableError(Exception):
    """DALI has failed, and its pipeline is dead.

    Attributes:
        bad: the images that it cannot decode, number -> encoded bytes; empty if it decodes each
            alone.
    """

    def __init__(self, bad: dict[int, NDArray[np.uint8]]) -> None:
        super().__init__(f"DALI failed; of the images under way {len(bad)} are not decoded alone")
        self.bad = bad


def decode(
    batches: Iterator[EncodedBatch],
    graph: Graph,
    num_threads: int,
    make: Callable[[Samples, Any], Made],
) -> Generator[Made]:
    """Decodes batches, a few ahead of the caller, and makes something of each, in its thread.

    Args:
        batches: read a few ahead.
        graph: what DALI makes of them.
        num_threads: decoding threads.
        make: called with the samples and DALI's output, whose memory is DALI's again afterwards.

    Raises:
        UndecodableError: an image of the started batches cannot be decoded.
    """
    started: deque[tuple[EncodedBatch, tuple[Any, ...]]] = deque()  # DALI reads these inputs
    feed_failed = False  # then it is not DALI's fault

    def feed() -> Iterator[tuple[Any, ...]]:
        nonlocal feed_failed
        try:
            for batch in batches:
                started.append((batch, graph.inputs(batch)))
                yield started[-1][1]
        except Exception:
            feed_failed = True
            raise

    pipe = graph.build(feed(), num_threads)
    while True:
        try:
            (output,) = pipe.run()
        except StopIteration:
            return
        except RuntimeError as error:
            if feed_failed:
                raise
            # The frames of its traceback would keep the dead pipeline, and so the GPU's memory.
            failure = error.with_traceback(None)
            break
        made = make(started.popleft()[0].samples, output)
        del output
        yield made
    del pipe
    raise UndecodableError(_undecodable([batch for batch, _ in started], graph)) from failure


def _undecodable(batches: list[EncodedBatch], graph: Graph) -> dict[int, NDArray[np.uint8]]:
    """The images that fail alone: DALI reports neither the batch nor the image that failed."""
    singles = [
        EncodedBatch(
            Samples(**{name: values[i : i + 1] for name, values in vars(samples).items()}),
            [image],
        )
        for samples, images in batches
        for i, image in enumerate(images)
    ]
    # Apart from bugs, a GPU decodes what a CPU does; it is tried only if the CPU finds nothing.
    for device in dict.fromkeys((_CPU, graph.device)):
        if bad := _fail_alone(singles, replace(graph, batch_size=1, device=device)):
            return bad
    return {}


def _fail_alone(singles: list[EncodedBatch], graph: Graph) -> dict[int, NDArray[np.uint8]]:
    """The images, a batch each, that a graph does not decode."""
    bad = {}
    while singles:
        # Reuse a pipeline until an image fails: on a GPU each costs memory and time.
        pipe = graph.build(iter([graph.inputs(single) for single in singles]), 1, ahead=False)
        done = 0
        try:
            while done < len(singles):
                pipe.run()
                done += 1
        except RuntimeError:
            samples, (image,) = singles[done]
            bad[int(samples.image[0])] = image.encoded
            done += 1
        singles = singles[done:]
        del pipe  # before the next one allocates memory
    return bad


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


def _graph(
    inputs: Iterator[tuple[Any, ...]],
    crop_size: int | None,
    upright: bool,
    gpu: dict[str, Any] | None,
) -> Any:
    """The decoded windows, or crops (crop_size, crop_size, 3), uint8."""
    dtypes, ndims = [types.UINT8, types.INT32, types.INT32], [1, 1, 1]
    if crop_size is not None:
        dtypes, ndims = [*dtypes, types.INT32], [*ndims, 0]
    # Not copied: `decode` keeps the inputs until their batch is done.
    encoded, start, shape, *flip = fn.external_source(
        inputs, num_outputs=len(dtypes), batch=True, dtype=dtypes, ndim=ndims, no_copy=True
    )
    # A pixel outside the image would kill the pipeline; `source_windows` stays inside.
    windows = fn.decoders.image_slice(
        encoded,
        device="cpu" if gpu is None else "mixed",
        start=start,
        shape=shape,
        axes=[0, 1],
        output_type=types.RGB,
        adjust_orientation=upright,
        **(gpu or {}),
    )
    if crop_size is None:
        return windows
    resized = fn.resize(
        windows, size=[crop_size, crop_size], interp_type=types.INTERP_LINEAR, antialias=True
    )
    return fn.flip(resized, horizontal=flip[0])
