"""How many images a training has, for estimates; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vggdist.artifacts.paths import quote
from vggdist.data.dataset import open_dataset
from vggdist.errors import DataError


@dataclass(frozen=True)
class ImageCounts:
    """Images of both splits; ImageNet's unless something else is said."""

    num_train: int = 1_281_167
    num_val: int = 50_000
    note: str = "ImageNet's"
    """Where the numbers are from, for people."""


def count_images(root: str | None) -> ImageCounts:
    """Those of a data set, by its manifest or its folders; ImageNet's if they cannot be counted."""
    if root is None:
        return ImageCounts(note="ImageNet's, since no data set is named")
    if not Path(root).exists():
        return ImageCounts(note=f"ImageNet's, since {quote(root)} is not to be seen from here")
    try:
        dataset = open_dataset(root)
    except DataError as error:
        return ImageCounts(note=f"ImageNet's, since there is a problem: {error}")
    numbers = dataset.train.num_images, dataset.val.num_images
    return ImageCounts(*numbers, f"counted in {quote(root)}")
