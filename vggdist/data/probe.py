"""Tests whether DALI decodes an image, one image at a time.

When a batch fails, DALI names no file, and its pipeline is dead. This module finds the image that
failed, or that would fail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import nvidia.dali as dali
from numpy.typing import NDArray
from nvidia.dali import fn, types

if TYPE_CHECKING:  # torch would add a second to the start of every process that checks images
    import torch

_ENCODED = "encoded"


class WindowProbe:
    """Decodes a window of one encoded image after another; used by one thread.

    The window ends at the bottom right corner and its side is half the shorter side, so a decoder
    must read all of the data: the upper part of a truncated JPEG would decode without complaint.

    Args:
        device: the decoding device: a GPU, with DALI's mixed decoder, or the CPU if None.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._gpu = device.index or 0 if device is not None and device.type == "cuda" else None
        self._pipe: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def decodes(self, encoded: NDArray[np.uint8]) -> bool:
        """Whether DALI decodes an image.

        Args:
            encoded: (num_bytes,), the file's bytes.
        """
        if not len(encoded):
            return False
        if self._pipe is None:
            self._pipe = _build(self._gpu)
        try:
            self._pipe.feed_input(_ENCODED, [np.ascontiguousarray(encoded)])
            self._pipe.run()
        except (RuntimeError, MemoryError):
            self.close()
            return False
        return True

    def close(self) -> None:
        """Frees threads and memory; the next call allocates new ones."""
        self._pipe = None


def _build(gpu: int | None) -> Any:
    pipe = dali.pipeline_def(_graph)(
        "cpu" if gpu is None else "mixed",
        batch_size=1,
        num_threads=1,
        device_id=gpu,
        prefetch_queue_depth=1,  # a result belongs to the image that was fed last
    )
    pipe.build()
    return pipe


def _graph(decoder: str) -> Any:
    encoded = fn.external_source(name=_ENCODED, dtype=types.UINT8, ndim=1)
    size = fn.peek_image_shape(encoded, adjust_orientation=False)[:2]
    side = dali.math.max(1, dali.math.min(size[0], size[1]) // 2)
    return fn.decoders.image_slice(
        encoded,
        device=decoder,
        start=fn.cast(size - side, dtype=types.INT32),
        shape=fn.cast(fn.stack(side, side), dtype=types.INT32),
        axes=[0, 1],
        output_type=types.RGB,
        adjust_orientation=False,
    )
