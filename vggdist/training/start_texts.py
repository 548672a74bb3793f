"""What the start of a training tells in words: its numbers, choices, settings and versions."""

import logging
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch

import vggdist
from vggdist.artifacts.paths import quote
from vggdist.config import BatchSplit, Config, total_steps
from vggdist.config_file import differences, to_yaml
from vggdist.data.manifest import Dataset
from vggdist.distributed.process import Process
from vggdist.model.summary import render_summary, summarize
from vggdist.terminal import counted
from vggdist.training.board import TENSORBOARD_FOLDER

logger = logging.getLogger(__name__)

_PACKAGES = ("deepspeed", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "numpy", "tensorboard")
_PATIENCE_SECONDS = 5.0


def announce_training(config: Config, split: BatchSplit, dataset: Dataset, folder: Path) -> None:
    """Logs the numbers derived from the configuration, before the first step."""
    steps = total_steps(config, dataset.train.num_images)
    logger.info(
        "run folder %s; its curves: tensorboard --logdir %s",
        quote(folder),
        quote(folder / TENSORBOARD_FOLDER),
    )
    logger.info(
        "%s; %d classes, %d training and %d validation images",
        quote(str(config.data.root)),
        len(dataset.train.classes),
        dataset.train.num_images,
        dataset.val.num_images,
    )
    logger.info(
        "global batch %d = %s x %s x %s; %s, %.2f epochs",
        split.global_batch,
        counted(split.world_size, "rank"),
        counted(split.accumulation_steps, "micro batch", "micro batches"),
        counted(split.micro, "image"),
        counted(steps, "step"),
        steps * split.global_batch / dataset.train.num_images,
    )
    if split.global_batch > dataset.train.num_images:
        logger.warning(
            "batch.global %d is more than the %d training images, so every step has some of them "
            "twice or more; a smaller one trains in fewer images.",
            split.global_batch,
            dataset.train.num_images,
        )
    if dataset.train.quarantine:
        num_bad = len(dataset.train.quarantine)
        logger.info(
            "%s in quarantine; training shows other images instead",
            f"{counted(num_bad, 'training image')} {'is' if num_bad == 1 else 'are'}",
        )


def render_choices(
    config: Config, process: Process, why: Sequence[str], factored: Sequence[str], compiled: bool
) -> str:
    """What was chosen for this machine.

    Args:
        why: the precision, and the micro batch if it was chosen, each a sentence with its reason.
        factored: layers whose gradients are sent as factors.
        compiled: whether the convolutions are compiled.
    """
    threads = counted(config.data.num_threads or process.num_cores, "thread")
    place = "GPU" if process.device.type == "cuda" else "CPU"
    parts = [
        ", ".join([str(process.device), *(reason.rstrip(".") for reason in why if reason)]),
        f"images decoded on the {place}, {threads}",
    ]
    if compiled:
        parts[0] += ", convolutions compiled"
    if process.world_size > 1:
        parts[-1] += " a rank"
        told = f", those of {', '.join(factored)} as factors" if factored else ""
        parts.append(f"gradients exchanged whole{told}")
    return f"chosen for this machine: {'; '.join(parts)}."


def start_texts(config: Config, device: torch.device) -> dict[str, str]:
    """Texts by name, for the page Text of TensorBoard."""
    return {
        "start/settings": _changed_settings(config),
        "start/command": shlex.join(sys.orig_argv),
        "start/versions": _versions(device),
        "start/network": render_summary(summarize(config.model, config.data.crop_size)),
        "config": to_yaml(config),
    }


def _changed_settings(config: Config) -> str:
    changed = differences(Config(), config)
    return "\n".join(f"{key}: {now}  (default: {usual})" for key, (usual, now) in changed.items())


def _versions(device: torch.device) -> str:
    found = {"vggdist": vggdist.__version__}
    if commit := _commit():
        found["commit"] = commit
    found |= {"Python": platform.python_version(), "torch": torch.__version__}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found["system"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    found["device"] = str(device)
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
        found["CUDA"] = str(torch.version.cuda)
    return "\n".join(f"{name}: {version}" for name, version in found.items())


def _commit() -> str:
    """The commit of the code, with `-dirty` where files differ; empty outside a checkout."""
    # Not that of a repository around the environment in which the package is installed.
    if not _git("ls-files", "__init__.py"):
        return ""
    return _git("describe", "--always", "--dirty", "--abbrev=40")


def _git(*words: str) -> str:
    command = ("git", "-C", str(Path(vggdist.__file__).parent), *words)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
