"""Makes batches: plans, reads ahead, decodes, and replaces bad images.

Everything here runs in the loader's threads, one for each lane. A lane is a DALI pipeline and the
thread that takes windows from it and resizes them; batch b belongs to lane b mod lanes. While one
pipeline is between two batches, the other keeps the cores busy.

Subclasses define what is made of the images: batches of crops here, whole images in
`data/whole_images.py`.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Set
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggdist.artifacts.paths import quote
from vggdist.config import DataConfig
from vggdist.data.bad_image import BadImage, decoding_problem
from vggdist.data.batch import Batch
from vggdist.data.color import subtracted_mean
from vggdist.data.decode import (
    CropFormat,
    Finished,
    ImageFormat,
    ImagePipeline,
    UndecodableError,
    Work,
)
from vggdist.data.manifest import Manifest
from vggdist.data.plan import Samples
from vggdist.data.read import Pending, ReadAhead
from vggdist.errors import DataError

READING_THREADS = 16
"""As many as there is work for."""
_DECODING_THREADS_PER_LANE = 4  # resizing takes a sixth of the time of decoding

Made = TypeVar("Made")
"""The consumer's form of a batch."""
BatchSamples = Callable[[int, Set[int]], Samples | None]
"""(number of a batch, images known to be bad) -> the samples of the batch, None after the last."""


class Producer(ABC, Generic[Finished, Made]):
    """Makes all batches, in lanes.

    Args:
        samples: the samples of each batch; a pure function, so that batches can be planned again.
        batch_size: images of the largest batch.
        image_format: what the pipelines make of them.
        num_threads: decoding threads of all lanes.

    Attributes:
        num_lanes: how many threads may call `batches`, each for its own lane.
        max_bad: how many bad images `samples` may replace; one more is an error.
        remedy: end of the error message if `max_bad` is 0.
        known_bad: images that are bad, as far as others know.
    """

    def __init__(
        self,
        manifest: Manifest,
        samples: BatchSamples,
        batch_size: int,
        data: DataConfig,
        image_format: ImageFormat[Finished],
        num_threads: int,
    ) -> None:
        self.max_bad = 0
        self.remedy = "An evaluation counts every image, so none takes its place."
        self.known_bad: Callable[[], Set[int]] = frozenset
        self.device = image_format.device
        self._manifest, self._samples, self._data = manifest, samples, data
        self._batch_size, self._format, self._num_threads = batch_size, image_format, num_threads
        # One pipeline keeps a GPU busy, and takes its memory.
        self.num_lanes = (
            max(min(2, num_threads), -(-num_threads // _DECODING_THREADS_PER_LANE))
            if self.device.type == "cpu"
            else 1
        )
        self._reader = ReadAhead(manifest, READING_THREADS)
        self._found: set[int] = set()
        self._news: list[BadImage] = []
        self._lock = threading.Lock()  # of these two

    @abstractmethod
    def tensors(self, made: Made) -> Iterable[Tensor]:
        """The tensors that a GPU's allocator must not reuse while the consumer reads them."""

    @abstractmethod
    def _made(self, samples: Samples, finished: Finished, bad: tuple[BadImage, ...]) -> Made:
        """The consumer's form of a batch.

        Args:
            samples: of the batch.
            finished: what the pipeline made of them.
            bad: bad images found since the previous batch.
        """

    def close(self) -> None:
        """Ends the reading threads."""
        self._reader.close()

    def batches(self, lane: int) -> Generator[Made]:
        """The batches of a lane, from the first."""
        num_threads = self._num_threads // self.num_lanes
        num_threads += lane < self._num_threads % self.num_lanes
        number, failed_at = lane, -1
        while True:
            work = self._work(number)
            try:
                with ImagePipeline(work, self._batch_size, self._format, num_threads) as pipeline:
                    for done, finished in pipeline:
                        yield self._complete(done.samples, finished)
                        number += self.num_lanes
                    return
            except UndecodableError as failure:
                # If every image decodes alone, DALI gets a second chance at the same batch.
                if not failure.bad and failed_at == number:
                    raise
                failed_at = number
                for image, encoded in failure.bad.items():
                    self._handle_bad(BadImage(image, decoding_problem(encoded)))

    def _work(self, number: int) -> Generator[Work]:
        """A lane's work from batch `number` on; files are read a few batches ahead."""
        ahead: deque[tuple[Samples, Pending]] = deque()
        while True:
            while len(ahead) < -(-self._data.read_ahead // self.num_lanes):
                samples = self._planned(number + len(ahead) * self.num_lanes)
                if samples is None:
                    break
                ahead.append((samples, self._reader.begin(samples.image.tolist())))
            if not ahead:
                return
            yield self._read(number, *ahead.popleft())
            number += self.num_lanes

    def _read(self, number: int, samples: Samples, pending: Pending) -> Work:
        """A batch whose images are all readable and have a size."""
        while True:
            read = pending.wait()
            problems = {
                int(image): result
                for image, result in zip(samples.image, read, strict=True)
                if isinstance(result, str)
            }
            if not problems:
                return Work([image for image in read if not isinstance(image, str)], samples)
            for image, reason in problems.items():
                self._handle_bad(BadImage(image, reason))
            again = self._planned(number)
            assert again is not None
            samples, pending = again, self._reader.begin(again.image.tolist())

    def _planned(self, number: int) -> Samples | None:
        bad = self._found | self.known_bad()
        if len(bad) == self._manifest.num_images:
            raise DataError(
                f"No image in {quote(self._manifest.folder)} can be used. Check the disk, and "
                "list the reasons with `vggdist check "
                f"{quote(self._manifest.folder.parent)}`."
            )
        return self._samples(number, bad)

    def _handle_bad(self, bad: BadImage) -> None:
        """Replaces an image from now on, if that is allowed."""
        with self._lock:
            if bad.image not in self._found:
                self._found.add(bad.image)
                self._news.append(bad)
        sentence = bad.sentence(self._manifest)
        if self.max_bad == 0:
            raise DataError(f"{sentence}. Replace it with a good copy. {self.remedy}")
        if len(self._found) > self.max_bad:
            raise too_many_bad(len(self._found), self.max_bad, self._manifest, sentence)

    def _complete(self, samples: Samples, finished: Finished) -> Made:
        with self._lock:
            news, self._news = tuple(self._news), []
        made = self._made(samples, finished, news)
        if self.device.type == "cuda":
            torch.cuda.current_stream().synchronize()  # the consumer reads on another stream
        return made

    def _on_device(self, numbers: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(numbers).to(self.device)


class BatchProducer(Producer[Tensor, Batch]):
    """Makes batches of crops."""

    def __init__(
        self,
        manifest: Manifest,
        samples: BatchSamples,
        batch_size: int,
        data: DataConfig,
        device: torch.device | str,
        dtype: torch.dtype,
        num_threads: int,
    ) -> None:
        image_format = CropFormat(
            data.crop_size,
            with_index(device),
            hardware_decoder_share=data.hardware_decoder_share,
        )
        super().__init__(manifest, samples, batch_size, data, image_format, num_threads)
        self._dtype = dtype

    def tensors(self, made: Batch) -> Iterable[Tensor]:
        return made.pixels, made.mean, made.labels, made.dropout_keys

    def _made(self, samples: Samples, finished: Tensor, bad: tuple[BadImage, ...]) -> Batch:
        return Batch(
            finished,
            self._on_device(subtracted_mean(self._data.mean, samples.color_draw)),
            self._on_device(self._manifest.labels[samples.image]),
            self._on_device(samples.dropout_key),
            samples.image,
            self._dtype,
            self._data.std,
            bad,
        )


def too_many_bad(found: int, allowed: int, manifest: Manifest, last: str) -> DataError:
    """The error for more bad images than a training allows."""
    return DataError(
        f"{found} of {manifest.num_images} images could not be used, more than the {allowed} that "
        f"data.max_unusable allows. {last}. Check the disk, and list all bad images "
        f"with `vggdist check {quote(manifest.folder.parent)}`."
    )


def with_index(device: torch.device | str) -> torch.device:
    """`device` with a number if it is a GPU: the caller's current one is not the producer's."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
