"""What an image file is, and whether training can use it: DALI decides, Pillow is the stricter.

Meant for a process that may die of what it reads; `prepare/processes.py` starts such processes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vggdist.data.bad_image import reading_problem
from vggdist.data.header import TooLargeError, image_size
from vggdist.data.manifest import Place
from vggdist.data.probe import WindowProbe
from vggdist.data.read import read_encoded

DALI_FORMATS = frozenset({"JPEG", "MPO", "PNG", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"})
"""Formats that DALI decodes, by Pillow's names; MPO is a JPEG followed by more JPEGs."""

_DAMAGE = re.compile(r"Corrupt JPEG data|Premature end|corrupt|truncated", re.IGNORECASE)
_NUMBER = re.compile(r"\d+ (?=extraneous)")  # also removed, so that equal reasons match
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
    damage: str = ""
    """Complaint of Pillow or the decoder, although training can use it; empty if none."""


def examine_image(place: Place) -> Examined:
    """Decodes an image as strictly as Pillow can, and a window of it as training does."""
    try:
        encoded = read_encoded(place)
    except (OSError, EOFError) as error:
        return Examined(f"it cannot be read: {reading_problem(error)}")
    except MemoryError:
        return Examined("it does not fit into memory")
    seen = Examined(num_bytes=len(encoded), sha256=hashlib.sha256(encoded.data).digest())
    if not len(encoded):
        return seen._replace(reason="the file is empty")
    seen, complaint = _decoded_by_pillow(encoded, seen)
    if seen.reason:
        return seen
    seen = _decoded_as_in_training(encoded, seen)
    if not complaint:
        return seen
    # DALI decides as in training; Pillow has the better messages.
    return seen._replace(reason=complaint) if seen.reason else seen._replace(damage=complaint)


def lacks_decoder(image_format: str) -> str:
    """The reason for refusing a format that DALI does not decode."""
    return f"{image_format} is a format that DALI does not decode; convert it to JPEG or PNG"


def prepare_process() -> None:
    """Prepares this process for examining images: no GPU, no output, DALI loaded."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a CUDA context would take half a gigabyte for nothing
    _window_probe().problem(np.zeros(1, dtype=np.uint8))
    # Decoders print complaints to the terminal, without the file name.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


@contextlib.contextmanager
def decoders_lines() -> Iterator[list[str]]:
    """The lines that decoders write to stderr within the block, without file names."""
    lines: list[str] = []
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        file.seek(0)
        lines += file.read().decode(errors="replace").splitlines()


def tells_of_damage(line: str) -> bool:
    """Whether a decoder's line reports damaged pixels; others concern metadata."""
    return _DAMAGE.search(line) is not None


@functools.cache
def _window_probe() -> WindowProbe:
    return WindowProbe()


def _decoded_by_pillow(encoded: NDArray[np.uint8], seen: Examined) -> tuple[Examined, str]:
    """Pillow's result, with a reason if DALI need not be asked; and its complaint."""
    try:
        # Pillow warns of unreadable metadata, which is harmless; damaged pixels are errors.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
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


def _decoded_as_in_training(encoded: NDArray[np.uint8], seen: Examined) -> Examined:
    """`seen` with the size found by training, and its decoder's complaint."""
    try:
        height, width = image_size(encoded)
    except Exception as error:  # a DamagedError, or the error that Pillow raised before
        return seen._replace(reason=str(error))
    # Only for a JPEG can there be a size where Pillow finds none.
    seen = seen._replace(format=seen.format or "JPEG", width=width, height=height)
    with decoders_lines() as lines:
        problem = _window_probe().problem(encoded)
    if problem is not None:
        return seen._replace(
            reason=f"DALI does not decode this {seen.format} ({seen.mode}), though Pillow does; "
            "save it again as an RGB JPEG or PNG"
        )
    damage = next(filter(tells_of_damage, lines), "")
    return seen._replace(damage=_NUMBER.sub("", damage.strip()))
