"""Signals that come to a training before its first step, while something else takes its time."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import leave_world, run_in_ranks
from vggdist import pretrain
from vggdist.config_file import load_config
from vggdist.data import loader, local_copy
from vggdist.distributed.process import Process
from vggdist.errors import EXIT_STOPPED
from vggdist.prepare.packing import Packing
from vggdist.prepare.preparation import prepare
from vggdist.prepare.sources import FolderSource
from vggdist.training import dataset

pytestmark = [pytest.mark.multi_process, pytest.mark.fault]

FOREVER_SECONDS = 100.0


def start(process: Process, overrides: list[str], where: str, rank: int) -> tuple[int, float]:
    """The exit code of a training to whose `rank` a signal comes in `where`; and the seconds."""
    leave_world()
    sent_at: list[float] = []

    def send() -> None:
        sent_at.append(time.monotonic())
        if process.rank == rank:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()

    def before(function: Callable[..., Any], *actions: Callable[[], object]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            for action in actions:
                action()
            return function(*arguments, **named)

        return call

    def list_slowly() -> None:
        # The main rank's own signal ends its listing at once; another's is heeded behind it.
        if process.is_main:
            time.sleep(FOREVER_SECONDS if rank == 0 else 1.0)

    def copy_shards(_: Any, folder: Path, cancelled: threading.Event) -> None:
        assert cancelled.wait(FOREVER_SECONDS)

    def read_slowly() -> None:
        time.sleep(FOREVER_SECONDS if process.rank == rank else 1.0)

    if where == "listing":
        pretrain.resolve_precision = before(pretrain.resolve_precision, send)
        dataset.survey_dataset = before(dataset.survey_dataset, list_slowly)
    elif where == "copying":
        pretrain.copy_to_node = before(pretrain.copy_to_node, send)
        local_copy.copy_shards = copy_shards
    elif where == "first batch":
        pretrain.open_training_loader = before(pretrain.open_training_loader, send)
        loader.TrainingLoader.__next__ = before(loader.TrainingLoader.__next__, read_slowly)
    else:
        pretrain.build_trainable = before(pretrain.build_trainable, send, lambda: time.sleep(0.5))
    code = pretrain.run(load_config(None, overrides))
    return code, time.monotonic() - sent_at[0]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("where", ["listing", "copying", "building", "first batch"])
def test_a_signal_to_any_rank_ends_all_before_the_first_step(
    tiny_dataset: Path,
    tiny_overrides: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    where: str,
    rank: int,
) -> None:
    overrides = tiny_overrides
    if where == "copying":
        shards = tmp_path / "shards"
        prepare(FolderSource(tiny_dataset), shards, Packing("shards"))
        capfd.readouterr()
        local = f"data.local_folder={tmp_path / 'local'}"
        overrides = [*overrides, f"data.root={shards}", local]
    ended = run_in_ranks(start, 2, overrides, where, rank)
    assert [code for code, _ in ended] == [EXIT_STOPPED] * 2
    assert max(seconds for _, seconds in ended) < FOREVER_SECONDS / 2
    told = capfd.readouterr().err
    assert told.count("SIGTERM received: stopping") == (rank == 0)
    assert (
        told.count("stopped before there was anything to save; the same command starts again.") == 1
    )
    assert "Traceback" not in told
    assert "error" not in told
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "metrics.jsonl").exists() or where in ("building", "first batch")
