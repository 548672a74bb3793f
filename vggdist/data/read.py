"""Encoded images with their sizes, from separate files or shards, read ahead by threads.

Cold disks and network file systems have high latency, not low throughput, so many images are
requested at once, some batches before they are needed.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggdist.data.bad_image import decoding_problem, reading_problem
from vggdist.data.header import DamagedError, TooLargeError, image_size, size_from_beginning
from vggdist.data.manifest import Manifest, Place

Encoded = NDArray[np.uint8]


class EncodedImage(NamedTuple):
    """An encoded image and its size."""

    encoded: Encoded
    """(num_bytes,)."""
    height: int
    """Pixels, from the header."""
    width: int


# One thread reads a usual batch: with a warm page cache several only contend, and on a slow disk
# the batches read ahead keep several busy.
_IMAGES_PER_TASK = 64
_BEGINNING = 16384  # bytes; an EXIF thumbnail or a colour profile may fill them
# Waits before a retry: errors of a network file system may be temporary.
_PAUSES_SECONDS = (0.1, 1.0)
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, EOFError)


def read_encoded(place: Place, descriptor: int | None = None, most: int | None = None) -> Encoded:
    """The bytes at a place, (num_bytes,).

    Args:
        place: the file and the part of it.
        descriptor: of the file, if it is open.
        most: maximum number of bytes, from the first on; None: all.

    Raises:
        OSError: there is no such file, or it cannot be read.
        EOFError: the file ends before the image does, or is not a regular file.
    """
    if descriptor is None:
        descriptor = _open(place.path)
        try:
            return read_encoded(place, descriptor, most)
        finally:
            os.close(descriptor)
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


def _open(path: bytes) -> int:
    # Not blocking: opening a pipe among the images would wait forever.
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


class ReadAhead:
    """Reads images in its own threads.

    Args:
        manifest: where the images are.
        num_threads: images requested at once.
    """

    def __init__(self, manifest: Manifest, num_threads: int) -> None:
        self._manifest = manifest
        self._pool = ThreadPoolExecutor(num_threads, "vggdist-read")
        self._shards: dict[bytes, int] = {}  # open ones
        self._lock = threading.Lock()

    def begin(self, images: Sequence[int]) -> Pending:
        """Requests images by number."""
        return Pending([self._pool.submit(self._read_some, chunk) for chunk in _chunks(images)])

    def sizes(self, images: Sequence[int]) -> Iterator[tuple[int, int] | None]:
        """Height and width of each image, in order; None for a bad image.

        Most JPEGs are read only at the beginning, so a truncated one has a size here.
        """
        for part in [self._pool.submit(self._sizes_of_some, chunk) for chunk in _chunks(images)]:
            yield from part.result()

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(cancel_futures=True)
        for descriptor in self._shards.values():
            os.close(descriptor)
        self._shards.clear()

    def _read_some(self, images: Sequence[int]) -> list[EncodedImage | str]:
        return [self._read(int(image)) for image in images]

    def _read(self, image: int) -> EncodedImage | str:
        place = self._manifest.place(image)
        try:
            encoded = self._patiently(place)
        except (OSError, EOFError) as error:
            return reading_problem(error)
        try:
            return EncodedImage(encoded, *image_size(encoded))
        except (DamagedError, TooLargeError) as error:
            return str(error)
        except Exception:  # Pillow raises anything
            return decoding_problem(encoded)

    def _sizes_of_some(self, images: Sequence[int]) -> list[tuple[int, int] | None]:
        return [self._size(int(image)) for image in images]

    def _size(self, image: int) -> tuple[int, int] | None:
        try:
            beginning = self._patiently(self._manifest.place(image), _BEGINNING)
        except (OSError, EOFError):
            return None
        size = size_from_beginning(beginning)
        if size is None:
            read = self._read(image)
            return None if isinstance(read, str) else (read.height, read.width)
        return size

    def _patiently(self, place: Place, most: int | None = None) -> Encoded:
        for pause in _PAUSES_SECONDS:
            try:
                return read_encoded(place, self._descriptor(place), most)
            except _FINAL:
                raise
            except OSError:
                self._forget(place)
                time.sleep(pause)
        return read_encoded(place, self._descriptor(place), most)

    def _descriptor(self, place: Place) -> int | None:
        """Shards stay open: reopening one for every image would query a network's metadata server a
        million times per epoch."""
        if self._manifest.shards is None:
            return None
        with self._lock:
            if place.path not in self._shards:
                self._shards[place.path] = _open(place.path)
            return self._shards[place.path]

    def _forget(self, place: Place) -> None:
        """Makes the next access reopen a shard. The old descriptor, which other threads may be
        using, leaks until the process ends; this happens only after an error."""
        with self._lock:
            self._shards.pop(place.path, None)


def _chunks(images: Sequence[int]) -> Iterator[Sequence[int]]:
    for first in range(0, len(images), _IMAGES_PER_TASK):
        yield images[first : first + _IMAGES_PER_TASK]


class Pending:
    """Requested images."""

    def __init__(self, parts: list[Future[list[EncodedImage | str]]]) -> None:
        self._parts = parts

    def wait(self) -> list[EncodedImage | str]:
        """Each image, or why it is bad."""
        return [image for part in self._parts for image in part.result()]
