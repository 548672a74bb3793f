"""In a process of its own, since what is kept stays so for the rest of a process."""

import resource
import sys

import pytest
import torch

from tests.ranks import run_in_ranks
from vggdist.distributed.process import Process
from vggdist.training.cpu import keep_freed_memory

MEGABYTES, STEPS = 64, 4
WARM = 16
"""glibc keeps the first seven scraps that aligned blocks leave, and they part what is free."""


def fresh_megabytes(process: Process, keep: bool) -> float:
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
    (kept,), (given_back,) = (run_in_ranks(fresh_megabytes, 1, keep) for keep in (True, False))
    assert kept < 1
    assert given_back > STEPS * MEGABYTES / 2
