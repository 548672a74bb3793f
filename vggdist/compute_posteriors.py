"""Computes posteriors of all images of a set, shared by the ranks: each image once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggdist.artifacts.posteriors import Posteriors, Source
from vggdist.config import Config
from vggdist.data.loader import EvaluationLoader
from vggdist.data.manifest import Manifest
from vggdist.data.plan import evaluation_share
from vggdist.data.whole_images import WholeImageLoader, WholeImages
from vggdist.distributed import process as world
from vggdist.distributed.precision import DTYPES
from vggdist.distributed.process import Process
from vggdist.evaluation.scores import (
    center_crop_posteriors,
    dense_posteriors,
    most_pixels,
    multi_crop_posteriors,
)
from vggdist.model.dense import DenseNetwork
from vggdist.terminal import Progress

GROUP_SIZE = 32
"""Images decoded together; their windows share each pass over fc6."""

_Part = tuple[Source, NDArray[np.int64], Tensor]
"""The source, image numbers (n,) and posteriors (n, num_classes)."""


class PosteriorsOfRank:
    """Computes a rank's share of posteriors, and merges all shares on the main rank."""

    def __init__(
        self,
        config: Config,
        process: Process,
        network: DenseNetwork,
        images: Manifest,
        storage: str,
    ) -> None:
        self._config, self._process, self._network = config, process, network
        self._images, self._storage = images, storage
        self._share = evaluation_share(images.num_images, process.rank, process.world_size)
        self._max_pixels = most_pixels(config.evaluation.max_megapixels, process.device)
        self._loading: dict[str, Any] = {
            "rank": process.rank,
            "world_size": process.world_size,
            "device": process.device,
            "dtype": DTYPES[config.resolved_precision],
            "num_threads": config.data.num_threads or process.num_cores,
        }

    def compute(self, sources: Sequence[Source]) -> Iterator[Posteriors | None]:
        """Each source's posteriors on the main rank, None on the others; collective."""
        for source in sources:
            if source.protocol == "center-crop":
                yield from self._collect([source], self._center_crops(source))
        whole = [source for source in sources if source.protocol != "center-crop"]
        if whole:
            yield from self._collect(whole, self._whole_images(whole))

    def _center_crops(self, source: Source) -> Iterator[_Part]:
        with EvaluationLoader(
            self._images,
            self._config.data,
            scale=source.scale,
            batch_size=self._config.evaluation.micro or GROUP_SIZE,
            **self._loading,
        ) as batches:
            for batch in batches:
                found = center_crop_posteriors(
                    self._network, batch.images, source.flip, self._max_pixels
                )
                yield source, batch.index, found

    def _whole_images(self, sources: Sequence[Source]) -> Iterator[_Part]:
        """Reads and decodes every image once for all `sources`."""
        with WholeImageLoader(
            self._images,
            self._config.data,
            scales=sorted({source.scale for source in sources}),
            group_size=GROUP_SIZE,
            **self._loading,
        ) as groups:
            for group in groups:
                for source in sources:
                    parts = [part for part in group if part.scale == source.scale]
                    for part, posteriors in zip(parts, self._apply(source, parts), strict=True):
                        yield source, part.index, posteriors

    def _apply(self, source: Source, images: list[WholeImages]) -> list[Tensor]:
        if source.protocol == "multi-crop":
            return multi_crop_posteriors(self._network, images, source.flip, self._max_pixels)
        average = self._config.evaluation.spatial_average
        return dense_posteriors(self._network, images, source.flip, average, self._max_pixels)

    def _collect(
        self, sources: Sequence[Source], parts: Iterable[_Part]
    ) -> Iterator[Posteriors | None]:
        """Sorts this rank's parts, then merges all ranks' shares."""
        shape = len(self._share), len(self._images.classes)
        rows = {source: np.zeros(shape, self._storage) for source in sources}
        counts = {source: np.zeros(len(self._share), np.int64) for source in sources}
        progress = self._start_progress(len(sources))
        for source, index, posteriors in parts:
            places = np.searchsorted(self._share, index)
            rows[source][places] = posteriors.cpu().numpy()
            counts[source][places] += 1
            progress(len(index))
        progress(0)
        for source in sources:
            assert (counts[source] == 1).all(), "an image was not evaluated exactly once"
            yield self._put_together(source, rows[source])

    def _put_together(self, source: Source, rows: NDArray[Any]) -> Posteriors | None:
        images, world_size = self._images, self._process.world_size
        most = len(evaluation_share(images.num_images, 0, world_size))
        gathered = world.gather_rows(torch.from_numpy(rows).to(self._process.device), most)
        if gathered is None:
            return None
        shares = [
            evaluation_share(images.num_images, rank, world_size) for rank in range(world_size)
        ]
        values = np.empty((images.num_images, rows.shape[1]), rows.dtype)
        values[np.concatenate(shares)] = gathered.cpu().numpy()
        names = tuple(images.name(image) for image in range(images.num_images))
        return Posteriors(source, values, images.labels, names, images.classes)

    def _start_progress(self, num_sources: int) -> Callable[[int], None]:
        """A function that counts this rank's images for the main rank's progress line about all."""
        total, done, shown = self._images.num_images * num_sources, 0, 0
        if not self._process.is_main:
            return lambda _: None
        progress = Progress(total)

        def advance(num_images: int) -> None:
            nonlocal done, shown
            if num_images == 0:
                progress.close()
            done += num_images
            before, shown = shown, min(total, done * self._process.world_size)
            progress.advance(shown - before)

        return advance
