"""How many images of a set have an EXIF orientation, so that a viewer would turn them."""

from __future__ import annotations

from contextlib import closing
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggdist.data.manifest import Manifest
from vggdist.data.read import Reader

SAMPLE = 1000
"""Images of a set whose orientations are not noted that are looked at: a second on a slow disk."""


class Turned(NamedTuple):
    """A count."""

    num_turned: int
    num_seen: int
    num_images: int

    def __str__(self) -> str:
        """The beginning of a sentence."""
        few = f"{self.num_turned:,} of {self.num_seen:,} images"
        if self.num_seen < self.num_images:
            few += f", a sample of {self.num_images:,},"
        return f"{few} {'has' if self.num_turned == 1 else 'have'} an EXIF orientation"


def count_turned(images: Manifest, known: NDArray[np.uint8] | None) -> Turned:
    """Counts images with an EXIF orientation; where not all are known, in a sample.

    Args:
        images: a split.
        known: `Contents.orientations`.
    """
    total = images.num_images
    if known is not None and known.all():
        return Turned(int((known > 1).sum()), total, total)
    sample = np.linspace(0, total, min(SAMPLE, total), endpoint=False).astype(np.int64)
    with closing(Reader(images)) as reader:
        turned = sum(orientation > 1 for orientation in reader.orientations(sample.tolist()))
    return Turned(turned, len(sample), total)
