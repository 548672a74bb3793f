"""The two forms of a prepared data set: class folders with a file for each image, or shards."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vggdist.data.manifest_file import SPLITS, write_classes
from vggdist.errors import ConfigError
from vggdist.prepare.journal import Journal
from vggdist.prepare.packing import PackedImage, Resize, pack_image
from vggdist.prepare.shards import ShardWriter, sample_extension, shard_name
from vggdist.prepare.sources import SourceImage

IMAGES_PER_PART = 4096
"""Of class folders; of ImageNet they have about as many bytes as a shard."""
FORMS = ("folders", "shards")


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


class Writer(Protocol):
    """Writes the images of one form."""

    def work(self, image: SourceImage) -> PackedImage:
        """In any thread."""

    def store(self, image: PackedImage) -> int:
        """In order: returns the image's offset in its file."""

    def part_is_full(self, num_images: int) -> bool:
        """Whether the images stored since the last part, so many, are enough for one."""

    def end_part(self) -> None:
        """Closes files; the next image begins a new part."""

    def abandon_part(self) -> None:
        """Closes files of a part that will be written again."""


class FolderWriter:
    """A file for each image, split/class/name."""

    def __init__(self, classes: tuple[str, ...], out: Path, resize: Resize | None) -> None:
        self._classes, self._out, self._resize = classes, out, resize

    def work(self, image: SourceImage) -> PackedImage:
        packed = pack_image(image, self._resize)
        path = self._out / image.split / self._classes[image.label] / image.name
        try:
            path.write_bytes(packed.encoded)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(packed.encoded)
        return packed

    def store(self, image: PackedImage) -> int:
        return 0

    def part_is_full(self, num_images: int) -> bool:
        return num_images >= IMAGES_PER_PART

    def end_part(self) -> None:
        pass

    def abandon_part(self) -> None:
        pass


class ShardsWriter:
    """Shards, each a part; samples are numbered through a split in the order of packing."""

    def __init__(self, out: Path, packing: Packing, journal: Journal) -> None:
        self._out, self._resize = out, packing.resize
        self._limit = packing.shard_megabytes * 2**20
        self._shard: ShardWriter | None = None
        parts = {split: journal.of_split(split) for split in SPLITS}
        self._num_shards = {split: len(parts[split]) for split in SPLITS}
        self._num_images = {split: sum(len(p.names) for p in parts[split]) for split in SPLITS}

    def work(self, image: SourceImage) -> PackedImage:
        return pack_image(image, self._resize)

    def store(self, image: PackedImage) -> int:
        split, label, name, _ = image.source
        if self._shard is None:
            self._shard = ShardWriter(self._out / split / shard_name(self._num_shards[split]))
            self._num_shards[split] += 1
        extension = "jpg" if image.resized else sample_extension(name)
        self._num_images[split] += 1
        return self._shard.add(self._num_images[split] - 1, extension, image.encoded, label)

    def part_is_full(self, num_images: int) -> bool:
        return self._shard is not None and self._shard.num_bytes >= self._limit

    def end_part(self) -> None:
        assert self._shard is not None
        self._shard.close()
        self._shard = None

    def abandon_part(self) -> None:
        if self._shard is not None:
            self._shard.abandon()


def writer_of(classes: tuple[str, ...], out: Path, packing: Packing, journal: Journal) -> Writer:
    """The writer of a form, ready to go on after what the journal lists."""
    for split in SPLITS:
        (out / split).mkdir(exist_ok=True)
    if packing.form == "folders":
        return FolderWriter(classes, out, packing.resize)
    write_classes(classes, out)
    return ShardsWriter(out, packing, journal)
