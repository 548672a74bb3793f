"""Reasons why an image is bad, in a few words for the user."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vggdist.data.manifest import Manifest


@dataclass(frozen=True)
class BadImage:
    """An image that a loader could not use."""

    image: int
    """Its number in the manifest."""
    reason: str
    """Why it cannot be used."""

    def sentence(self, manifest: Manifest) -> str:
        """The beginning of a message: the image and the reason."""
        return f"The image {manifest.described(self.image)} cannot be used: {self.reason}"


def reading_problem(error: Exception) -> str:
    """Why an image's bytes could not be read."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, PermissionError):
        return "it may not be read (permission denied)"
    if isinstance(error, IsADirectoryError):
        return "it is no regular file"
    return getattr(error, "strerror", None) or str(error)


def decoding_problem(encoded: NDArray[np.uint8]) -> str:
    """Why DALI does not decode an image, according to Pillow; DALI only has error numbers."""
    try:
        if not len(encoded):
            return "the file is empty"
        with Image.open(io.BytesIO(encoded.data)) as image:
            image.convert("RGB")
            return f"DALI cannot decode it ({image.format}, {image.mode}), though Pillow can"
    except UnidentifiedImageError:
        return "it is no image, or in a format that is not supported"
    except Exception as error:  # Pillow raises anything from SyntaxError to ZeroDivisionError
        return " ".join(str(error).split()) or type(error).__name__
