"""EXIF orientations, by which viewers turn photos, read as DALI's decoders read them.

They must agree: a window is computed for the turned image, and decoded by DALI.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vggdist.data.header import START_OF_JPEG, jpeg_segments

_EXIF, _PNG = b"Exif\0\0", b"\x89PNG\r\n\x1a\n"
_APP1 = 0xE1
_ORIENTATION = 0x0112
_BYTE_ORDERS: dict[bytes, Literal["little", "big"]] = {b"II*\0": "little", b"MM\0*": "big"}
_ENTRY_BYTES = 12


def exif_orientation(encoded: NDArray[np.uint8]) -> int:
    """The EXIF orientation of an image, 1 to 8; 1, upright, if it has none.

    Args:
        encoded: (num_bytes,), a JPEG, PNG, WebP or TIFF file; of most JPEGs its first few thousand
            bytes are enough.
    """
    block = _exif_block(encoded.data)
    order = _BYTE_ORDERS.get(bytes(block[:4]))
    if order is None:
        return 1

    def number(place: int, num_bytes: int = 2) -> int:
        return int.from_bytes(block[place : place + num_bytes], order)

    first = number(4, 4)
    count = number(first)
    if first + _ENTRY_BYTES * count > len(block):  # DALI then reads none of it
        return 1
    for entry in range(first + 2, first + 2 + _ENTRY_BYTES * count, _ENTRY_BYTES):
        if number(entry) == _ORIENTATION:
            value = number(entry + 8)
            return value if 1 <= value <= 8 else 1
    return 1


def swaps_sides(encoded: NDArray[np.uint8]) -> bool:
    """Whether an image, once turned, is as wide as it is high in the file, and as high as wide."""
    return exif_orientation(encoded) >= 5


def _exif_block(data: memoryview) -> memoryview:
    """The part that is written like a TIFF file; empty if there is none."""
    block = data[:0]
    if data[:2] == START_OF_JPEG:
        for marker, start, end in jpeg_segments(data):
            if marker == _APP1 and data[start : start + len(_EXIF)] == _EXIF:
                block = data[start + len(_EXIF) : end]  # of several the last one counts
    elif data[:8] == _PNG:
        place = 8
        while place + 8 <= len(data) and not block:
            num_bytes = int.from_bytes(data[place : place + 4])
            if bytes(data[place + 4 : place + 8]) == b"eXIf":
                block = data[place + 8 : place + 8 + num_bytes]
            place += 12 + num_bytes
    elif bytes(data[:4]) == b"RIFF" and bytes(data[8:12]) == b"WEBP":
        place = 12
        while place + 8 <= len(data) and not block:
            num_bytes = int.from_bytes(data[place + 4 : place + 8], "little")
            if bytes(data[place : place + 4]) == b"EXIF":
                block = data[place + 8 : place + 8 + num_bytes]
            place += 8 + num_bytes + num_bytes % 2
    elif bytes(data[:4]) in _BYTE_ORDERS:
        block = data
    return block
