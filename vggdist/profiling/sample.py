"""Images for benchmarks: made photos, and a part of a data set as files and as shards."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from vggdist.data.dataset import open_images
from vggdist.data.manifest import Manifest, Names, Shards
from vggdist.data.read import read_encoded
from vggdist.prepare.shards import ShardWriter, sample_extension, shard_name

_QUALITY = 88  # a JPEG is then as long as ImageNet's: 110 KB for 500 x 375 pixels


def photo(width: int, height: int, seed: int) -> Image.Image:
    """Smooth colours with some grain."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    grain = generator.normal(0, 14, (height, width, 1))
    return Image.fromarray(np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8))


def save_photo(path: Path, width: int, height: int, seed: int) -> None:
    """Writes a `photo` as a JPEG; its folder is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    photo(width, height, seed).save(path, quality=_QUALITY)


def sample(manifest: Manifest, folder: Path, most: int) -> Manifest:
    """At most `most` images, evenly spread over the set, as class folders below `folder`.

    Files are linked, images of shards are written.
    """
    count = min(most, manifest.num_images)
    for place, number in enumerate(np.linspace(0, manifest.num_images - 1, count).astype(int)):
        image = int(number)
        suffix = Path(manifest.name(image)).suffix
        path = folder / f"{manifest.labels[image]:06d}" / f"{place:06d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if manifest.shards is None:
            path.symlink_to(manifest.path(image))
        else:
            path.write_bytes(read_encoded(manifest.place(image)).tobytes())
    return open_images(folder)


def packed(manifest: Manifest, folder: Path, num_entries: int | None = None) -> Manifest:
    """The images of class folders in one shard in `folder`.

    Args:
        num_entries: entries of the manifest, each image as often as that takes; none: once.
    """
    folder.mkdir(parents=True)
    path = folder / shard_name(0)
    writer = ShardWriter(path)
    offsets, num_bytes = [], []
    for i in range(manifest.num_images):
        encoded = read_encoded(manifest.place(i)).tobytes()
        extension = sample_extension(manifest.name(i))
        offsets.append(writer.add(i, extension, encoded, int(manifest.labels[i])))
        num_bytes.append(len(encoded))
    writer.close()
    with path.open("rb") as file:
        os.fsync(file.fileno())  # what is not on the disk yet cannot be evicted
    image = np.arange(num_entries or manifest.num_images) % manifest.num_images
    image.sort()
    names = manifest.names
    if num_entries is not None:
        names = Names.pack(f"{i:08d}.JPEG" for i in range(num_entries))
    shards = Shards(
        (path.name,),
        np.array([path.stat().st_size]),
        np.zeros(len(image), np.int32),
        np.array(offsets)[image],
    )
    return Manifest(
        folder,
        folder.name,
        manifest.classes,
        manifest.labels[image],
        names,
        num_bytes=np.array(num_bytes)[image],
        shards=shards,
    )


def evict(manifest: Manifest, images: Iterable[int]) -> None:
    """Has the operating system forget what it keeps of images' bytes, so that a disk must answer.

    What is kept below (of a virtual machine's disk, by its host) is out of reach.
    """
    for image in images:
        path, offset, num_bytes = manifest.place(image)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, offset, max(0, num_bytes), os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
