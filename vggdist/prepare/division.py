"""One folder of classes as a data set: a share of each class becomes validation images."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggdist.artifacts.contents import UNKNOWN
from vggdist.artifacts.names import shortened, spelled
from vggdist.artifacts.paths import quote
from vggdist.data.classes import require_several_classes
from vggdist.data.folders import Census, existing_folder, list_classes, names_in, render_skipped
from vggdist.data.manifest import Manifest, from_classes
from vggdist.data.manifest_file import SPLITS
from vggdist.data.read import READING_THREADS, map_images, read_encoded
from vggdist.errors import DataError
from vggdist.prepare.sources import SourceImage
from vggdist.terminal import Progress


class DividedFolder:
    """A folder of class folders, as a source of training and validation images.

    Args:
        root: the folder.
        share: of each class that is for validation, between 0 and 1.
        seed: of the choice.

    Attributes:
        report: how many images there are on either side, in lines for a person.

    Raises:
        DataError: there are no classes, they are divided already, or one cannot be.
    """

    resized = ""
    contents = UNKNOWN  # `identity` has their hashes

    def __init__(self, root: str | Path, share: float, seed: int) -> None:
        folder = existing_folder(root)
        if set(SPLITS) & set(names_in(folder)):
            raise DataError(
                f"{quote(folder)} is divided already, since it has {' or '.join(SPLITS)}/; leave "
                "--validation out, or name a folder of classes."
            )
        census = Census()
        self._images = from_classes(folder, "", list_classes(folder, census))
        require_several_classes(self._images)
        self._share, self._seed = share, seed
        self._hashes = _hash_images(self._images)
        self._is_val = choose_validation(self._images.labels, self._hashes, share, seed)
        self.classes, self.num_images = self._images.classes, self._images.num_images
        self._require_both_sides()
        self.report = self._report(census)

    def identity(self) -> dict[str, Any]:
        """The folder, its images and their contents, and how they are divided."""
        return {
            "folder": str(self._images.folder),
            "images": self._images.digest,
            "sha256": hashlib.sha256(b"".join(self._hashes)).hexdigest(),
            "validation": self._share,
            "seed": self._seed,
        }

    def images(self, skip: int = 0) -> Iterator[SourceImage]:
        """The training images, then the others, each in the order of their names."""
        train, val = np.flatnonzero(~self._is_val), np.flatnonzero(self._is_val)
        splits = ["train"] * len(train) + ["val"] * len(val)
        for split, image in list(zip(splits, [*train.tolist(), *val.tolist()], strict=True))[skip:]:
            label = int(self._images.labels[image])
            name = self._images.name(image).removeprefix(f"{self.classes[label]}/")
            yield SourceImage(split, label, name, self._images.place(image))

    def surprises(self, counts: Mapping[str, NDArray[np.int64]]) -> list[str]:
        """None: whatever lies in the folder is the data set."""
        return []

    def _require_both_sides(self) -> None:
        labels = self._images.labels
        one_sided = [
            f"{spelled(name)} ({(labels == label).sum()} images)"
            for label, name in enumerate(self.classes)
            if len(set(self._is_val[labels == label].tolist())) < 2
        ]
        if one_sided:
            raise DataError(
                f"In {quote(self._images.folder)} these classes cannot be divided, since they have "
                "a single image, or copies of one, or only images that are copies in other "
                f"classes: {shortened(one_sided)}. Add images to them, or remove these folders."
            )

    def _report(self, census: Census) -> str:
        num_val = int(self._is_val.sum())
        lines = [
            f"{quote(self._images.folder)}: {self.num_images - num_val:,} training and {num_val:,} "
            f"validation images ({num_val / self.num_images:.1%}), this share of each class; drawn "
            f"with seed {self._seed}",
        ]
        if copies := self.num_images - len(set(self._hashes)):
            lines.append(f"copies of other images, which stay on their side: {copies:,}")
        if census.skipped:
            lines.append(f"not read: {render_skipped(census.skipped)}")
        return "\n".join(lines) + "\n"


def choose_validation(
    labels: NDArray[np.int64], hashes: Sequence[bytes], share: float, seed: int
) -> NDArray[np.bool_]:
    """Which images are for validation: of each class a share, chosen by their contents and a seed.

    Equal images are on the same side, in all classes. An image's place in the order does not depend
    on the others, so that most stay where they were when images are added.

    Args:
        labels: (n,), ascending.
        hashes: of the contents of each image.
        share: between 0 and 1; each class with different images gets at least one on either side.
        seed: any number.
    """
    is_val: dict[bytes, bool] = {}
    for label in range(int(labels[-1]) + 1):
        of_class = [hashes[image] for image in np.flatnonzero(labels == label).tolist()]
        counts = Counter(of_class)
        wanted = min(max(1, math.floor(share * len(of_class) + 0.5)), len(of_class) - 1)
        chosen = sum(count for sha256, count in counts.items() if is_val.get(sha256))
        left = [sha256 for sha256 in counts if sha256 not in is_val]
        left.sort(key=lambda sha256: hashlib.sha256(b"%d " % seed + sha256).digest())
        for sha256 in left:
            is_val[sha256] = chosen + counts[sha256] <= wanted
            chosen += counts[sha256] * is_val[sha256]
        if chosen == 0 and len(left) > 1:  # all have more copies than are wanted
            is_val[min(left, key=lambda sha256: counts[sha256])] = True
    return np.array([is_val[sha256] for sha256 in hashes])


def _hash_images(images: Manifest) -> list[bytes]:
    """SHA-256 of each image; of its name, where it cannot be read, as the preparation will say."""

    def sha256(image: int) -> bytes:
        try:
            return hashlib.sha256(read_encoded(images.place(image)).data).digest()
        except (OSError, EOFError):
            return hashlib.sha256(images.place(image).path).digest()

    with (
        ThreadPoolExecutor(READING_THREADS) as pool,
        closing(Progress(images.num_images, unit="hashes", is_usual=False)) as progress,
    ):
        hashes = []
        for found in map_images(pool, sha256, range(images.num_images)):
            hashes.append(found)
            progress.advance()
    return hashes
