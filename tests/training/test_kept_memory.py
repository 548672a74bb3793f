"""In a process of its own, since what is kept stays so for the rest of a process."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vggdist.training.kept_memory import keep_freed_memory

MEGABYTES, STEPS = 64, 4
WARM = 16
"""glibc keeps the first seven scraps that aligned blocks leave, and they part what is free."""


def fresh_megabytes(keep: bool) -> float:
    """That the system has to give while the same memory is taken and freed in a few steps."""
    if keep:
        keep_freed_memory()
    for _ in range(WARM):
        torch.ones(MEGABYTES << 20, dtype=torch.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(STEPS):
        torch.ones(MEGABYTES << 20, dtype=torch.uint8)
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return pages * resource.getpagesize() / 2**20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_what_is_freed_is_used_again() -> None:
    for keep in (True, False):
        name = f"tests.training.{Path(__file__).stem}"
        command = f"from {name} import fresh_megabytes; print(fresh_megabytes({keep}))"
        done = subprocess.run(
            [sys.executable, "-c", command],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        fresh = float(done.stdout)
        if keep:
            assert fresh < 1
        else:
            assert fresh > STEPS * MEGABYTES / 2
