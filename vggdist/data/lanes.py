"""Makes batches: plans, reads ahead, decodes, and replaces bad images.

A lane is a DALI pipeline and the thread that takes pixels from it and resizes them; batch b belongs
to lane b mod lanes. While one pipeline is between two batches, the other keeps the cores busy.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Set
from typing import Any, Generic

import torch

from vggdist.data.bad_image import BadImage, BadImages
from vggdist.data.decode import EncodedBatch, Graph, Made, UndecodableError, decode
from vggdist.data.manifest import Manifest
from vggdist.data.pillow import decoding_problem
from vggdist.data.plan import Samples
from vggdist.data.read import EncodedImage, Reader

_DECODING_THREADS_PER_LANE = 4  # resizing takes a sixth of the time of decoding

BatchSamples = Callable[[int, Set[int]], Samples | None]
"""(number of a batch, bad images to replace) -> the samples of the batch, None after the last."""


class Lanes(Generic[Made]):
    """All batches of a loader, each made in the thread of its lane.

    Args:
        manifest: the images.
        samples: the samples of each batch; a pure function, so that batches can be planned again.
        bad_images: those that `samples` replaces, and how many it may.
        graph: what is decoded.
        make: (samples, what the graph has decoded) -> batch; called in all lanes.
        read_ahead: batches to read ahead of the decoding, over all lanes.
        num_threads: decoding threads of all lanes.
        max_lanes: none for as many as `num_threads` need.

    Attributes:
        device: of the batches.
        num_lanes: how many threads may call `batches`, each for its own lane.
    """

    def __init__(
        self,
        manifest: Manifest,
        samples: BatchSamples,
        bad_images: BadImages,
        graph: Graph,
        make: Callable[[Samples, Any], Made],
        *,
        read_ahead: int,
        num_threads: int,
        max_lanes: int | None = None,
    ) -> None:
        self._samples, self._bad_images = samples, bad_images
        self._graph, self._make, self._num_threads = graph, make, num_threads
        self.device = graph.device
        # One pipeline keeps a GPU busy, and takes its memory.
        self.num_lanes = 1
        if self.device.type == "cpu":
            wanted = max(min(2, num_threads), -(-num_threads // _DECODING_THREADS_PER_LANE))
            self.num_lanes = min(wanted, max_lanes or wanted)
        self._read_ahead = -(-read_ahead // self.num_lanes)
        self._reader = Reader(manifest, graph.upright)

    def close(self) -> None:
        """Ends the reading threads."""
        self._reader.close()

    def batches(self, lane: int) -> Generator[Made]:
        """The batches of a lane, from the first."""
        num_threads = self._num_threads // self.num_lanes
        num_threads += lane < self._num_threads % self.num_lanes
        number, failed_at = lane, -1
        while True:
            encoded = self._encoded_batches(number)
            try:
                with contextlib.closing(
                    decode(encoded, self._graph, num_threads, self._complete)
                ) as decoded:
                    for batch in decoded:
                        yield batch
                        number += self.num_lanes
                    return
            except UndecodableError as failure:
                # If every image decodes alone, DALI gets a second chance at the same batch.
                if not failure.bad and failed_at == number:
                    raise
                failed_at = number
                for image, content in failure.bad.items():
                    self._bad_images.add(BadImage(image, decoding_problem(content)))

    def _encoded_batches(self, number: int) -> Generator[EncodedBatch]:
        """A lane's batches from `number` on; files are read a few batches ahead."""
        ahead: deque[tuple[Samples, Iterator[EncodedImage | str]]] = deque()
        while True:
            while len(ahead) < self._read_ahead:
                samples = self._planned(number + len(ahead) * self.num_lanes)
                if samples is None:
                    break
                ahead.append((samples, self._reader.read(samples.image.tolist())))
            if not ahead:
                return
            samples, read = ahead.popleft()
            while True:
                results = list(read)
                images = [result for result in results if not isinstance(result, str)]
                if len(images) == len(results):
                    break
                for image, result in zip(samples.image.tolist(), results, strict=True):
                    if isinstance(result, str):
                        self._bad_images.add(BadImage(image, result))
                samples = self._planned(number)
                assert samples is not None
                read = self._reader.read(samples.image.tolist())
            yield EncodedBatch(samples, images)
            number += self.num_lanes

    def _planned(self, number: int) -> Samples | None:
        return self._samples(number, self._bad_images.numbers())

    def _complete(self, samples: Samples, decoded: Any) -> Made:
        made = self._make(samples, decoded)
        if self.device.type == "cuda":
            # DALI uses its memory again, and the consumer reads on another stream.
            torch.cuda.current_stream().synchronize()
        return made
