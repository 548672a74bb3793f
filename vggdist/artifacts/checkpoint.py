"""A checkpoint exists when it is committed: temporary folder, fsync, manifest, rename.

Layout of `checkpoints/step-00001234/`: `weights.safetensors` and `momentum.safetensors` (tensors by
parameter name, contiguous, whatever the ranks or the ZeRO stage), `state.json` (step, schedule,
counts), and `manifest.json` (size and SHA-256 of the others). Loading takes the newest committed
folder that verifies, the next older one if it does not, and never unpickles objects.

`checkpoints/best-00001234/` holds the weights of the best network, and `best.json` its error.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vggdist.artifacts.files import fsync
from vggdist.artifacts.formats import MOMENTUM_KEY
from vggdist.artifacts.paths import quote
from vggdist.artifacts.run_files import BEST_FILE, Best, best_folders
from vggdist.artifacts.weights import Description
from vggdist.errors import CheckpointError

logger = logging.getLogger(__name__)

FORMAT = 2
_READABLE = (1, FORMAT)
"""1 does not say after which steps the evaluations were made; the training works that out."""
WEIGHTS, MOMENTUM, STATE, MANIFEST = (
    "weights.safetensors",
    "momentum.safetensors",
    "state.json",
    "manifest.json",
)
_COMMITTED = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """What a training is at the end of a step."""

    step: int
    weights: Mapping[str, Tensor]
    momentum: Mapping[str, Tensor]
    state: Mapping[str, Any]
    description: Description | None = None
    """Of the network, written into the weights file."""


def committed(folder: Path) -> list[Path]:
    """Committed checkpoints in `folder`, newest first; nothing is verified yet."""
    if not folder.is_dir():
        return []
    return sorted(
        (entry for entry in folder.iterdir() if _COMMITTED.fullmatch(entry.name)),
        key=_step,
        reverse=True,
    )


def path_of(folder: Path, step: int) -> Path:
    """The checkpoint of a step."""
    return folder / f"step-{step:08d}"


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Commits a checkpoint, then deletes all but the `keep` newest, and those of later steps.

    Later steps are of a course that this training has left, by falling back past a damaged
    checkpoint or by continuing from an earlier one; as the newest, they would be continued next.

    Raises:
        OSError: it could not be written; older checkpoints are untouched, nothing half-made stays.
    """
    final = path_of(folder, checkpoint.step)
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    with _committing(final) as temporary:
        description = checkpoint.description
        metadata = description.to_metadata() if description is not None else None
        save_file(dict(checkpoint.weights), temporary / WEIGHTS, metadata)
        save_file(dict(checkpoint.momentum), temporary / MOMENTUM, {MOMENTUM_KEY: ""})
        state = {"format": FORMAT, "step": checkpoint.step, **checkpoint.state}
        (temporary / STATE).write_text(json.dumps(state, indent=1))
        for name in (WEIGHTS, MOMENTUM):  # safetensors makes files that nobody else may read
            (temporary / name).chmod((temporary / STATE).stat().st_mode)
        manifest = {
            name: {"bytes": (temporary / name).stat().st_size, "sha256": _sha256(temporary / name)}
            for name in (WEIGHTS, MOMENTUM, STATE)
        }
        (temporary / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": manifest}))
    everything = committed(folder)
    until_now = everything[everything.index(final) :]
    for path in everything:
        if path not in until_now[:keep]:
            _move_to_trash(path)
    return final


def keep_best(folder: Path, best: Best) -> Best:
    """Keeps the weights of a committed checkpoint as those of the best network, of which there is
    one: the one before is deleted then.

    They are a second name of the same file, so that they take no space before the checkpoint itself
    is deleted; a copy where the file system has no links.

    Raises:
        OSError: it could not be written; the one before is untouched, nothing half-made stays.
    """
    checkpoint, final = path_of(folder, best.step), folder / f"best-{best.step:08d}"
    with _committing(final) as temporary:
        try:
            os.link(checkpoint / WEIGHTS, temporary / WEIGHTS)
        except OSError:
            shutil.copy(checkpoint / WEIGHTS, temporary / WEIGHTS)
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        manifest["files"] = {WEIGHTS: manifest["files"][WEIGHTS]}
        (temporary / MANIFEST).write_text(json.dumps(manifest))
        about = {"step": best.step, "epoch": best.epoch, "top1_error": best.top1_error}
        (temporary / BEST_FILE).write_text(json.dumps(about))
    for path in best_folders(folder):
        if path != final:
            _move_to_trash(path)
    return replace(best, folder=final)


@contextmanager
def _committing(final: Path) -> Iterator[Path]:
    """A temporary folder, which takes the place of `final` when everything in it is on disk."""
    temporary = final.with_name(f"{final.name}.tmp-{os.getpid()}")
    before = final.with_name(f"{final.name}.trash-{os.getpid()}")
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            fsync(file)
        fsync(temporary)
        if final.exists():
            # The same step again, after falling back past a damaged one.
            final.rename(before)
        temporary.rename(final)
        fsync(final.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if before.exists() and not final.exists():
            before.rename(final)
        if isinstance(error, SafetensorError):
            raise OSError(str(error)) from error
        raise
    shutil.rmtree(before, ignore_errors=True)


def newest(folder: Path) -> Path | None:
    """The newest committed checkpoint that verifies, or None where there has never been one.

    Raises:
        CheckpointError: there are checkpoints and none verifies; starting anew would lose them.
    """
    candidates = committed(folder)
    for candidate in candidates:
        problem = verify(candidate)
        if problem is None:
            return candidate
        logger.error("checkpoint %s is damaged and left out: %s", candidate, problem)
    if candidates:
        raise CheckpointError(
            f"none of the {len(candidates)} checkpoints in {quote(folder)} can be used (the "
            "reasons stand above). Restore one of them, or choose another run.folder to start anew."
        )
    return None


def newest_good(folder: Path, until: int) -> Path | None:
    """The newest checkpoint that verifies, of step `until` or before it, if there is one."""
    return next(
        (path for path in committed(folder) if _step(path) <= until and verify(path) is None), None
    )


def verify(path: Path) -> str | None:
    """None where every file of the checkpoint is as it was written, else what is wrong."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["format"] not in _READABLE:
            return f"its format is {manifest['format']}, this version reads up to {FORMAT}."
        for name, written in manifest["files"].items():
            size = (path / name).stat().st_size
            if size != written["bytes"]:
                return f"{name} has {size} bytes, {written['bytes']} were written."
            if _sha256(path / name) != written["sha256"]:
                return f"{name} does not have the SHA-256 that was written."
        missing = {WEIGHTS, MOMENTUM, STATE} - set(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}."
    return f"{', '.join(sorted(missing))} is not in its manifest." if missing else None


def written_sha256(weights: Path) -> str | None:
    """The SHA-256 that a checkpoint's weights file was written with; None: it is in none."""
    try:
        digest: str = json.loads((weights.parent / MANIFEST).read_text())["files"][weights.name][
            "sha256"
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return digest


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint that has been verified; tensors on the CPU.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        state = json.loads((path / STATE).read_text())
        weights, momentum = load_file(path / WEIGHTS), load_file(path / MOMENTUM)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {quote(path)} cannot be read: {error}.") from error
    return Checkpoint(int(state["step"]), weights, momentum, state)


def _remove_leftovers(folder: Path) -> None:
    """Half-made and discarded checkpoints, of a process that was killed."""
    for entry in folder.iterdir():
        if ".tmp-" in entry.name or ".trash-" in entry.name:
            shutil.rmtree(entry, ignore_errors=True)


def _move_to_trash(path: Path) -> None:
    """Renamed first: a kill while deleting must not leave half a checkpoint under a good name."""
    trash = path.with_name(f"{path.name}.trash-{os.getpid()}")
    path.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
