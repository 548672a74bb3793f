"""Ranks that plain `srun` starts, and processes that it does not, on a real cluster."""

import json

import pytest

pytestmark = pytest.mark.slurm

MEET = """
import json, torch
from vggdist.distributed import process as world
announced = world.announced_rank()
process = world.start("cpu")
total = world.sum_over_ranks(torch.tensor([process.rank + 1, 10])).tolist()
# In one write: all ranks' lines go through the same srun.
print(json.dumps([announced, process.rank, process.local_rank, process.world_size, *total]) + "\\n", end="")
"""

TELL = """
import json, os
from vggdist.distributed.slurm import rank_variables
print(json.dumps(rank_variables(os.environ)) + "\\n", end="")
"""


def lines(printed: str) -> list:
    """The JSON lines, sorted; whatever shells print around them is left out."""
    return sorted(json.loads(line) for line in printed.splitlines() if line[:1] in "[{")
