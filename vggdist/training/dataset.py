"""The data set of a training: checked, and refused if unsuitable, before anything is written."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vggdist.artifacts.checkpoint import Checkpoint
from vggdist.artifacts.contents import ContentsDigest
from vggdist.artifacts.names import listed, render_labels, sentences
from vggdist.artifacts.paths import quote
from vggdist.config import Config
from vggdist.data import local_copy
from vggdist.data.classes import (
    contradict_setting,
    explain_nesting,
    require_several_classes,
)
from vggdist.data.dataset import open_dataset
from vggdist.data.manifest import Dataset
from vggdist.data.manifest_file import SPLITS, require_usable, write_classes
from vggdist.data.survey import Survey, survey_dataset
from vggdist.data.turned import count_turned
from vggdist.distributed import process as world
from vggdist.distributed.process import Process
from vggdist.distributed.rank import on_main
from vggdist.errors import ConfigError, DataError
from vggdist.training.flags import end_if_asked
from vggdist.training.signals import StopSignal

logger = logging.getLogger("vggdist")

_SYNCHRONIZED_SECONDS = 5.0  # interval of the ranks' collectives while some of them copy


@dataclass(frozen=True)
class TrainingData:
    """The images of a training."""

    dataset: Dataset
    digests: dict[str, str]
    """Digests of the manifests and of the images' contents; saved with every checkpoint."""
    remarks: tuple[str, ...]
    """Warnings for the user, as sentences; on the main rank."""


def open_training_data(
    config: Config,
    folder: Path,
    process: Process,
    saved: Checkpoint | None,
    stop: StopSignal,
    undo: ExitStack,
) -> TrainingData:
    """Opens the data set on all ranks; only the main rank reads the files.

    Args:
        config: of the training.
        folder: the run folder, for the manifest if the data folder is not writable.
        saved: the checkpoint to continue from, if any.
        stop: interrupts the main rank while it reads the files.
        undo: receives the removal of a newly written manifest.

    Raises:
        DataError: the images are unsuitable, or not those that the training started with.
        ConfigError: the configuration is for other images.
    """
    if config.data.root is None:
        raise ConfigError(
            "data.root is not set; give the folder that holds train/ and val/, each with one "
            "folder of images per class: data.root=/path/to/images."
        )
    root = config.data.root
    survey = on_main(process, stop.run, _survey, config, root, folder, saved, undo)
    digests = world.from_main(_digests(survey) if survey else {})
    dataset = survey.dataset if survey else open_dataset(root, fallback=folder)
    remarks = (*survey.remarks, *_remarks(config, survey)) if survey else ()
    return TrainingData(dataset, digests, remarks)


def copy_to_node(
    dataset: Dataset, local_folder: str | None, process: Process, stop: StopSignal
) -> Dataset:
    """The data set, in its copy in `local_folder` if there is one; one rank per node copies.

    Raises:
        DataError: on all ranks, if a node could not copy it.
        StoppedError: on all ranks, if any was asked to stop.
    """
    if local_folder is None:
        return dataset
    folder = Path(local_folder)
    local = local_copy.local_dataset(dataset, folder)
    with ThreadPoolExecutor(1) as pool:
        cancelled = threading.Event()
        copying = (
            pool.submit(local_copy.copy_shards, dataset, folder, cancelled)
            if process.local_rank == 0
            else None
        )
        try:
            # The ranks synchronize often: hours in one collective would look like a hang.
            while not world.all_agree(_is_over(copying, stop), process.device):
                end_if_asked(stop, process)
        except BaseException:
            cancelled.set()  # the pool waits for copies in progress
            raise
        problem = copying.exception() if copying is not None else None
    if not world.all_agree(problem is None, process.device):
        raise problem or DataError(
            "another node could not copy the shards to its data.local_folder; its message says why."
        )
    return local


def _is_over(future: Future[None] | None, stop: StopSignal) -> bool:
    """Whether the work is done; waits for it for a few seconds, or until a signal comes."""
    deadline = time.monotonic() + _SYNCHRONIZED_SECONDS
    while future is not None and not future.done() and not stop.requested:
        if time.monotonic() > deadline:
            return False
        wait([future], timeout=0.1)
    return future is None or future.done()


def announce_data(data: TrainingData, folder: Path) -> None:
    """Logs warnings about the images, and writes the classes to the run folder."""
    for remark in data.remarks:
        logger.info("%s", remark)
    file = write_classes(data.dataset.train.classes, folder)
    logger.info("%s", render_labels(data.dataset.train.classes, file))


def _survey(
    config: Config, root: str, folder: Path, saved: Checkpoint | None, undo: ExitStack
) -> Survey:
    """Surveys the data set, checks it, and saves its manifest, in this order."""
    survey = survey_dataset(root, fallback=folder)
    _require_usable(config, survey.dataset)
    if saved is not None:
        _require_same(config, survey, saved.state["data"])
    if (manifest := survey.save()) is not None:
        undo.callback(manifest.unlink, missing_ok=True)
    return survey


def _require_usable(config: Config, dataset: Dataset) -> None:
    assert config.data.root is not None
    root = config.data.root
    require_several_classes(dataset.train)
    given = config.model.num_classes
    if given not in (None, len(dataset.train.classes)):
        problem = contradict_setting(given, dataset.train, root)
        raise ConfigError(sentences(problem, explain_nesting(dataset.train)))
    require_usable([dataset.val], root)


def _remarks(config: Config, survey: Survey) -> Iterator[str]:
    """What the configuration makes of the images, where that may not be what was meant."""
    nesting = explain_nesting(survey.dataset.train)
    if nesting and config.model.num_classes is None:
        yield nesting
    train = survey.dataset.train
    turned = count_turned(train, survey.contents[train.split].orientations)
    if turned.num_turned and config.data.upright:
        yield f"training: {turned}, by which they are turned (data.orientation=apply)."
    elif turned.num_turned:
        yield (
            f"training: {turned}. The network sees them as they are stored, not as a viewer turns "
            "them; data.orientation=apply turns them."
        )


def _require_same(config: Config, survey: Survey, before: dict[str, str]) -> None:
    """Refuses images that differ from those that a run was trained on so far."""
    now, root = _digests(survey), quote(survey.dataset.root)
    if any(before[split] != now[split] for split in SPLITS):
        raise DataError(
            f"the images in {root} are not those that this run was trained on until now (its "
            "checkpoint has other manifests). Point data.root to those, or choose another "
            "run.folder."
        )
    same = {
        split: manifest.contents.same_as(ContentsDigest.from_mapping(before, f"{split}_"))
        for split, manifest in zip(SPLITS, survey.splits, strict=True)
    }
    if False in same.values():
        named = f", such as {listed(survey.changed)}" if survey.changed else ""
        if not config.data.accept_changed:
            raise DataError(
                f"Images in {root} were replaced under their names since this run was trained on "
                f"them{named}. Restore the previous ones, choose another run.folder, or set "
                "data.accept_changed=true to go on with these."
            )
        logger.warning(
            "Images were replaced under their names since the checkpoint was written%s; "
            "data.accept_changed lets the training go on with these.",
            named,
        )
    elif None in same.values():
        logger.warning(
            "Whether the images in %s are still those that this run was trained on cannot be told: "
            "%s.",
            root,
            "their names and lengths are, but not their times"
            if f"{SPLITS[0]}_lengths" in before
            else "its checkpoint was written by a version that did not note what is in them",
        )


def _digests(survey: Survey) -> dict[str, str]:
    digests: dict[str, str] = {}
    for manifest in survey.splits:
        digests[manifest.split] = manifest.digest
        digests |= manifest.contents.to_dict(f"{manifest.split}_")
    return digests
