"""What is known of the contents of images' files, brought up to date with the disk.

A file whose length and time of change are those that were noted is taken to hold what it held. Of
any other, its SHA-256 decides, if that is known: `vggdist check` and `vggdist prepare` note it of
all images, and small sets are hashed as soon as they are listed.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggdist.artifacts.contents import ContentsDigest
from vggdist.data.manifest import Contents, Manifest
from vggdist.data.orientation import exif_orientation
from vggdist.data.read import READING_THREADS, map_images, read_encoded
from vggdist.terminal import Progress

HASHED_BYTES, HASHED_IMAGES = 2**30, 100_000
"""A split of at most so many is hashed when it is listed: in seconds, and later a copy of it, or a
file that was touched, is known to be the same."""


class Renewed(NamedTuple):
    """What is known of a split's images now."""

    manifest: Manifest
    """With the images' lengths, and the digest of their contents."""
    contents: Contents
    changed: tuple[int, ...]
    """Images that are not what they were when they were looked at before."""
    is_outdated: bool
    """Whether what was stored with the manifest is out of date."""


def renew(manifest: Manifest, known: Contents | None, states: NDArray[np.int64]) -> Renewed:
    """Finds out which images have changed; reads no file that has not been touched.

    Args:
        manifest: the split, as it was stored or listed.
        known: what was stored with it.
        states: (num_files, 2), length and time of change of each image's file, or of the shards.
    """
    num_images, file_times = manifest.num_images, states[:, 1]
    if known is None:
        sizes, hashes = np.zeros((num_images, 2), np.int32), np.zeros((num_images, 32), np.uint8)
        known = Contents(sizes, hashes)
    if manifest.shards is None:
        num_bytes, times = states[:, 0], file_times
    else:
        assert manifest.num_bytes is not None, "where an image ends is known with where it begins"
        num_bytes, times = manifest.num_bytes, np.full(num_images, -1, np.int64)
    had_hash, is_file = known.sha256.any(axis=1), num_bytes >= 0
    is_small = num_images <= HASHED_IMAGES and num_bytes[is_file].sum() <= HASHED_BYTES
    touched = _touched(manifest, known, num_bytes, file_times)
    if known.file_times is None and is_small:
        touched |= had_hash  # noted by a version that did not note times
    to_hash = np.flatnonzero(np.where(had_hash, touched, is_file & is_small))
    sha256 = known.sha256.copy()
    orientations = np.zeros(num_images, np.uint8)
    if known.orientations is not None:
        orientations[:] = np.where(touched, 0, known.orientations)
    sha256[to_hash], orientations[to_hash] = _read(manifest, to_hash.tolist())
    other_hash = (sha256 != known.sha256).any(axis=1)
    # Where neither hash nor time was noted, nothing tells.
    changed = touched & np.where(had_hash, other_hash, known.file_times is not None)
    contents = Contents(
        sizes=np.where(changed[:, None], np.int32(0), known.sizes),
        sha256=sha256,
        times=times if known.times is None else np.where(changed, times, known.times),
        file_times=file_times,
        orientations=orientations,
    )
    renewed = replace(manifest, num_bytes=num_bytes)
    renewed = replace(renewed, contents=digest(renewed, contents))
    is_outdated = bool(touched.any() or other_hash.any()) or known.file_times is None
    return Renewed(renewed, contents, tuple(np.flatnonzero(changed).tolist()), is_outdated)


def digest(manifest: Manifest, contents: Contents) -> ContentsDigest:
    """The digest of a split's contents; the order of its classes does not count.

    Args:
        manifest: the split, with its images' lengths.
        contents: of all of its images.
    """
    assert manifest.num_bytes is not None
    rank = np.empty(len(manifest.classes), np.int64)
    rank[sorted(range(len(rank)), key=manifest.classes.__getitem__)] = np.arange(len(rank))
    order = np.argsort(rank[manifest.labels], kind="stable")
    is_file = manifest.num_bytes >= 0
    times, sha256 = contents.times, contents.sha256
    knows_times = times is not None and bool((times[is_file] >= 0).all())
    knows_hashes = bool(sha256[manifest.num_bytes > 0].any(axis=1).all())
    return ContentsDigest.of(
        manifest.num_bytes[order],
        times[order] if times is not None and knows_times else None,
        sha256[order] if knows_hashes else None,
    )


def _touched(
    manifest: Manifest,
    known: Contents,
    num_bytes: NDArray[np.int64],
    file_times: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """(num_images,), whether an image's file is not as it was noted."""
    touched = np.zeros(manifest.num_images, dtype=bool)
    if manifest.num_bytes is not None:
        touched |= manifest.num_bytes != num_bytes
    if known.file_times is not None:
        differs = known.file_times != file_times
        touched |= differs if manifest.shards is None else differs[manifest.shards.file]
    return touched


def _read(manifest: Manifest, images: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """SHA-256 of images (n, 32), and their EXIF orientations (n,); 0 and 1 where they cannot be
    read."""

    def read(image: int) -> tuple[bytes, int]:
        try:
            encoded = read_encoded(manifest.place(image))
        except (OSError, EOFError):
            return bytes(32), 1
        return hashlib.sha256(encoded.data).digest(), exif_orientation(encoded)

    hashes = np.zeros((len(images), 32), np.uint8)
    orientations = np.zeros(len(images), np.uint8)
    with (
        ThreadPoolExecutor(READING_THREADS) as pool,
        contextlib.closing(Progress(len(images), unit="hashes", is_usual=False)) as progress,
    ):
        for row, (sha256, orientation) in enumerate(map_images(pool, read, images)):
            hashes[row], orientations[row] = np.frombuffer(sha256, np.uint8), orientation
            progress.advance()
    return hashes, orientations
