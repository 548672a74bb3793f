"""Training speed, and the time spent waiting for images."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from vggdist.data.batch import Batch
from vggdist.training.ranges import named


class Throughput:
    """Time spent in steps, without evaluations and checkpoints; a window lasts from log to log.

    Attributes:
        seconds, images: of all steps of the training, including those before a resume.
    """

    def __init__(self, device: torch.device, seconds: float = 0.0, images: int = 0) -> None:
        self.seconds = seconds
        self.images = images
        self._device = device
        self._started_at = time.monotonic()
        self._window_seconds = self._window_wait = 0.0
        self._window_images = 0
        self._is_paused = False

    def add_step(self, images: int, wait_seconds: float) -> None:
        """Adds a step of `images` images over all ranks, in which this rank waited so long."""
        self._window_images += images
        self._window_wait += wait_seconds

    def pause(self) -> None:
        """Stops the clock for work other than steps."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._window_seconds += time.monotonic() - self._started_at

    def resume(self) -> None:
        """Restarts the clock."""
        self._started_at = time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The clock stands still for work other than steps; may be nested."""
        if self._is_paused:
            yield
            return
        self.pause()
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False
            self.resume()

    def close_window(
        self, exchange_wait: Callable[[], float | None] = lambda: None
    ) -> dict[str, float]:
        """Images per second of all ranks, with and without waiting; waits. Starts a window.

        Args:
            exchange_wait: tells the seconds of the window in which this rank waited for others, if
                they are known; called when the device is done.
        """
        self.pause()
        waited = exchange_wait()
        seconds, wait, images = self._window_seconds, self._window_wait, self._window_images
        self.seconds += seconds
        self.images += images
        self._window_seconds = self._window_wait = 0.0
        self._window_images = 0
        self.resume()
        if images == 0 or seconds == 0.0:
            return {}
        values = {
            "images_per_second": images / seconds,
            "images_per_second_without_wait": images / max(seconds - wait, 1e-9),
            "data_wait": min(1.0, wait / seconds),
        }
        if waited is not None:
            values["exchange_wait"] = min(1.0, waited / seconds)
        return values

    def so_far(self) -> dict[str, float]:
        """Images per second and data wait of the window, by the host's clock: it does not wait."""
        seconds, images = self._seconds_so_far, self._window_images
        if images == 0 or seconds == 0.0:
            return {}
        return {
            "images_per_second": images / seconds,
            "data_wait": min(1.0, self._window_wait / seconds),
        }

    @property
    def seconds_per_image(self) -> float:
        """Over all steps so far, by the host's clock."""
        images = self.images + self._window_images
        return (self.seconds + self._seconds_so_far) / images if images else 0.0

    @property
    def _seconds_so_far(self) -> float:
        return self._window_seconds + time.monotonic() - self._started_at

    @property
    def images_per_second(self) -> float:
        """Over all closed windows."""
        return self.images / self.seconds if self.seconds else 0.0


class Waiting:
    """Passes on batches and sums the time spent waiting for them."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        started_at = time.monotonic()
        try:
            with named("input"):
                return next(self._batches)
        finally:
            self.seconds += time.monotonic() - started_at
