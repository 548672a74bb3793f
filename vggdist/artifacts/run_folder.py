"""The run folder: one training lives there, and a second start continues it or is refused.

Holds `config.yaml` (resolved), `checkpoints/`, `metrics.jsonl`, `tensorboard/`, `log.txt`, and at
the end `result.json` and `predictions.png`.
"""

import itertools
import logging
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TextIO

from vggdist.artifacts import checkpoint, files
from vggdist.artifacts.paths import quote
from vggdist.artifacts.run_files import (
    BEST_SUFFIX,
    CHECKPOINTS,
    CONFIG_FILE,
    LOCK_FILE,
    best_folders,
    changed_settings,
    has_begun,
    read_best,
    read_config,
)
from vggdist.artifacts.weights import Weights, load_weights
from vggdist.config import KNOBS, Config, Precision
from vggdist.config_file import load_config, to_yaml
from vggdist.errors import CheckpointError, ConfigError, WeightsError

logger = logging.getLogger(__name__)


def enter(
    config: Config, folder: Path, stack: ExitStack, undo: ExitStack, patience_seconds: float
) -> Path | None:
    """Takes the run folder for this job; the checkpoint to continue from, if any.

    Args:
        config: of the training.
        folder: the run folder, perhaps not there yet.
        stack: releases it when it ends.
        undo: receives the removal of what is new, for a failure before the first step: it ends
            before the folder is released.
        patience_seconds: how long another job that holds it is waited for.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        stack.enter_context(lock(folder, patience_seconds))
    except ConfigError as refusal:
        if new and isinstance(refusal.__cause__, OSError):  # else another job has it
            _remove(new, folder)
        raise
    stack.enter_context(undo)
    if new or all(path.name == LOCK_FILE for path in folder.iterdir()):
        undo.callback(_remove, new, folder)
    return choose_checkpoint(config, folder)


def _remove(new: Sequence[Path], folder: Path) -> None:
    """Removes what the run folder holds, and the folders that are new, innermost first."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    for parent in new:
        with suppress(OSError):  # it holds something else
            parent.rmdir()


def choose_checkpoint(config: Config, folder: Path) -> Path | None:
    """The checkpoint to continue from by `run.resume`, or None to start at the first step.

    Raises:
        ConfigError: the folder holds a training and `run.resume` is never, or a given path is not a
            checkpoint.
        CheckpointError: the folder belongs to another configuration, or no checkpoint verifies.
    """
    config_file = folder / CONFIG_FILE
    if config.run.resume == "never":
        if has_training(folder):
            raise ConfigError(
                f"run.resume is never, but {quote(folder)} already holds a training; choose "
                "another run.folder, or delete that one."
            )
        return None
    if has_training(folder) and config_file.exists():
        _check_same_training(config, config_file)
    if config.run.resume != "auto":
        path = Path(config.run.resume)
        problem = checkpoint.verify(path)
        if problem is not None:
            raise ConfigError(
                f"run.resume: {quote(path)} is not a good checkpoint: {problem} Give a folder such "
                f"as {quote(folder / CHECKPOINTS / 'step-00005000')}, auto, or never."
            )
        return path
    newest = checkpoint.newest(folder / CHECKPOINTS)
    if newest is None and has_training(folder):
        logger.info("%s has no checkpoint yet; starting at the first step.", quote(folder))
    return newest


def has_training(folder: Path) -> bool:
    """Whether a training has begun here: after a start that failed on a mistake, none has."""
    return bool(checkpoint.committed(folder / CHECKPOINTS)) or has_begun(folder)


def config_before(checkpoint_path: Path | None, folder: Path) -> Config | None:
    """The configuration of the training that is continued; None: none is, or it cannot be read.

    Args:
        checkpoint_path: what is continued from, perhaps of another run folder; none: a training in
            `folder` that has no checkpoint yet.
    """
    if checkpoint_path is not None:
        folder = checkpoint_path.absolute().parent.parent
    elif not has_training(folder):
        return None
    return read_config(folder)


def prepare(config: Config, folder: Path) -> None:
    """Makes the folder and writes the resolved configuration into it.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        files.write_text(folder / CONFIG_FILE, to_yaml(config))
    except OSError as error:
        raise not_writable(folder, error) from error


def lock(folder: Path, patience_seconds: float = 0.0) -> TextIO:
    """Takes the folder for this job until the returned file is closed or the process ends.

    Args:
        patience_seconds: how long another job that holds it is waited for.

    Raises:
        ConfigError: another job trains there, or it cannot be written.
    """
    try:
        return files.lock(folder / LOCK_FILE, patience_seconds, "let no other job train there")
    except files.LockedError as holder:
        raise ConfigError(
            f"{holder} is training in {quote(folder)}; wait for it, or choose another run.folder."
        ) from None
    except OSError as error:
        raise not_writable(folder, error) from error


def not_writable(folder: Path, error: OSError) -> ConfigError:
    """The error for a run folder that cannot be written."""
    return ConfigError(
        f"run folder {quote(folder)} cannot be written: {error}. Choose another run.folder."
    )


def require_space(folder: Path, checkpoint_bytes: int, keep: int) -> None:
    """Looks before the first step whether checkpoints will fit, and warns where not all will.

    Args:
        folder: the run folder.
        checkpoint_bytes: of one of them.
        keep: how many stay; while another is written, that is one more.

    Raises:
        ConfigError: not even one fits.
    """
    free = shutil.disk_usage(folder).free
    there = len(checkpoint.committed(folder / CHECKPOINTS))
    needed = max(1, keep + 1 - there) * checkpoint_bytes
    if not best_folders(folder / CHECKPOINTS):
        needed += checkpoint_bytes // 2  # it has no momentum
    if free < checkpoint_bytes:
        raise ConfigError(
            f"run folder {folder} has {free / 1e6:,.1f} MB free, and a checkpoint takes "
            f"{checkpoint_bytes / 1e6:,.1f} MB. Free space there, or choose another run.folder."
        )
    if free < needed:
        logger.warning(
            "run folder %s has %s MB free, and checkpoints will take %s MB more: %d are kept "
            "(checkpoint.keep) and the weights of the best network, and one more is written before "
            "the oldest goes. Later ones may not fit.",
            folder,
            f"{free / 1e6:,.1f}",
            f"{needed / 1e6:,.1f}",
            keep,
        )


def weights_file(path: str) -> Path:
    """A run folder, `RUN@best`, a checkpoint or a .safetensors file -> its weights.

    Raises:
        ConfigError: there are none.
    """
    given, wants_best = _split(path)
    if given.is_file() and not wants_best:
        return given
    if not given.exists():
        raise ConfigError(
            f"{quote(given)} does not exist; give a run folder, a checkpoint, or a .safetensors "
            "file."
        )
    if wants_best:
        return _best_weights(given)
    candidates = [given, *checkpoint.committed(given / CHECKPOINTS)]
    for candidate in candidates:
        if (candidate / checkpoint.WEIGHTS).is_file():
            return candidate / checkpoint.WEIGHTS
    raise ConfigError(
        f"{quote(path)} has no weights; give a run folder with a checkpoint, a checkpoint, or a "
        ".safetensors file."
    )


def _split(network: str) -> tuple[Path, bool]:
    """`RUN@best` -> RUN, True; another path, or one that really ends so -> itself, False."""
    path = Path(network)
    if path.exists() or not network.endswith(BEST_SUFFIX):
        return path, False
    return Path(network.removesuffix(BEST_SUFFIX)), True


def _best_weights(folder: Path) -> Path:
    best = read_best(folder)
    if best is not None and best.folder is not None:
        return best.folder / checkpoint.WEIGHTS
    if best is not None:
        reason = (
            f"the lowest error, {100 * best.top1_error:.2f} %, was that of step {best.step}, and "
            "its weights were not kept"
        )
    else:
        reason = "no evaluation of a training has been made there"
    raise ConfigError(
        f"{quote(folder)} has no best network: {reason}. {quote(folder)} alone is the newest "
        "checkpoint of a run."
    )


def open_weights(network: str) -> Weights:
    """The weights of a run folder, `RUN@best`, a checkpoint or a .safetensors file.

    Raises:
        VggdistError: there are none, they are invalid, or they differ from what the training wrote.
    """
    weights = load_weights(weights_file(network))
    if checkpoint.written_sha256(weights.path) not in (None, weights.sha256):
        raise WeightsError(
            f"{quote(weights.path)} is damaged: it does not have the SHA-256 with which its "
            "checkpoint was written. Give another checkpoint, or train on: the training falls back "
            "to the one before by itself."
        )
    return weights


def config_of(network: str) -> Config | None:
    """The configuration of the training that a network is of; None: a weights file on its own.

    Args:
        network: a run folder, `RUN@best`, a checkpoint, or a weights file.
    """
    path = _split(network)[0].absolute()
    folders = [path, *(step.parent for step in path.parents if step.name == CHECKPOINTS)]
    return next((config for folder in folders if (config := read_config(folder))), None)


def precision_of(network: str) -> Precision | None:
    """The precision in which a network was trained, as far as is known."""
    config = config_of(network)
    return None if config is None else config.set_precision


def data_of(network: str) -> str:
    """The data set that a network was trained on.

    Raises:
        ConfigError: it is not known, or there is no such network.
    """
    config = config_of(network)
    if config is None or config.data.root is None:
        weights_file(network)  # raises where there is no network at all
        raise ConfigError(
            f"{quote(network)} is no run folder that tells of its data set; give the data set with "
            "--data ROOT."
        )
    return config.data.root


def _check_same_training(config: Config, config_file: Path) -> None:
    try:
        before = load_config(config_file)
    except ConfigError as error:
        raise CheckpointError(
            f"{quote(config_file)} cannot be read by this version, so its training cannot be "
            f"continued: {error}"
        ) from error
    changed = changed_settings(before, config)
    if changed:
        folder = config_file.parent
        lines = [f"{key}: {old!r} -> {new!r}{_rule(key)}" for key, (old, new) in changed.items()]
        listing = "\n".join(f"  - {line}" for line in lines)
        raise CheckpointError(
            f"{quote(folder)} holds a training of another configuration:\n{listing}\nTake these "
            "changes back to continue it, or choose another run.folder to begin anew with them."
            + _train_on(folder)
        )


def _train_on(folder: Path) -> str:
    """How to train on from a run's network with other settings, if there is one yet."""
    if not checkpoint.committed(folder / CHECKPOINTS):
        return ""
    names = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    free = next(name for name in names if not name.exists())
    return (
        " To train on from its newest network with them, add "
        f"run.folder={quote(free)} model.initialize_from={quote(folder)} to the command."
    )


def _rule(key: str) -> str:
    """When a key may change, of one that sometimes may."""
    rule = KNOBS[key].rule
    return f" (may change {rule})" if rule else ""
