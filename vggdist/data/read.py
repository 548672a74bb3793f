"""Encoded images with their sizes, from separate files or shards, read ahead by threads.

Cold disks and network file systems have high latency, not low throughput, so many images are
requested at once, some batches before they are needed.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from vggdist.data.bad_image import reading_problem
from vggdist.data.header import DamagedError, TooLargeError, image_size, size_from_beginning
from vggdist.data.manifest import Manifest, Place
from vggdist.data.orientation import exif_orientation, swaps_sides
from vggdist.data.pillow import decoding_problem

Encoded = NDArray[np.uint8]
Result = TypeVar("Result")

READING_THREADS = 16
"""Requests at once: they hide the latency of network file systems."""


class EncodedImage(NamedTuple):
    """An encoded image and its size."""

    encoded: Encoded
    """(num_bytes,)."""
    height: int
    """Pixels, from the header; of the image as it is decoded, turned or not."""
    width: int


# One thread reads a usual batch: with a warm page cache several only contend, and on a slow disk
# the batches read ahead keep several busy.
_IMAGES_PER_TASK = 64
BEGINNING_BYTES = 16384
"""An EXIF thumbnail or a colour profile may fill them."""
# Waits before a retry: errors of a network file system may be temporary.
_PAUSES_SECONDS = (0.1, 1.0)
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, EOFError)


def read_encoded(place: Place) -> Encoded:
    """The bytes at a place, (num_bytes,).

    Raises:
        OSError: there is no such file, or it cannot be read.
        EOFError: the file ends before the image does, or is not a regular file.
    """
    with _opened(place.path) as descriptor:
        return _read_part(descriptor, place)


def map_images(
    pool: ThreadPoolExecutor, function: Callable[[int], Result], images: Sequence[int]
) -> Iterator[Result]:
    """`function` of each image, in order; all are begun at once, in the threads of `pool`."""
    results = pool.map(lambda chunk: [function(image) for image in chunk], chunks(images))
    return chain.from_iterable(results)


def chunks(images: Sequence[int]) -> Iterator[Sequence[int]]:
    """The images in parts that are worth a task of a pool."""
    for first in range(0, len(images), _IMAGES_PER_TASK):
        yield images[first : first + _IMAGES_PER_TASK]


class Reader:
    """Reads images in its own threads.

    Args:
        manifest: the images.
        upright: whether sizes are those of images turned by their EXIF orientation.
    """

    def __init__(self, manifest: Manifest, upright: bool = False) -> None:
        self._manifest, self._upright = manifest, upright
        self._pool = ThreadPoolExecutor(READING_THREADS, "vggdist-read")
        self._shards: dict[bytes, int] = {}  # open ones
        self._lock = threading.Lock()

    def read(self, images: Sequence[int]) -> Iterator[EncodedImage | str]:
        """Each image, in order, or why it is bad; all are requested at once."""
        return self.map(self._read, images)

    def sizes(self, images: Sequence[int]) -> Iterator[tuple[int, int] | None]:
        """Height and width of each image, in order; None for a bad image.

        Most JPEGs are read only at the beginning, so a truncated one has a size here.
        """
        return self.map(self._size, images)

    def orientations(self, images: Sequence[int]) -> Iterator[int]:
        """EXIF orientation of each image, in order, as its first bytes tell it; 1 where they do
        not."""
        return self.map(self._orientation, images)

    def map(self, function: Callable[[int], Result], images: Sequence[int]) -> Iterator[Result]:
        """`map_images` in this reader's threads."""
        return map_images(self._pool, function, images)

    @contextlib.contextmanager
    def opened(self, place: Place) -> Iterator[int]:
        """A descriptor of a place's file.

        Shards stay open: reopening one for every image would query a network's metadata server a
        million times per epoch.
        """
        if self._manifest.shards is None:
            with _opened(place.path) as descriptor:
                yield descriptor
            return
        with self._lock:
            if place.path not in self._shards:
                self._shards[place.path] = _open(place.path)
            descriptor = self._shards[place.path]
        yield descriptor

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(cancel_futures=True)
        for descriptor in self._shards.values():
            os.close(descriptor)
        self._shards.clear()

    def _read(self, image: int) -> EncodedImage | str:
        try:
            encoded = self._patiently(self._manifest.place(image))
        except (OSError, EOFError) as error:
            return reading_problem(error)
        try:
            height, width = image_size(encoded)
        except (DamagedError, TooLargeError) as error:
            return str(error)
        except Exception:  # Pillow raises anything
            return decoding_problem(encoded)
        if self._upright and swaps_sides(encoded):
            height, width = width, height
        return EncodedImage(encoded, height, width)

    def _size(self, image: int) -> tuple[int, int] | None:
        try:
            beginning = self._patiently(self._manifest.place(image), BEGINNING_BYTES)
        except (OSError, EOFError):
            return None
        size = size_from_beginning(beginning)
        if size is None:
            read = self._read(image)
            return None if isinstance(read, str) else (read.height, read.width)
        return size[::-1] if self._upright and swaps_sides(beginning) else size

    def _orientation(self, image: int) -> int:
        try:
            return exif_orientation(self._patiently(self._manifest.place(image), BEGINNING_BYTES))
        except (OSError, EOFError):
            return 1

    def _patiently(
        self,
        place: Place,
        most: int | None = None,
        pauses: tuple[float, ...] = _PAUSES_SECONDS,
    ) -> Encoded:
        """The bytes at a place, at most so many."""
        try:
            with self.opened(place) as descriptor:
                return _read_part(descriptor, place, most)
        except _FINAL:
            raise
        except OSError:
            if not pauses:
                raise
        with self._lock:
            # The next access reopens a shard. The old descriptor, which other threads may be using,
            # leaks until the process ends; this happens only after an error.
            self._shards.pop(place.path, None)
        time.sleep(pauses[0])
        return self._patiently(place, most, pauses[1:])


@contextlib.contextmanager
def _opened(path: bytes) -> Iterator[int]:
    descriptor = _open(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open(path: bytes) -> int:
    # Not blocking: opening a pipe among the images would wait forever.
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


def _read_part(descriptor: int, place: Place, most: int | None = None) -> Encoded:
    num_bytes = place.num_bytes
    if num_bytes < 0:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise EOFError("it is no regular file")
        num_bytes = status.st_size
    if most is not None:
        num_bytes = min(num_bytes, most)
    encoded = np.empty(num_bytes, dtype=np.uint8)
    filled = 0
    while filled < num_bytes:
        count = os.preadv(descriptor, [encoded.data[filled:]], place.offset + filled)
        if count == 0:
            raise EOFError(f"the file ends {num_bytes - filled} bytes before the image does")
        filled += count
    return encoded
