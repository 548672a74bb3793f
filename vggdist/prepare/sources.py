"""Where images to be packed come from, as an ordered stream that can begin anywhere.

The order is always the same, so a packing that was interrupted after n images goes on by leaving
out the first n. ImageNet's archives are a source of their own in `archives.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vggdist.artifacts.contents import ContentsDigest
from vggdist.data.classes import require_several_classes
from vggdist.data.manifest import Place
from vggdist.data.survey import survey_dataset

logger = logging.getLogger(__name__)


class SourceImage(NamedTuple):
    """One image of a source."""

    split: str
    """train or val."""
    label: int
    """A place in the source's `classes`."""
    name: str
    """File name relative to the class folder."""
    content: bytes | Place
    """The encoded image, or where to read it; archives are read in order, files in any order."""


class Source(Protocol):
    """Images of train/, then those of val/."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of labels."""

    @property
    def num_images(self) -> int:
        """How many images are expected."""

    @property
    def resized(self) -> str:
        """How the images were resized before; empty: they were not."""

    @property
    def contents(self) -> ContentsDigest:
        """What is in its images, as far as that is known before they are read."""

    def identity(self) -> dict[str, Any]:
        """What tells this source from another one; plain JSON values."""

    def images(self, skip: int = 0) -> Iterator[SourceImage]:
        """The images after the first `skip`, whose bytes are not read.

        Raises:
            DataError: something in the source breaks its rules.
            OSError: it cannot be read.
        """

    def surprises(self, counts: Mapping[str, NDArray[np.int64]]) -> list[str]:
        """What differs from what was expected, as sentences.

        Args:
            counts: split -> images of each class (num_classes,).
        """


class FolderSource:
    """A data set that can be trained on already: class folders, or shards to be packed anew.

    Args:
        root: the folder with train/ and val/.

    Raises:
        DataError: there is no data set.
    """

    def __init__(self, root: str | Path) -> None:
        survey = survey_dataset(root)
        for remark in survey.remarks:
            logger.info("%s", remark)
        self._dataset = survey.dataset
        require_several_classes(self._dataset.train)
        self.contents = ContentsDigest.joined(split.contents for split in survey.splits)
        self.classes = self._dataset.train.classes
        self.num_images = self._dataset.train.num_images + self._dataset.val.num_images
        self.resized = self._dataset.train.resized

    def identity(self) -> dict[str, Any]:
        """The folder and the digests of its two lists of images."""
        train, val = self._dataset.train, self._dataset.val
        return {"folder": str(self._dataset.root), "train": train.digest, "val": val.digest}

    def images(self, skip: int = 0) -> Iterator[SourceImage]:
        """The images in the order of their numbers."""
        for manifest in (self._dataset.train, self._dataset.val):
            for i in range(min(skip, manifest.num_images), manifest.num_images):
                label = int(manifest.labels[i])
                name = manifest.name(i).removeprefix(manifest.classes[label] + "/")
                yield SourceImage(manifest.split, label, name, manifest.place(i))
            skip = max(0, skip - manifest.num_images)

    def surprises(self, counts: Mapping[str, NDArray[np.int64]]) -> list[str]:
        """None: whatever lies in the folders is the data set."""
        return []
