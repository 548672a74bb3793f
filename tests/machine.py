"""The machine and the versions on it, as reports of tests and benchmarks name them."""

import os
import platform
import re
import subprocess
from importlib.metadata import distributions
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
_OTHERS = ("deepspeed", "torchvision", "numpy", "pillow")


def describe(device: torch.device) -> dict[str, str]:
    """Name -> value, of the device, the driver, the libraries and their switches."""
    found = {
        "device": name_of(device),
        "cores": f"{len(os.sched_getaffinity(0))} of {processor()}",
        "driver": driver(),
        "Python": platform.python_version(),
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}",
        "kernels for": ", ".join(torch.cuda.get_arch_list()) or "no GPU",
        "cuDNN": str(torch.backends.cudnn.version()),
        "NCCL": ".".join(map(str, torch.cuda.nccl.version())),
        "packages": ", ".join(packages()),
        "switches": ", ".join(f"{name} {value}" for name, value in switches().items()),
        "commit": commit(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["device"] += (
            f", compute capability {properties.major}.{properties.minor}, "
            f"{properties.total_memory / 1e9:.1f} GB, {torch.cuda.device_count()} of them"
        )
    return found


def name_of(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def driver() -> str:
    """The NVIDIA driver's version, or `none`."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(errors="replace")
    except OSError:
        return "none"
    found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", text)
    return found.group() if found else "unknown"


def packages() -> list[str]:
    """`name version` of NVIDIA's packages and of some others, in order."""
    versions = {one.metadata["Name"].lower(): one.version for one in distributions()}
    return sorted(
        f"{name} {version}"
        for name, version in versions.items()
        if name.startswith("nvidia-") or name in _OTHERS
    )


def switches() -> dict[str, object]:
    """What torch may round or choose on a GPU."""
    matmul = torch.backends.cuda.matmul
    return {
        "cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
        "matmul.allow_tf32": matmul.allow_tf32,
        "matmul.allow_bf16_reduced_precision_reduction": (
            matmul.allow_bf16_reduced_precision_reduction
        ),
        "matmul.allow_fp16_reduced_precision_reduction": (
            matmul.allow_fp16_reduced_precision_reduction
        ),
    }


def commit() -> str:
    """Of the project's files; `unknown` where they are no clone."""
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
