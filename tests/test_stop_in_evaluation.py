"""A signal to one rank of an evaluation, in the middle of its images."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import leave_world, run_in_ranks
from vggdist import evaluate as evaluation
from vggdist.artifacts.weights import Description, save_weights
from vggdist.config import ModelConfig
from vggdist.distributed.process import Process
from vggdist.distributed.rank import run_rank
from vggdist.errors import EXIT_STOPPED
from vggdist.evaluate import Request, evaluate
from vggdist.model.initialization import build_initialized
from vggdist.training.signals import StopSignal

MODEL = ModelConfig(configuration=(("3-4",), ("3-4",)), num_classes=3, fc_width=8)


def stopped(process: Process, request: Request, rank: int, is_job: bool) -> tuple[int, int]:
    """The exit code, and how many images this rank has sent through the network as wholes."""
    leave_world()
    evaluation.GROUP_SIZE = 1
    compute, seen = evaluation.dense_posteriors, []

    def slowly(*arguments: Any) -> Any:
        seen.append(arguments)
        if len(seen) == 2 and process.rank == rank:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        time.sleep(0.3)
        return compute(*arguments)

    evaluation.dense_posteriors = slowly

    def work() -> int:
        if is_job:  # which heeds signals from its start
            with StopSignal(speaks=process.is_main) as stop:
                evaluate(request, stop)
        else:
            evaluate(request, heeds_signals=True)
        return 0

    return run_rank(work), len(seen)


@pytest.mark.slow
@pytest.mark.multi_process
@pytest.mark.parametrize(("rank", "is_job"), [(0, True), (1, False)])
def test_all_ranks_end_after_the_same_images_and_finished_files_are_kept(
    tiny_dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], rank: int, is_job: bool
) -> None:
    network = tmp_path / "net.safetensors"
    description = Description(MODEL, 32, (120.0, 120.0, 120.0), train_scale=(32, 40))
    save_weights(network, build_initialized(MODEL, 32, seed=0).state_dict(), description)
    request = Request(
        str(network),
        str(tiny_dataset),
        protocols=("center-crop", "dense"),
        out=tmp_path / "out",
        overrides=("precision=fp32", "device=cpu"),
    )
    assert run_in_ranks(stopped, 2, request, rank, is_job) == [(EXIT_STOPPED, 2)] * 2
    told = capfd.readouterr().err
    answer = "SIGINT received: stopping; files that are finished are kept."
    assert told.count(answer) == (rank == 0)
    assert told.count("stopped in an evaluation; the same command continues.") == 1
    assert "Traceback" not in told
    assert [path.name.split("-")[1] for path in (tmp_path / "out").glob("*.npz")] == ["center"]
    whole, again = evaluate(replace(request, out=tmp_path / "new")), evaluate(request)
    assert whole is not None
    assert again is not None
    assert again.num_computed * 2 == whole.num_computed
