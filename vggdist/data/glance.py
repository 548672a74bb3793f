"""Finds bad images quickly, by their first and last bytes, without decoding.

A validation set of 50,000 files takes a few seconds. Damage in the middle of a file is not found;
`vggdist check` finds it.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import numpy as np

from vggdist.data.bad_image import BadImage, decoding_problem
from vggdist.data.header import size_from_beginning
from vggdist.data.manifest import Manifest
from vggdist.data.probe import WindowProbe
from vggdist.data.read import ReadAhead

_THREADS = 16  # hides the latency of network file systems
_IMAGES_PER_TASK = 64
_BEGINNING = 16384  # bytes; an EXIF thumbnail or a colour profile may fill them
_END = 64  # other data may follow the image
_MANY_PIXELS = 100_000_000  # a header with more is suspicious
_PNG, _END_OF_PNG = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_START_OF_JPEG, _END_OF_JPEG = b"\xff\xd8", b"\xff\xd9"


def find_bad(manifest: Manifest, images: Sequence[int]) -> list[BadImage]:
    """Images without a header or without an end.

    If the first and last bytes do not decide, as in TIFF files, the image is decoded.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        parts = pool.map(lambda part: _doubtful(manifest, part), _parts(images))
        doubtful = [image for part in parts for image in part]
    bad = []
    with closing(ReadAhead(manifest, _THREADS)) as reader, WindowProbe() as probe:
        for part in _parts(doubtful):
            for image, read in zip(part, reader.begin(part).wait(), strict=True):
                if isinstance(read, str):
                    bad.append(BadImage(image, read))
                elif probe.problem(read.encoded) is not None:
                    bad.append(BadImage(image, decoding_problem(read.encoded)))
    return bad


def is_whole(beginning: bytes, end: bytes, num_bytes: int) -> bool:
    """Whether an image certainly has its header and its end.

    Args:
        beginning: the first few thousand bytes of the file.
        end: its last few dozen bytes.
        num_bytes: of the whole file.
    """
    if beginning.startswith(_START_OF_JPEG):
        size = size_from_beginning(np.frombuffer(beginning, np.uint8))
        return size is not None and math.prod(size) < _MANY_PIXELS and _END_OF_JPEG in end
    if beginning.startswith(_PNG):
        size = struct.unpack_from(">II", beginning, 16) if len(beginning) >= 24 else (0, 0)
        return 0 < math.prod(size) < _MANY_PIXELS and _END_OF_PNG in end
    if beginning.startswith(b"RIFF") and beginning[8:12] == b"WEBP":
        return 8 + int.from_bytes(beginning[4:8], "little") <= num_bytes
    if beginning.startswith(b"BM"):
        return 0 < int.from_bytes(beginning[2:6], "little") <= num_bytes
    return False


def _parts(images: Sequence[int]) -> Iterator[Sequence[int]]:
    for first in range(0, len(images), _IMAGES_PER_TASK):
        yield images[first : first + _IMAGES_PER_TASK]


def _doubtful(manifest: Manifest, images: Sequence[int]) -> list[int]:
    """Images that are not certainly whole."""
    with ExitStack() as stack:
        files: dict[bytes, int] = {}
        doubtful = []
        for image in images:
            place = manifest.place(image)
            try:
                if place.path not in files:  # a shard holds many
                    # Not blocking: opening a pipe would wait forever.
                    file = os.open(place.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                    stack.callback(os.close, file)
                    files[place.path] = file
                file = files[place.path]
                size = place.num_bytes if place.num_bytes >= 0 else os.fstat(file).st_size
                beginning = os.pread(file, min(size, _BEGINNING), place.offset)
                tail = min(size, _END)
                end = os.pread(file, tail, place.offset + size - tail)
            except OSError:  # the reader tries again, and reports the reason
                beginning, end, size = b"", b"", 0
            if not is_whole(beginning, end, size):
                doubtful.append(image)
        return doubtful
