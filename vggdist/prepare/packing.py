"""What is done to one image on its way into a prepared data set: hash, size, perhaps a resize."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

from vggdist.data.reader import read_encoded
from vggdist.errors import ConfigError
from vggdist.prepare.sources import SourceImage

_DEEP_MODES = ("I", "F")  # how the modes of more than 8 bits begin; Pillow would clip them to 255


@dataclass(frozen=True)
class Resize:
    """Makes images smaller whose shorter side is longer than `shorter_side` pixels.

    The others keep their bytes, as do those that Pillow cannot decode and those of more than 8 bits
    a channel. A resized image is an RGB JPEG without metadata: its pixels are as they lie in the
    file, and no reader turns them.
    """

    shorter_side: int
    quality: int = 95
    """Of the JPEG, 1 to 100."""

    def __post_init__(self) -> None:
        if self.shorter_side < 1:
            raise ConfigError(
                f"The shorter side cannot be {self.shorter_side} pixels; it is at least 1. The "
                "paper trains with S up to 512."
            )
        if not 1 <= self.quality <= 100:
            raise ConfigError(
                f"The JPEG quality cannot be {self.quality}; it is between 1 and 100. Leave it "
                "out for 95."
            )

    def __str__(self) -> str:
        return (
            f"shorter side at most {self.shorter_side} pixels, Lanczos, JPEG quality "
            f"{self.quality} 4:4:4"
        )

    def apply(self, image: Image.Image) -> bytes | None:
        """The encoded smaller image, or None if this one stays as it is."""
        width, height = image.size
        shorter = min(width, height)
        if shorter <= self.shorter_side or image.mode.startswith(_DEEP_MODES):
            return None
        size = [(2 * side * self.shorter_side + shorter) // (2 * shorter) for side in image.size]
        small = image.convert("RGB").resize((size[0], size[1]), Image.Resampling.LANCZOS)
        small.info.clear()  # Pillow would pass on a comment
        encoded = io.BytesIO()
        small.save(encoded, "JPEG", quality=self.quality, subsampling="4:4:4")
        return encoded.getvalue()


class PackedImage(NamedTuple):
    """An image as it is stored, and what the manifest says of it."""

    source: SourceImage
    encoded: bytes
    width: int
    """Pixels; 0 where no header could be read."""
    height: int
    sha256: bytes
    resized: bool


def pack_image(image: SourceImage, resize: Resize | None) -> PackedImage:
    """Reads, looks at and perhaps resizes an image; for many threads at once.

    Raises:
        OSError: it cannot be read.
    """
    content = image.content
    encoded = content if isinstance(content, bytes) else read_encoded(content).tobytes()
    smaller: bytes | None = None
    size = (0, 0)
    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            size = opened.size
            smaller = resize.apply(opened) if resize else None
        if smaller is not None:
            encoded = smaller
            with Image.open(io.BytesIO(encoded)) as opened:
                size = opened.size
    except MemoryError:  # says nothing about the image
        raise
    except Exception:  # Pillow raises anything; `vggdist check` tells what is wrong with an image
        pass
    digest = hashlib.sha256(encoded).digest()
    return PackedImage(image, encoded, *size, digest, smaller is not None)
