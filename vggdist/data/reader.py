"""The encoded bytes of images, from files of their own or from shards."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from vggdist.data.manifest import Place


def read_encoded(place: Place) -> NDArray[np.uint8]:
    """The bytes at a place, (num_bytes,).

    Raises:
        OSError: there is no such file, it cannot be read, or it ends before the image does.
    """
    descriptor = os.open(place.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        num_bytes = place.num_bytes if place.num_bytes >= 0 else os.fstat(descriptor).st_size
        encoded = np.empty(num_bytes, dtype=np.uint8)
        filled = 0
        while filled < num_bytes:
            count = os.preadv(descriptor, [encoded.data[filled:]], place.offset + filled)
            if count == 0:
                path = os.fsdecode(place.path)
                raise OSError(f"{path} ends {num_bytes - filled} bytes before the image does")
            filled += count
        return encoded
    finally:
        os.close(descriptor)
