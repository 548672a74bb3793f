"""The sample plan: what happens to each image of a run, as a pure function of seed and position in
the run.

Position p counts the images of the whole run: step x global batch + place in the global batch.
Epoch e = p div N shows each of the N images once, in the order of a permutation determined by
(seed, e). Scale, crop, flip, colour shift and dropout key are determined by (seed, p). No random
stream is ever advanced, so a step's batch depends neither on the number of ranks nor on where the
run was resumed, and the data state of a run is one integer.

If the permutation selects an image known to be bad, another replaces it, determined by (seed, p)
and the set of bad images. So a run that finds a bad file when it first needs it sees the same
images as a run that knew it from the start.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vggdist.config import DataConfig
from vggdist.data.geometry import CENTER, POSITIONS

# The second half of the Philox key: an independent generator for each purpose.
_PERMUTATION, _DRAWS, _SUBSTITUTES = 1, 2, 3
_COUNTERS_PER_POSITION = 2
_WORDS_PER_COUNTER = 4


@dataclass(frozen=True, eq=False)
class Samples:
    """n images, and what is done to each."""

    image: NDArray[np.int64]
    """(n,), numbers of the images in their manifest."""
    scale: NDArray[np.int32]
    """(n,), S: the rescaled shorter side, pixels."""
    position: NDArray[np.int32]
    """(n, 2), position of the crop along y and x, in [0, 65536)."""
    flip: NDArray[np.bool_]
    """(n,), whether the crop is mirrored."""
    color_draw: NDArray[np.float32]
    """(n, 3), factors of the colour shift; see `data/color.py`."""
    dropout_key: NDArray[np.int64]
    """(n,), not negative; the image's dropout masks are derived from it."""

    def __len__(self) -> int:
        return len(self.image)


class SamplePlan:
    """Every batch of a training.

    Args:
        num_images: N, images of the training set.
        data: scales, flip and colour shift.
        global_batch: images of one step over all ranks.
        seed: in [0, 2**63).
    """

    def __init__(self, num_images: int, data: DataConfig, global_batch: int, seed: int) -> None:
        assert num_images > 0
        assert global_batch > 0
        self.num_images = num_images
        self.global_batch = global_batch
        self._data = data
        self._seed = seed
        # Two, because a batch may span two epochs. For ImageNet an entry is 10 MB and takes 0.2 s.
        self._permutation = functools.lru_cache(maxsize=2)(self._draw_permutation)

    def batch(
        self,
        step: int,
        start: int = 0,
        stop: int | None = None,
        known_bad: Set[int] = frozenset(),
    ) -> Samples:
        """Images [start, stop) of the global batch of a step, counted from 0; by default all.

        Args:
            known_bad: images that cannot be shown; must not be all images.
        """
        stop = self.global_batch if stop is None else stop
        assert 0 <= start <= stop <= self.global_batch
        first = step * self.global_batch
        return self._samples(first + start, first + stop, known_bad)

    def _samples(self, first: int, last: int, known_bad: Set[int]) -> Samples:
        words = _philox_words(
            (self._seed, _DRAWS),
            (first * _COUNTERS_PER_POSITION, 0),
            (last - first) * _COUNTERS_PER_POSITION * _WORDS_PER_COUNTER,
        ).reshape(last - first, _COUNTERS_PER_POSITION * _WORDS_PER_COUNTER)
        place, key, normals = words[:, 1], words[:, 2], words[:, 4:8]
        low, high = self._data.train_scale_min, self._data.train_scale_max
        # (word x range) >> 32 instead of a remainder: no value is favoured by more than one part in
        # 2**32 / range.
        scale = low + (
            ((words[:, 0] >> np.uint64(32)) * np.uint64(high - low + 1)) >> np.uint64(32)
        )
        position = np.stack(
            [place & np.uint64(POSITIONS - 1), (place >> np.uint64(16)) & np.uint64(POSITIONS - 1)],
            axis=1,
        )
        flip = ((place >> np.uint64(32)) & np.uint64(1)).astype(bool) & self._data.flip
        return Samples(
            image=self._images(first, last, known_bad),
            scale=scale.astype(np.int32),
            position=position.astype(np.int32),
            flip=flip,
            color_draw=(_normals(normals)[:, :3] * self._data.color_shift).astype(np.float32),
            dropout_key=(key >> np.uint64(1)).astype(np.int64),
        )

    def _images(self, first: int, last: int, known_bad: Set[int]) -> NDArray[np.int64]:
        position = np.arange(first, last, dtype=np.int64)
        epoch, place = np.divmod(position, self.num_images)
        image = np.empty_like(position)
        for shown in np.unique(epoch):
            chosen = epoch == shown
            image[chosen] = self._permutation(int(shown))[place[chosen]]
        if known_bad:
            for i in np.flatnonzero(np.isin(image, list(known_bad))):
                image[i] = self._substitute(int(position[i]), known_bad)
        return image

    def _substitute(self, position: int, known_bad: Set[int]) -> int:
        """The first good image of a random sequence determined by (seed, position)."""
        assert len(known_bad) < self.num_images
        for attempt in itertools.count():
            word = _philox_words((self._seed, _SUBSTITUTES), (position, attempt), 1)[0]
            image = (int(word) * self.num_images) >> 64
            if image not in known_bad:
                return image
        raise AssertionError("the sequence has no end")

    def _draw_permutation(self, epoch: int) -> NDArray[np.int64]:
        words = _philox_words((self._seed, _PERMUTATION), (0, epoch), self.num_images)
        return np.argsort(words, kind="stable")


def evaluation_samples(images: ArrayLike, scale: int) -> Samples:
    """Centre crops at shorter side Q = `scale`: no flip, no colour shift, dropout keys 0."""
    image = np.asarray(images, dtype=np.int64)
    n = len(image)
    return Samples(
        image=image,
        scale=np.full(n, scale, dtype=np.int32),
        position=np.full((n, 2), CENTER, dtype=np.int32),
        flip=np.zeros(n, dtype=bool),
        color_draw=np.zeros((n, 3), dtype=np.float32),
        dropout_key=np.zeros(n, dtype=np.int64),
    )


def evaluation_share(num_images: int, rank: int, world_size: int) -> NDArray[np.int64]:
    """The images that `rank` evaluates: every `world_size`-th, so that the ranks together have each
    image once.
    """
    assert 0 <= rank < world_size
    return np.arange(rank, num_images, world_size, dtype=np.int64)


def _philox_words(key: tuple[int, int], counter: tuple[int, int], count: int) -> NDArray[np.uint64]:
    """`count` random 64-bit words, starting at counter (low, high).

    Raw words, because numpy guarantees the stream of a bit generator, but not that of `Generator`'s
    methods.
    """
    generator = np.random.Philox(
        key=np.array(key, dtype=np.uint64), counter=np.array([*counter, 0, 0], dtype=np.uint64)
    )
    return generator.random_raw(count)


def _normals(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Standard normal numbers by the Box-Muller transform, (n, 4) from (n, 4) words."""
    uniform = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53  # [0, 1), 53 bits
    # Contiguous for every n: for strided arrays numpy may use another routine, one bit off.
    radius = np.sqrt(-2.0 * np.log(np.ascontiguousarray(1.0 - uniform[:, :2])))
    angle = 2.0 * np.pi * np.ascontiguousarray(uniform[:, 2:])
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
