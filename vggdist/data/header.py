"""Height and width of an encoded image, from its header; and whether a JPEG is whole."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

START_OF_JPEG = b"\xff\xd8"
_END_OF_IMAGE, _START_OF_SCAN = 0xD9, 0xDA
_MOST_TIMES = 2  # Pillow warns at MAX_IMAGE_PIXELS, and refuses more than twice as many
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
# Markers that hold the size, ITU-T T.81 table B.1: SOF0 to SOF15 without DHT, JPG and DAC.
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset(range(0xD0, 0xDA)) | {0x01}
# In a scan 0x00 marks 0xFF as data, 0xFF is fill, and 0xD0 to 0xD7 are restart markers.
_MARKER_BEHIND_A_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
# Another scan, tables for it, the number of lines, application data, comments.
_MAY_STAND_THERE = frozenset({0xC4, 0xCC, *range(0xDA, 0xDE), *range(0xE0, 0xF0), 0xFE})


class DamagedError(Exception):
    """A JPEG whose pixel data ends too early.

    Decoders notice it only if a window reaches that far, and after a marker within the pixel data
    they silently return grey for the rest; a training needs to know from the start.
    """


class TooLargeError(Exception):
    """An image with more pixels than Pillow decodes; DALI would decode it, using gigabytes."""

    def __init__(self) -> None:
        super().__init__("its header claims more pixels than Pillow decodes; shrink it")


def image_size(encoded: NDArray[np.uint8]) -> tuple[int, int]:
    """Height and width, pixels, ignoring an EXIF orientation.

    Args:
        encoded: (num_bytes,), in any format that Pillow knows.

    Raises:
        DamagedError: a JPEG whose pixel data ends too early.
        TooLargeError: it has more pixels than Pillow decodes.
        Exception: any kind that Pillow raises; not an image, or a damaged one.
    """
    data = encoded.data
    size = _jpeg_size(data) if data[:2] == START_OF_JPEG else None
    if size is not None:
        if size[0] * size[1] > _MOST_TIMES * (Image.MAX_IMAGE_PIXELS or math.inf):
            raise TooLargeError
        return size
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format == "TIFF":  # Pillow has applied the orientation
                tags = image.tag_v2  # type: ignore[attr-defined]
                return int(tags[_TIFF_HEIGHT]), int(tags[_TIFF_WIDTH])
            return image.height, image.width
    except Image.DecompressionBombError:
        raise TooLargeError from None


def size_from_beginning(beginning: NDArray[np.uint8]) -> tuple[int, int] | None:
    """Height and width as from `image_size`, but from the first bytes of a file.

    Args:
        beginning: (num_bytes,); a few thousand bytes are enough for most JPEGs.

    Returns:
        None if they lack the size, or the image is not a JPEG.
    """
    data = beginning.data
    return _jpeg_size(data, whole=False) if data[:2] == START_OF_JPEG else None


def _jpeg_size(data: memoryview, whole: bool = True) -> tuple[int, int] | None:
    """As `image_size`, in a tenth of Pillow's time; None if a marker is not where it should be.

    Follows the markers up to the scan; the frame's marker holds length (2 bytes), precision (1),
    height (2) and width (2).

    Args:
        whole: whether `data` is the whole file; only then its pixel data is scanned.
    """
    size = None
    for marker, i, end in jpeg_segments(data):
        if marker in _START_OF_FRAME:
            height = data[i + 1] << 8 | data[i + 2]
            width = data[i + 3] << 8 | data[i + 4]
            size = (height, width) if height and width else None
        elif marker == _START_OF_SCAN:
            if whole:
                _require_whole_scans(data, end)
            return size
    if size is not None and whole:
        raise DamagedError("it is cut off: its header is there, but not its pixels")
    return None if whole else size


def jpeg_segments(data: memoryview) -> Iterator[tuple[int, int, int]]:
    """A JPEG's segments up to the first scan's: marker, and where the content starts and ends.

    Ends at bytes that are no marker.
    """
    i = 2
    while i + 8 < len(data) and data[i] == 0xFF:
        marker = data[i + 1]
        if marker == 0xFF:  # a fill byte
            i += 1
        elif marker in _WITHOUT_LENGTH:
            i += 2
        else:
            end = i + 2 + (data[i + 2] << 8 | data[i + 3])
            yield marker, i + 4, end
            if marker == _START_OF_SCAN:
                return
            i = end


def _require_whole_scans(data: memoryview, start: int) -> None:
    """Raises a DamagedError unless the scans are complete; other data may follow.

    Damage that looks like pixel data is not detected: no decoder can.

    Args:
        data: the whole file.
        start: offset of the first scan's pixel data.
    """
    while (found := _MARKER_BEHIND_A_SCAN.search(data, start)) is not None:
        place = found.start()
        marker = data[place + 1]
        if marker == _END_OF_IMAGE:
            return
        start = place + 2 + int.from_bytes(data[place + 2 : place + 4])
        is_followed = marker == _START_OF_SCAN or bytes(data[start : start + 1]) == b"\xff"
        if marker not in _MAY_STAND_THERE or not is_followed:
            raise DamagedError(
                f"it is damaged: the marker {marker:02X} stands among its pixels, at byte {place}"
            )
    raise DamagedError("it is cut off: its end is missing")
