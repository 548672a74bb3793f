"""One rank of an evaluation: computes a trained network's posteriors of all images and writes them
to files."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np

from vggdist.artifacts.contents import UNKNOWN, ContentsDigest
from vggdist.artifacts.names import listed, said_of_labels, said_of_twins, sentences
from vggdist.artifacts.paths import quote
from vggdist.artifacts.posteriors import (
    Posteriors,
    Protocol,
    Source,
    open_posteriors,
    save_posteriors,
)
from vggdist.artifacts.run_files import CHECKPOINTS
from vggdist.artifacts.weights import Description, Weights
from vggdist.compute_posteriors import PosteriorsOfRank
from vggdist.config import Config
from vggdist.data.classes import said_of_nesting
from vggdist.data.dataset import open_split
from vggdist.data.glance import require_whole
from vggdist.data.manifest import Manifest
from vggdist.data.manifest_file import write_classes
from vggdist.data.survey import survey_images
from vggdist.distributed import process as world
from vggdist.distributed.precision import resolve_precision
from vggdist.distributed.process import Process
from vggdist.distributed.rank import on_main
from vggdist.errors import DataError, WeightsError
from vggdist.trained import (
    build_dense,
    configure,
    open_weights,
    require_scales,
    require_usable,
)

logger = logging.getLogger("vggdist")


@dataclass(frozen=True)
class Request:
    """What to evaluate, and how."""

    network: str
    """A run folder, a checkpoint or a weights file."""
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


@dataclass(frozen=True)
class Evaluated:
    """The files of an evaluation, on the main rank."""

    files: tuple[Path, ...]
    num_computed: int
    """Images x files that were computed; the others existed."""
    elapsed_seconds: float


def evaluate(request: Request) -> Evaluated | None:
    """Computes the missing posteriors files; collective.

    Returns:
        On the main rank, all files in the order of protocols and scales; None on the others.

    Raises:
        VggdistError: a problem that the user can solve.
    """
    weights = open_weights(request.network)
    config = configure(weights.description, request.root, request.overrides)
    scales = _scales(request, weights.description)
    with ExitStack() as stack:
        process = stack.enter_context(world.joined(config.device))
        config, why = resolve_precision(config, process)
        images = open_split(request.root, request.split)
        contents = _survey(images, process)
        images = _require_same_classes(images, request, weights.description)
        network = build_dense(weights, config, process)
        folder = request.out or _default_folder(weights.path)
        wanted = {
            _file(folder, source): source
            for source in _sources(request, scales, weights, config, images, contents)
        }
        missing = _missing(wanted, request.storage)
        if missing:
            require_whole(images, process)
        num_bytes = len(missing) * images.num_images * len(images.classes)
        num_bytes *= np.dtype(request.storage).itemsize
        on_main(process, partial(_require_writable, folder, num_bytes))
        if process.is_main:
            _announce(weights, images, process, config, len(wanted) - len(missing))
            if not weights.description.classes:
                file = write_classes(images.classes, folder)
                logger.info(
                    "%s has no class names; %s",
                    quote(weights.path),
                    said_of_labels(images.classes, file),
                )
            logger.info(why)
        run = PosteriorsOfRank(config, process, network, images, request.storage)
        started_at = time.monotonic()
        for posteriors in run.compute(missing):
            on_main(process, partial(_save, folder, posteriors))
        seconds = time.monotonic() - started_at
        computed = len(missing) * images.num_images
        return Evaluated(tuple(wanted), computed, seconds) if process.is_main else None


def _scales(request: Request, network: Description) -> tuple[int, ...]:
    low, high = network.train_scale or (round(network.crop_size * 256 / 224),) * 2
    return require_scales(request.scales or ((low + high) // 2,), network.crop_size)


def _survey(images: Manifest, process: Process) -> ContentsDigest:
    """The digest of the images' current contents; the main rank reads them and logs remarks."""

    def look() -> ContentsDigest:
        survey = survey_images(images)
        for remark in survey.remarks:
            logger.info("%s", remark)
        return survey.splits[0].contents

    return world.gather(on_main(process, look) or UNKNOWN)[0]


def _require_same_classes(images: Manifest, request: Request, network: Description) -> Manifest:
    """The images, with the network's labels.

    Raises:
        DataError: their classes are not the network's, or some are bad.
    """
    where = f"{quote(request.root)} ({request.split})"
    if len(images.classes) != network.model.num_classes:
        raise DataError(
            sentences(
                f"{where} has {len(images.classes)} classes, and the network tells "
                f"{network.model.num_classes} apart; evaluate it on images of the classes that it "
                "was trained on.",
                said_of_nesting(images),
            )
        )
    own, given = set(network.classes), set(images.classes)
    if own and own != given:
        raise DataError(
            sentences(
                f"the classes of {where} are not those that the network was trained on: only the "
                f"images have {listed(sorted(given - own))}, and only the weights file has "
                f"{listed(sorted(own - given))}.",
                said_of_twins(own ^ given),
                "Name the folders as in training.",
            )
        )
    require_usable(images, request.root)
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
    return world.gather(missing)[0]


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
        "%s of %s on %d images of %s; %s, %s on %s",
        weights.description.name,
        quote(weights.path),
        images.num_images,
        quote(images.folder),
        config.precision,
        "1 rank" if process.world_size == 1 else f"{process.world_size} ranks",
        process.device,
    )
    if num_there:
        logger.info(
            "%d of the posteriors files exist already, for the same weights, images and settings; "
            "delete them to compute them again",
            num_there,
        )
