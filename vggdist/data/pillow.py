"""What Pillow says of an encoded image; DALI only has error numbers."""

from __future__ import annotations

import io
import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vggdist.data.header import TooLargeError

DALI_FORMATS = frozenset({"JPEG", "MPO", "PNG", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"})
"""Formats that DALI decodes, by Pillow's names; MPO is a JPEG followed by more JPEGs."""

_COUNT = re.compile(r" \(\d+ bytes not processed\)")  # removed, so that equal reasons match


class Examined(NamedTuple):
    """Properties of one image."""

    reason: str = ""
    """Why training cannot use it; empty if it can."""
    format: str = ""
    """Pillow's name; empty if unknown."""
    mode: str = ""
    """Pillow's name of the pixel layout, such as RGB."""
    width: int = 0
    """Pixels; 0 if the header could not be read."""
    height: int = 0
    num_bytes: int = 0
    """Length of the encoded image."""
    sha256: bytes = bytes(32)
    """Of the encoded image; zeros if it could not be read."""
    orientation: int = 0
    """EXIF orientation, 1 to 8; 0 if it is unknown."""
    damage: str = ""
    """Complaint of Pillow or the decoder, although training can use it; empty if none."""


def decode_by_pillow(encoded: NDArray[np.uint8]) -> tuple[Examined, str]:
    """Pillow's result, with a reason if DALI need not be asked; and its complaint."""
    seen = Examined(num_bytes=len(encoded))
    if not len(encoded):
        return seen._replace(reason="the file is empty"), ""
    try:
        with Image.open(io.BytesIO(encoded.data)) as image:
            width, height = image.size
            seen = seen._replace(
                format=image.format or "", mode=image.mode, width=width, height=height
            )
            if seen.format not in DALI_FORMATS:
                return seen._replace(reason=lacks_decoder(seen.format)), ""
            image.convert("RGB")
        return seen, ""
    except Image.DecompressionBombError:
        return seen._replace(reason=str(TooLargeError())), ""
    except MemoryError:
        return seen._replace(reason="it does not fit into memory when it is decoded"), ""
    except UnidentifiedImageError:
        return seen, "it is no image that Pillow recognizes"
    except Exception as error:  # Pillow raises anything from SyntaxError to ZeroDivisionError
        message = _COUNT.sub("", " ".join(str(error).split())) or type(error).__name__
        return seen, f"Pillow does not decode it: {message}"


def decoding_problem(encoded: NDArray[np.uint8]) -> str:
    """Why an image that DALI does not decode is bad."""
    seen, complaint = decode_by_pillow(encoded)
    return seen.reason or complaint or lacks_variant(seen)


def lacks_decoder(image_format: str) -> str:
    """The reason for refusing a format that DALI does not decode."""
    return f"{image_format} is a format that DALI does not decode; convert it to JPEG or PNG"


def lacks_variant(seen: Examined) -> str:
    """The reason for refusing an image that only Pillow decodes."""
    return (
        f"DALI does not decode this {seen.format} ({seen.mode}), though Pillow does; save it again "
        "as an RGB JPEG or PNG"
    )
