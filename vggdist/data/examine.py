"""What an image file is, and whether training can use it: DALI decides, Pillow is the stricter.

Meant for a process that may die of what it reads; `prepare/processes.py` starts such processes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vggdist.data.bad_image import reading_problem
from vggdist.data.header import image_size
from vggdist.data.manifest import Place
from vggdist.data.orientation import exif_orientation
from vggdist.data.pillow import Examined, decode_by_pillow, lacks_variant
from vggdist.data.probe import WindowProbe
from vggdist.data.read import read_encoded

_DAMAGE = re.compile(r"Corrupt JPEG data|Premature end|corrupt|truncated", re.IGNORECASE)
_NUMBER = re.compile(r"\d+ (?=extraneous)")  # removed, so that equal reasons match


def examine_image(place: Place) -> Examined:
    """Decodes an image as strictly as Pillow can, and a window of it as training does."""
    try:
        encoded = read_encoded(place)
    except (OSError, EOFError) as error:
        return Examined(f"it cannot be read: {reading_problem(error)}")
    except MemoryError:
        return Examined("it does not fit into memory")
    # Pillow warns of unreadable metadata, which is harmless; damaged pixels are errors.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seen, complaint = decode_by_pillow(encoded)
    seen = seen._replace(sha256=hashlib.sha256(encoded.data).digest())
    if seen.reason:
        return seen
    seen = _decoded_as_in_training(encoded, seen)
    if not complaint:
        return seen
    # DALI decides as in training; Pillow has the better messages.
    return seen._replace(reason=complaint) if seen.reason else seen._replace(damage=complaint)


def prepare_process() -> None:
    """Prepares this process for examining images: no GPU, no output, DALI loaded."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a CUDA context would take half a gigabyte for nothing
    _window_probe().decodes(np.zeros(1, dtype=np.uint8))
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


def _decoded_as_in_training(encoded: NDArray[np.uint8], seen: Examined) -> Examined:
    """`seen` with the size found by training, and its decoder's complaint."""
    try:
        height, width = image_size(encoded)
    except Exception as error:  # a DamagedError, or the error that Pillow raised before
        return seen._replace(reason=str(error))
    # Only for a JPEG can there be a size where Pillow finds none.
    seen = seen._replace(
        format=seen.format or "JPEG",
        width=width,
        height=height,
        orientation=exif_orientation(encoded),
    )
    with decoders_lines() as lines:
        is_decoded = _window_probe().decodes(encoded)
    if not is_decoded:
        return seen._replace(reason=lacks_variant(seen))
    damage = next(filter(tells_of_damage, lines), "")
    return seen._replace(damage=_NUMBER.sub("", damage.strip()))
