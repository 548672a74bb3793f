"""Memory that this process holds: on a GPU by torch, else by all of the process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch


def held_bytes(device: torch.device) -> int:
    """What is held now."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.memory_allocated(device)
    return resident_bytes()


def resident_bytes(*, peak: bool = False) -> int:
    """Of this process in memory, now or at the most."""
    field = "VmHWM" if peak else "VmRSS"
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"Linux tells every process its {field}")


def peak_growth(work: Callable[[], object], device: torch.device) -> float:
    """MB by which the peak of `work` grows over what is held now."""
    now = held_bytes(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - now) / 1e6
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak until now
    work()
    return max(0, resident_bytes(peak=True) - now) / 1e6
