"""A training's own loader with a clock, for benchmarks of how fast images arrive.

While nobody takes batches a loader fills its queues. What lies there was made before the clock
started and would count as work done in no time, so `drain` throws it away first.
"""

from __future__ import annotations

import time
from typing import Self

from vggdist.config import BatchSplit, Config
from vggdist.data.batch import Batch
from vggdist.data.dataset import open_images
from vggdist.data.loader import open_training_loader
from vggdist.data.manifest import Manifest
from vggdist.distributed.process import Process
from vggdist.errors import ConfigError

# Of DALI, of the thread between it and the finished batches, and of the one that is waited for.
_OTHER_QUEUES = 4


def open_training_images(config: Config) -> Manifest:
    """The images of `data.root`; nothing is written.

    Raises:
        ConfigError: data.root is not set.
        DataError: there are no images.
    """
    if config.data.root is None:
        raise ConfigError(
            "data.root is not set, and there are no images to load without it; give a data set, "
            "a folder of class folders or a folder of images: data.root=/path/to/images."
        )
    return open_images(config.data.root)


class TimedImages:
    """This rank's micro batches as training would get them; close it, or use it in `with`.

    Args:
        manifest: the training set.
        first_step: the step whose images come first.

    Attributes:
        wait_seconds: how long `next` has waited in all; set it to 0 at will.
    """

    def __init__(
        self,
        manifest: Manifest,
        config: Config,
        split: BatchSplit,
        process: Process,
        first_step: int = 0,
    ) -> None:
        self.wait_seconds = 0.0
        self.num_queued = config.data.prefetch + config.data.read_ahead + _OTHER_QUEUES
        """Micro batches that may be ready, or partly so, after a pause."""
        self._loader = open_training_loader(config, manifest, split, process, first_step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._loader.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        started_at = time.perf_counter()
        batch = next(self._loader)
        self.wait_seconds += time.perf_counter() - started_at
        return batch

    def drain(self) -> None:
        """Takes whatever a pause may have left in the queues."""
        for _ in range(self.num_queued):
            next(self)

    def take(self, num_batches: int) -> float:
        """Seconds that the next micro batches take when nothing else is done."""
        started_at = time.perf_counter()
        for _ in range(num_batches):
            next(self)
        return time.perf_counter() - started_at
