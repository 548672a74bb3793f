"""One rank of an evaluation: writes a trained network's posteriors of all images to files."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggdist.artifacts.contents import UNKNOWN, ContentsDigest
from vggdist.artifacts.names import explain_twins, listed, render_labels, sentences
from vggdist.artifacts.paths import quote
from vggdist.artifacts.posteriors import (
    Posteriors,
    Protocol,
    Source,
    open_posteriors,
    save_posteriors,
)
from vggdist.artifacts.run_files import CHECKPOINTS
from vggdist.artifacts.run_folder import open_weights, precision_of
from vggdist.artifacts.weights import Description, Weights
from vggdist.config import Config
from vggdist.data.classes import explain_nesting
from vggdist.data.dataset import open_split
from vggdist.data.geometry import require_scales
from vggdist.data.glance import require_whole
from vggdist.data.loader import EvaluationLoader
from vggdist.data.manifest import Manifest
from vggdist.data.manifest_file import require_usable, write_classes
from vggdist.data.plan import evaluation_share
from vggdist.data.survey import survey_images
from vggdist.data.whole_images import WholeImageLoader, WholeImages
from vggdist.distributed import process as world
from vggdist.distributed.precision import DTYPES, resolve_precision
from vggdist.distributed.process import Process
from vggdist.distributed.rank import on_main
from vggdist.errors import DataError, StoppedError, WeightsError
from vggdist.evaluation.report import Evaluated
from vggdist.evaluation.scores import (
    center_crop_posteriors,
    dense_posteriors,
    most_pixels,
    multi_crop_posteriors,
)
from vggdist.model.dense import DenseNetwork
from vggdist.model.loading import build_network
from vggdist.terminal import Progress, counted
from vggdist.training.flags import end_if_asked, until_stopped
from vggdist.training.signals import StopSignal

logger = logging.getLogger("vggdist")

T = TypeVar("T")

GROUP_SIZE = 32
"""Images decoded together; their windows share each pass over fc6."""


@dataclass(frozen=True)
class Request:
    """What to evaluate, and how."""

    network: str
    """A run folder, RUN@best, a checkpoint or a weights file."""
    root: str
    """The data set."""
    split: Literal["train", "val"] = "val"
    protocols: tuple[Protocol, ...] = ("dense",)
    scales: tuple[int, ...] = ()
    """Q, pixels; if empty, the middle of the training scales (section 4.1)."""
    flip: bool | None = None
    """Whether to average over mirror images; None: in the paper's protocols, dense and multi-crop,
    but not for the centre crop."""
    out: Path | None = None
    """Folder for the posteriors files; None: `posteriors` next to the weights."""
    storage: Literal["float32", "float16"] = "float32"
    """Type of the stored posteriors."""
    overrides: tuple[str, ...] = ()
    """`section.key=value`."""


def evaluate(
    request: Request, stop: StopSignal | None = None, heeds_signals: bool = False
) -> Evaluated | None:
    """Computes the missing posteriors files; collective.

    Args:
        request: what to evaluate.
        stop: a handler that is already active; a signal ends it between two groups of images.
        heeds_signals: whether a handler starts when the ranks have joined; in the main thread only.

    Returns:
        On the main rank, all files in the order of protocols and scales; None on the others.

    Raises:
        StoppedError: on all ranks, if any was asked to stop; finished files are kept.
        VggdistError: a problem that the user can solve.
    """
    weights = open_weights(request.network)
    network = weights.description
    config = network.configure(request.root, request.overrides)
    scales = require_scales(request.scales or [network.default_scale], network.crop_size)
    with ExitStack() as stack:
        process = stack.enter_context(world.joined(config.device))
        if stop is None:
            stop = StopSignal(speaks=process.is_main)
            if heeds_signals:
                stack.enter_context(stop)
        trained = precision_of(request.network)
        config, why = resolve_precision(config, process, trained=trained)
        images = open_split(request.root, request.split)
        contents = _survey(images, process, stop)
        images = _require_same_classes(images, request, network)
        dtype = DTYPES[config.resolved_precision]
        dense = DenseNetwork(build_network(weights, config.model), dtype, process.device)
        folder = request.out or _default_folder(weights.path)
        wanted = {
            _file(folder, source): source
            for source in _sources(request, scales, weights, config, images, contents)
        }
        missing = _missing(wanted, request.storage)
        if missing:
            require_whole([images], process)
        num_bytes = len(missing) * images.num_images * len(images.classes)
        num_bytes *= np.dtype(request.storage).itemsize
        on_main(process, _require_writable, folder, num_bytes)
        if process.is_main:
            _announce(weights, images, process, config, len(wanted) - len(missing))
            if not network.classes:
                file = write_classes(images.classes, folder)
                logger.info(
                    "%s has no class names; %s",
                    quote(weights.path),
                    render_labels(images.classes, file),
                )
            logger.info(why)
        run = PosteriorsOfRank(config, process, dense, images, request.storage, stop)
        end_if_asked(stop, process)
        started_at = time.monotonic()
        with stop.answering("stopping; files that are finished are kept"):
            for posteriors in run.compute(missing):
                on_main(process, _save, folder, posteriors)
        seconds = time.monotonic() - started_at
        computed = len(missing) * images.num_images
        return Evaluated(tuple(wanted), computed, seconds) if process.is_main else None


def _survey(images: Manifest, process: Process, stop: StopSignal) -> ContentsDigest:
    """The digest of the images' current contents; the main rank reads them and logs remarks."""

    def look() -> ContentsDigest:
        survey = survey_images(images)
        for remark in survey.remarks:
            logger.info("%s", remark)
        return survey.splits[0].contents

    return world.from_main(on_main(process, stop.run, look) or UNKNOWN)


def _require_same_classes(images: Manifest, request: Request, network: Description) -> Manifest:
    """The images, with the network's labels.

    Raises:
        DataError: their classes are not the network's, or some are bad.
    """
    where = f"{quote(request.root)} ({request.split})"
    if len(images.classes) != network.model.fc8_width:
        raise DataError(
            sentences(
                f"{where} has {len(images.classes)} classes, and the network tells "
                f"{network.model.fc8_width} apart; evaluate it on images of the classes that it "
                "was trained on.",
                explain_nesting(images),
            )
        )
    own, given = set(network.classes), set(images.classes)
    if own and own != given:
        raise DataError(
            sentences(
                f"the classes of {where} are not those that the network was trained on: only the "
                f"images have {listed(sorted(given - own))}, and only the weights file has "
                f"{listed(sorted(own - given))}.",
                explain_twins(own ^ given),
                "Name the folders as in training.",
            )
        )
    require_usable([images], request.root)
    return images.with_classes(network.classes) if own else images


def _sources(
    request: Request,
    scales: Sequence[int],
    weights: Weights,
    config: Config,
    images: Manifest,
    contents: ContentsDigest,
) -> Iterator[Source]:
    for protocol, scale in product(dict.fromkeys(request.protocols), scales):
        yield Source(
            network=weights.description.name,
            train_scale=weights.description.train_scale,
            weights=weights.sha256,
            protocol=protocol,
            scale=scale,
            flip=protocol != "center-crop" if request.flip is None else request.flip,
            spatial_average=config.evaluation.spatial_average if protocol == "dense" else "",
            precision=config.resolved_precision,
            images=images.digest,
            contents=contents,
        )


def _default_folder(weights: Path) -> Path:
    """`posteriors` in the run folder of the weights, or next to a weights file."""
    if weights.parent.parent.name == CHECKPOINTS:
        return weights.parent.parent.parent / "posteriors"
    return weights.parent / "posteriors"


def _file(folder: Path, source: Source) -> Path:
    """The file of a source; its name differs for other networks, images or settings."""
    variant = "" if source.flip else "-unflipped"
    variant += "-after-softmax" if source.spatial_average == "posteriors" else ""
    name = f"{source.network}-{source.protocol}-{source.scale}{variant}"
    return folder / f"{name}-{source.weights[:8]}-{source.images[:8]}.npz"


def _require_writable(folder: Path, num_bytes: int) -> None:
    """Raises a WeightsError before computing anything that could not be saved."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise WeightsError(
            f"posteriors files cannot be written to {quote(folder)}: {error}. Choose another "
            "folder with --out."
        ) from error
    if (free := shutil.disk_usage(folder).free) < num_bytes:
        raise WeightsError(
            f"posteriors files cannot be written to {quote(folder)}: {free / 1e6:,.1f} MB are free "
            f"there, and they take {num_bytes / 1e6:,.1f} MB. Choose another folder with --out, or "
            "half the space with --storage float16."
        )


def _save(folder: Path, posteriors: Posteriors | None) -> None:
    assert posteriors is not None
    save_posteriors(_file(folder, posteriors.source), posteriors)


def _missing(wanted: Mapping[Path, Source], storage: str) -> list[Source]:
    """The sources without a valid file, as found by the main rank."""
    missing = [source for file, source in wanted.items() if not _holds(file, source, storage)]
    return world.from_main(missing)


def _holds(path: Path, source: Source, storage: str) -> bool:
    """Whether a file exists, is intact, of the same images and at least as exact as `storage`."""
    try:
        file = open_posteriors(path)
    except WeightsError:
        return False
    if file.source != source or file.dtype.itemsize < np.dtype(storage).itemsize:
        return False
    same = file.source.contents.same_as(source.contents)
    if not same:
        logger.info(
            "%s is computed again: %s",
            path,
            "it is of other images under the same names"
            if same is False
            else "whether the images are what they were then cannot be told",
        )
    return bool(same)


def _announce(
    weights: Weights, images: Manifest, process: Process, config: Config, num_there: int
) -> None:
    logger.info(
        "%s of %s on %s of %s; %s, %s on %s",
        weights.description.name,
        quote(weights.path),
        counted(images.num_images, "image"),
        quote(images.folder),
        config.precision,
        counted(process.world_size, "rank"),
        process.device,
    )
    if num_there:
        logger.info(
            "%d of the posteriors files exist already, for the same weights, images and settings; "
            "delete them to compute them again",
            num_there,
        )


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
        stop: StopSignal,
    ) -> None:
        self._stop = stop
        self._config, self._process, self._network = config, process, network
        self._images, self._storage = images, storage
        self._share = evaluation_share(images.num_images, process.rank, process.world_size)
        self._max_pixels = most_pixels(config.evaluation.max_megapixels, process.device)
        self._loading: dict[str, Any] = {
            "rank": process.rank,
            "world_size": process.world_size,
            "device": process.device,
            "dtype": network.dtype,
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
            for batch in self._until_stopped(batches, batches.num_rounds):
                with suppress(StoppedError):  # which all ranks learn after this batch
                    found = self._stop.run(
                        center_crop_posteriors,
                        self._network,
                        batch.images,
                        source.flip,
                        self._max_pixels,
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
            for group in self._until_stopped(groups, groups.num_rounds):
                with suppress(StoppedError):
                    for source in sources:
                        parts = [part for part in group if part.scale == source.scale]
                        found = self._stop.run(self._apply, source, parts)
                        for part, posteriors in zip(parts, found, strict=True):
                            yield source, part.index, posteriors

    def _until_stopped(self, batches: Iterator[T], num_rounds: int) -> Iterator[T]:
        return until_stopped(batches, num_rounds, self._stop, self._process.device)

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
        total, num_done = self._images.num_images * len(sources), 0
        # The main rank speaks of all: the others have as many images as it, or one less.
        progress = Progress(total) if self._process.is_main else None
        try:
            for source, index, posteriors in parts:
                places = np.searchsorted(self._share, index)
                rows[source][places] = posteriors.cpu().numpy()
                counts[source][places] += 1
                if progress is not None:
                    now_done = min(total, num_done + len(index) * self._process.world_size)
                    progress.advance(now_done - num_done)
                    num_done = now_done
        finally:
            if progress is not None:
                progress.close()
        for source in sources:
            assert (counts[source] == 1).all(), "an image was not evaluated exactly once"
            yield self._put_together(source, rows[source])

    def _put_together(self, source: Source, rows: NDArray[Any]) -> Posteriors | None:
        images, world_size = self._images, self._process.world_size
        gathered = world.gather_rows(torch.from_numpy(rows).to(self._process.device))
        if gathered is None:
            return None
        shares = [
            evaluation_share(images.num_images, rank, world_size) for rank in range(world_size)
        ]
        values = np.empty((images.num_images, rows.shape[1]), rows.dtype)
        values[np.concatenate(shares)] = gathered.cpu().numpy()
        names = tuple(images.name(image) for image in range(images.num_images))
        return Posteriors(source, values, images.labels, names, images.classes)
