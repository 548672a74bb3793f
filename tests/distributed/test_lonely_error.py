"""A rank that fails while the others sit in a collective, which NCCL's end would wait for."""

import time
from pathlib import Path

import pytest

from tests.ranks import Script, free_port, rank_variables
from vggdist.errors import DataError, DistributedError

SCRIPT = """
import sys, time
import torch
from torch import distributed
from vggdist.distributed import process as world
from vggdist.errors import DataError
from vggdist.distributed.rank import leave, run_rank

distributed.destroy_process_group = lambda: time.sleep(600)  # as NCCL does

def work():
    with world.joined("cpu") as process:
        if process.rank == 1:
            raise DataError("The disk is broken.")
        world.sum_over_ranks(torch.ones(1))
    return 0

sys.exit(leave(run_rank(work)))
"""


@pytest.mark.multi_process
@pytest.mark.fault
def test_a_rank_that_fails_alone_says_so_and_ends_at_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    began_at, port = time.monotonic(), free_port()
    ranks = [Script(script, [], **rank_variables(rank, 2, port)) for rank in (0, 1)]
    codes, printed = zip(*[rank.finish(timeout=60) for rank in reversed(ranks)], strict=True)
    assert codes == (DataError.exit_code, DistributedError.exit_code), printed
    assert printed[0] == "error: rank 1: The disk is broken.\n"
    assert "rank 0: another rank has ended; its message says why." in printed[1]
    assert time.monotonic() < began_at + 60
