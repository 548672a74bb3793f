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

from vggdist.data.header import TooLargeError, image_size
from vggdist.data.manifest import Place
from vggdist.data.probe import WindowProbe
from vggdist.data.reader import read_encoded
from vggdist.data.unusable import reading_problem

DALI_FORMATS = frozenset({"JPEG", "MPO", "PNG", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"})
"""What DALI decodes, as Pillow calls it; MPO is a JPEG with more JPEGs behind it."""

_DAMAGE = re.compile(r"Corrupt JPEG data|Premature end|corrupt|truncated", re.IGNORECASE)
_NUMBER = re.compile(r"\d+ (?=extraneous)")  # also makes one reason of many
_COUNT = re.compile(r" \(\d+ bytes not processed\)")  # makes one reason of many


class Examined(NamedTuple):
    """What is known of one image."""

    reason: str = ""
    """Why training cannot use it; empty: it can."""
    format: str = ""
    """As Pillow calls it; empty: unknown."""
    mode: str = ""
    """Pillow's name of the pixels' layout, such as RGB."""
    width: int = 0
    """Pixels; 0: no header could be read."""
    height: int = 0
    num_bytes: int = 0
    """Length of the encoded image."""
    sha256: bytes = bytes(32)
    """Of the encoded image; zeros: it could not be read."""
    damage: str = ""
    """What Pillow or the decoder says of it, though training can use it; empty: nothing."""


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
    # Training has the last word, and Pillow the better ones.
    return seen._replace(reason=complaint) if seen.reason else seen._replace(damage=complaint)


def lacks_decoder(image_format: str) -> str:
    """The reason for refusing a format that DALI does not have."""
    return f"{image_format} is a format that DALI does not decode; convert it to JPEG or PNG"


def prepare_process() -> None:
    """Makes this process one that examines: no GPU, no output, DALI ready."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a CUDA context would take half a gigabyte for nothing
    _window_probe().problem(np.zeros(1, dtype=np.uint8))
    # Decoders write what they dislike to the terminal, without saying in which file.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


@contextlib.contextmanager
def decoders_lines() -> Iterator[list[str]]:
    """The lines that decoders write to stderr meanwhile, without saying of which file."""
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
    """Whether a decoder's line is about damaged pixels; others are about metadata."""
    return _DAMAGE.search(line) is not None


@functools.cache
def _window_probe() -> WindowProbe:
    return WindowProbe()


def _decoded_by_pillow(encoded: NDArray[np.uint8], seen: Examined) -> tuple[Examined, str]:
    """What Pillow finds out, with a reason where nobody else need be asked; and its complaint."""
    try:
        # Pillow warns of unreadable metadata, which is no damage; damaged pixels are errors.
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
    """`seen` with the size that training finds, and what its decoder says."""
    try:
        height, width = image_size(encoded)
    except Exception as error:  # a DamagedError, or what Pillow has complained of before
        return seen._replace(reason=str(error))
    # Of a JPEG alone the size is found where Pillow finds none.
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
