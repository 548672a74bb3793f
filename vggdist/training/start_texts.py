"""What the start of a training tells in words: its settings, command, versions and network."""

import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

import vggdist
from vggdist.config import Config
from vggdist.config_file import differences, to_yaml
from vggdist.model.summary import render_summary, summarize

_PACKAGES = ("deepspeed", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "numpy", "tensorboard")
_PATIENCE_SECONDS = 5.0


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
