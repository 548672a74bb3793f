"""Finds bad images quickly, by their first and last bytes, without decoding.

An evaluation does so before it begins, instead of failing hours later: 50,000 files take a few
seconds. Damage in the middle of a file is not found; `vggdist check` finds it.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Sequence
from contextlib import closing
from functools import partial

import numpy as np

from vggdist.data.bad_image import EVERY_IMAGE_COUNTS, BadImage, refuse_bad
from vggdist.data.header import size_from_beginning
from vggdist.data.manifest import Manifest
from vggdist.data.pillow import decoding_problem
from vggdist.data.plan import evaluation_share
from vggdist.data.probe import WindowProbe
from vggdist.data.read import BEGINNING_BYTES, Reader, chunks
from vggdist.data.search import find_every_bad
from vggdist.distributed.process import Process, gather
from vggdist.distributed.rank import on_main

_END = 64  # bytes; other data may follow the image
_MANY_PIXELS = 100_000_000  # a header with more is suspicious
_PNG, _END_OF_PNG = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_START_OF_JPEG, _END_OF_JPEG = b"\xff\xd8", b"\xff\xd9"


def find_bad(manifest: Manifest, images: Sequence[int]) -> list[BadImage]:
    """Images without a header or without an end.

    If the first and last bytes do not decide, as in TIFF files, the image is decoded.
    """
    bad = []
    with closing(Reader(manifest)) as reader, WindowProbe() as probe:
        certain = reader.map(partial(_is_certain, reader, manifest), images)
        doubtful = [image for image, whole in zip(images, certain, strict=True) if not whole]
        for part in chunks(doubtful):  # TIFF files are all read: not at once
            for image, read in zip(part, reader.read(part), strict=True):
                if isinstance(read, str):
                    bad.append(BadImage(image, read))
                elif not probe.decodes(read.encoded):
                    bad.append(BadImage(image, decoding_problem(read.encoded)))
    return bad


def require_whole(sets: Sequence[Manifest], process: Process) -> None:
    """Refuses sets with bad images; the ranks share them; collective.

    Raises:
        DataError: names them.
    """
    bad = []
    for images in sets:
        share = evaluation_share(images.num_images, process.rank, process.world_size)
        of_ranks = gather(find_bad(images, share.tolist()))
        bad.append({image.image: image for of_rank in of_ranks for image in of_rank})
    on_main(process, lambda: _refuse(sets, bad))


def _refuse(sets: Sequence[Manifest], bad: Sequence[dict[int, BadImage]]) -> None:
    if not any(bad):
        return
    every = {}
    for images, found in zip(sets, bad, strict=True):
        # Not those alone: who mends them would be told of the next ones only then.
        by_number = {image.image: image for image in find_every_bad(images)} | found
        every[images] = list(by_number.values())
    raise refuse_bad(every, EVERY_IMAGE_COUNTS)


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


def _is_certain(reader: Reader, manifest: Manifest, image: int) -> bool:
    """Whether an image is certainly whole."""
    place = manifest.place(image)
    try:
        with reader.opened(place) as file:
            size = place.num_bytes if place.num_bytes >= 0 else os.fstat(file).st_size
            beginning = os.pread(file, min(size, BEGINNING_BYTES), place.offset)
            tail = min(size, _END)
            end = os.pread(file, tail, place.offset + size - tail)
    except OSError:  # the reader tries again, and reports the reason
        return False
    return is_whole(beginning, end, size)
