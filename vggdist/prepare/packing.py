"""How images are written: as class folders or as shards, with their bytes or made smaller."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image

from vggdist.data.orientation import exif_orientation
from vggdist.data.read import read_encoded
from vggdist.errors import ConfigError
from vggdist.prepare.journal import Entry
from vggdist.prepare.shards import ShardWriter, sample_extension
from vggdist.prepare.sources import SourceImage

FORMS = ("folders", "shards")
_DEEP_MODES = ("I", "F")  # how the modes of more than 8 bits begin; Pillow would clip them to 255


@dataclass(frozen=True)
class Resize:
    """Makes images smaller whose shorter side is longer than `shorter_side` pixels.

    The others keep their bytes, as do those that Pillow cannot decode and those of more than 8 bits
    a channel. A resized image is an RGB JPEG whose pixels lie as in its file; of the metadata it
    keeps the EXIF orientation alone.
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

    def apply(
        self, image: Image.Image, orientation: int = 1
    ) -> tuple[bytes, tuple[int, int]] | None:
        """The encoded smaller image and its size, or None if this one stays as it is.

        Args:
            image: as it is stored.
            orientation: its EXIF orientation.
        """
        width, height = image.size
        shorter = min(width, height)
        if shorter <= self.shorter_side or image.mode.startswith(_DEEP_MODES):
            return None
        size = [(2 * side * self.shorter_side + shorter) // (2 * shorter) for side in image.size]
        small = image.convert("RGB").resize((size[0], size[1]), Image.Resampling.LANCZOS)
        small.info.clear()  # Pillow would pass on a comment
        exif = Image.Exif()
        if orientation > 1:
            exif[ExifTags.Base.Orientation] = orientation
        encoded = io.BytesIO()
        small.save(encoded, "JPEG", quality=self.quality, subsampling="4:4:4", exif=exif)
        return encoded.getvalue(), small.size


@dataclass(frozen=True)
class Packing:
    """How a data set is to be written."""

    form: str
    """folders or shards."""
    resize: Resize | None = None
    """None: images keep their bytes."""
    shard_megabytes: float = 512
    """A shard ends with the image that makes it this long, in units of 2^20 bytes."""
    jobs: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Threads; the result does not depend on it."""

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ConfigError(f"There is no form {self.form!r}; choose {' or '.join(FORMS)}.")
        for name, value in (("--jobs", self.jobs), ("--shard-megabytes", self.shard_megabytes)):
            if value <= 0:
                raise ConfigError(f"{name} cannot be {value}; it is more than 0.")

    def identity(self) -> dict[str, Any]:
        """What the result depends on; plain JSON values."""
        return {
            "form": self.form,
            "resize": str(self.resize or ""),
            "shard_megabytes": self.shard_megabytes if self.form == "shards" else None,
        }


class PackedImage(NamedTuple):
    """An image as it is stored, and its entry in the journal."""

    split: str
    encoded: bytes
    extension: str
    """Of its file in a shard, without a dot."""
    entry: Entry


def pack_image(image: SourceImage, resize: Resize | None) -> PackedImage:
    """Reads, hashes and perhaps resizes an image; for many threads at once.

    Raises:
        OSError: it cannot be read.
    """
    content = image.content
    encoded = content if isinstance(content, bytes) else read_encoded(content).tobytes()
    extension, size = sample_extension(image.name), (0, 0)
    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            size = opened.size
            is_turned = opened.format == "TIFF"  # by Pillow
            orientation = 1 if is_turned else exif_orientation(np.frombuffer(encoded, np.uint8))
            if resize and (smaller := resize.apply(opened, orientation)):
                extension, (encoded, size) = "jpg", smaller
    except MemoryError:  # says nothing about the image
        raise
    except Exception:  # Pillow raises anything; `vggdist check` tells what is wrong with an image
        pass
    sha256 = hashlib.sha256(encoded).digest()
    entry = Entry(image.name, image.label, size, len(encoded), sha256)
    return PackedImage(image.split, encoded, extension, entry)


def write_file(path: Path, encoded: bytes) -> None:
    """Writes the file of an image in a class folder, which is made if it is not there."""
    try:
        path.write_bytes(encoded)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded)


def write_shard(
    path: Path, images: Iterator[PackedImage], first: int, megabytes: float
) -> list[Entry]:
    """Writes images into a shard until it is long enough.

    Args:
        path: the shard.
        images: where they are taken from.
        first: number of the first among the samples of all shards of the split.
        megabytes: the length at which it ends.
    """
    shard = ShardWriter(path)
    entries: list[Entry] = []
    try:
        for image in images:
            number, label = first + len(entries), image.entry.label
            offset = shard.add(number, image.extension, image.encoded, label)
            entries.append(image.entry._replace(offset=offset))
            if shard.num_bytes >= megabytes * 2**20:
                break
        shard.close()
    finally:
        shard.abandon()
    return entries
