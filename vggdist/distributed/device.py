"""Choosing a rank's device, and explaining why a GPU cannot be used."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from vggdist.distributed import srun
from vggdist.errors import ConfigError

_NODE = Path("/dev/nvidia0")
_DRIVER = Path("/proc/driver/nvidia/version")
_DRIVER_FOR_CUDA = {"11": "450", "12": "525", "13": "580"}
"""The oldest driver for each of CUDA's major versions (CUDA Compatibility, NVIDIA)."""


def choose_device(name: str, local_rank: int, num_gpus: int = 0) -> torch.device:
    """`auto`, `cpu` or `cuda` -> the device of this local rank.

    Args:
        num_gpus: GPUs of all ranks of this node, if known; a rank that sees fewer may see only its
            own.

    Raises:
        ConfigError: cuda is set and there is no GPU, or fewer than local ranks; or auto would leave
            idle a GPU that this process was given.
    """
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        reason = _why_no_gpu()
        if name == "auto" and not reason:
            return torch.device("cpu")
        reason = reason or "this machine has no usable GPU; set device to cpu"
        raise ConfigError(f"device is {name}, but {reason}.")
    num_visible = torch.cuda.device_count()
    if local_rank < num_visible:
        return torch.device("cuda", local_rank)
    if num_visible < num_gpus:
        return torch.device("cuda", 0)
    raise ConfigError(
        f"local rank {local_rank} has no GPU of its own: this machine shows {num_visible}; start "
        "at most that many ranks on it."
    )


def memory_of(gpu: torch.device) -> int:
    """Bytes of a GPU, whoever uses them."""
    return int(torch.cuda.get_device_properties(gpu).total_memory)


def _why_no_gpu() -> str:
    """Why torch cannot use the GPU that this process was given; empty if it was given none.

    `CUDA_VISIBLE_DEVICES` alone proves nothing: launchers also set it on machines without a GPU.
    """
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "NoDevFiles")
    is_given = _NODE.exists() or srun.num_gpus(os.environ) > 0
    if is_hidden or not is_given:
        return ""
    cuda = torch.version.cuda or ""
    if not cuda:
        return (
            "this process was given an NVIDIA GPU that torch cannot use: torch "
            f"{torch.__version__} is built without CUDA. Install a build for CUDA, or set device "
            "to cpu"
        )
    needed = _DRIVER_FOR_CUDA.get(cuda.partition(".")[0], "a newer one")
    return (
        f"this process was given an NVIDIA GPU that torch cannot use: {_driver()}, and torch "
        f"{torch.__version__} (CUDA {cuda}) needs driver {needed} or newer. Update the driver, or "
        "install a torch that is built for an older CUDA (make setup CUDA=12, for drivers from 525 "
        "on); `nvidia-smi` shows whether the GPU works. Set device to cpu to train on the "
        "processor instead"
    )


def _driver() -> str:
    """The driver, for a message."""
    try:
        found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", _DRIVER.read_text(errors="replace"))
    except OSError:
        found = None
    return f"its driver is {found.group()}" if found else "no driver answers"


def require_kernels(device: torch.device) -> None:
    """Refuses a GPU for which this torch has no kernels; CPUs always pass.

    Raises:
        ConfigError: names the GPU, torch's architectures, and the torch to install.
    """
    if device.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(device)
    architectures = torch.cuda.get_arch_list()
    if not architectures or has_kernels(capability, architectures):
        return
    if capability < (7, 5):
        remedy = (
            "Install torch's build for CUDA 12.6 (2.14 is the last that has one), the last with "
            "kernels for GPUs older than Turing, and nvidia-dali-cuda120 (make setup CUDA=12)"
        )
    else:
        remedy = "Install a newer torch"
    raise ConfigError(
        f"{torch.cuda.get_device_name(device)} has compute capability "
        f"{capability[0]}.{capability[1]}, and torch {torch.__version__} has kernels for "
        f"{', '.join(architectures)} only. {remedy}, or set device to cpu."
    )


def has_kernels(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Whether a GPU can run code for one of the architectures, such as sm_80 or compute_120.

    sm_XY runs on X.Z with Z >= Y; compute_XY is compiled for any newer GPU on first use.
    """
    for architecture in architectures:
        kind, _, number = architecture.partition("_")
        if not number.isdecimal():  # sm_90a runs only on 9.0, and torch also lists sm_90
            continue
        version = divmod(int(number), 10)
        if kind == "sm" and version[0] == capability[0] and version <= capability:
            return True
        if kind == "compute" and version <= capability:
            return True
    return False
