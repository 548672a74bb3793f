"""Ranks that act as one: however long the main one takes, no collective lasts as long."""

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch.distributed import distributed_c10d

from tests.ranks import run_in_ranks
from vggdist.data import known_contents
from vggdist.data.dataset import open_dataset
from vggdist.distributed import process as world
from vggdist.distributed import rank
from vggdist.distributed.process import Process
from vggdist.distributed.rank import on_main
from vggdist.errors import DataError
from vggdist.prepare.packing import Packing
from vggdist.prepare.preparation import prepare
from vggdist.prepare.sources import FolderSource

TIMEOUT_SECONDS = 1.0


def be_impatient() -> None:
    """Collectives may last a second from now on."""
    distributed_c10d._set_pg_timeout(timedelta(seconds=TIMEOUT_SECONDS))
    rank.MEETING_SECONDS = 0.2


def hash_slowly(process: Process, root: Path) -> tuple[str, float]:
    """What the main rank makes of touched shards whose images take a while."""
    be_impatient()
    read, began_at = known_contents._read, time.monotonic()

    def slowly(manifest, images):
        time.sleep(2 * TIMEOUT_SECONDS)
        return read(manifest, images)

    known_contents._read = slowly
    dataset = on_main(process, lambda: open_dataset(root, write=True))
    digest = dataset.train.contents.sha256 if dataset else ""
    return world.gather(digest)[0], time.monotonic() - began_at


def fail_slowly(process: Process) -> str:
    be_impatient()

    def action() -> None:
        time.sleep(2 * TIMEOUT_SECONDS)
        raise DataError("The disk is broken.")

    try:
        on_main(process, action)
    except DataError as error:
        return str(error)
    except SystemExit as end:
        return f"code {end.code}"
    return "nothing"


@pytest.mark.multi_process
def test_touched_shards_may_take_longer_to_hash_than_a_collective_may_last(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    root = tmp_path / "shards"
    prepare(FolderSource(tiny_dataset), root, Packing("shards"))
    before = open_dataset(root, write=True).train.contents.sha256
    for shard in root.rglob("*.tar"):
        os.utime(shard)
    results = run_in_ranks(hash_slowly, 2, root)
    assert [digest for digest, _ in results] == [before, before]
    assert min(seconds for _, seconds in results) > 2 * TIMEOUT_SECONDS


@pytest.mark.multi_process
def test_all_ranks_end_where_the_main_one_fails_after_a_long_time() -> None:
    assert run_in_ranks(fail_slowly, 2) == [
        "The disk is broken.",
        f"code {DataError.exit_code}",
    ]


def test_a_gpu_without_memory_ends_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ..."
        )

    assert rank.run_rank(work) == 2
    assert capsys.readouterr().err == (
        "error: CUDA out of memory: the GPU's memory does not suffice. Set batch.micro lower than "
        "it is (in an evaluation evaluation.micro and evaluation.max_megapixels); `nvidia-smi` "
        "shows who else uses the GPU.\n"
    )
