"""Several GPUs: each rank on its own, one failure ends all, and NCCL's gradients are right."""

import os
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.small_engine import (
    CROP_SIZE,
    State,
    batch_of_step,
    given_gradients,
    loss_of,
    relative_difference,
    share,
    small_engine,
)
from vggdist.config import BatchSplit, DataConfig
from vggdist.data.dataset import open_dataset
from vggdist.data.loader import TrainingLoader
from vggdist.data.plan import SamplePlan
from vggdist.distributed.process import Process
from vggdist.training.flags import SentFlags, SharedFlags
from vggdist.training.step import Meter, train_step

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[2]

FAILING = """
import sys, time
from pathlib import Path
import torch
from vggdist.distributed import process as world
from vggdist.errors import DataError
from vggdist.distributed.rank import leave, run_rank
from vggdist.training.signals import StopSignal

def work():
    with StopSignal(), world.joined(sys.argv[1]) as process:
        world.all_agree(True, process.device)
        if process.rank == 1:
            Path(sys.argv[2]).write_text(str(time.time()))
            raise DataError("The disk is broken.")
        numbers = world.sum_over_ranks(torch.ones(1, device=process.device))
        return int(numbers.item())

sys.exit(leave(run_rank(work)))
"""


def test_a_rank_that_fails_alone_ends_all_of_them_within_a_minute(
    require_gpus, device, tmp_path, figure
):
    require_gpus(2)
    script, failed_at = tmp_path / "script.py", tmp_path / "failed_at"
    script.write_text(FAILING)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(script), device.type, str(failed_at)]
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    seconds = time.time() - float(failed_at.read_text())
    figure("seconds from the error to the end of the launcher", seconds)
    assert ended.returncode != 0
    assert "error: rank 1: The disk is broken." in ended.stderr
    assert seconds < 60


def gpus_in_use(process: Process, root: str) -> list[int]:
    """The GPUs that this process has opened, after steps on images of the loader."""
    images, data = (
        open_dataset(root).train,
        DataConfig(crop_size=CROP_SIZE, train_scale_min=32, train_scale_max=40),
    )
    split = BatchSplit(4 * process.world_size, 4, 1, process.world_size)
    plan = SamplePlan(images.num_images, data, split.global_batch, seed=0)
    engine = small_engine(process, micro=4)
    flags, meter = SharedFlags(engine), Meter(process.device)
    with TrainingLoader(
        images, plan, data, split, rank=process.rank, device=process.device
    ) as loader:
        for step in range(3):
            flags.begin()
            train_step(engine, islice(loader, 1), meter)
            SentFlags(flags.end(engine, stop_requested=False), step).read()
    count = torch.cuda.device_count()
    return [number for number in range(count) if torch._C._cuda_hasPrimaryContext(number)]


def test_each_rank_opens_its_own_gpu_and_no_other(require_gpus, in_ranks, photos, device, figure):
    require_gpus(2)
    found = in_ranks(gpus_in_use, 2, str(photos))
    figure("GPUs of each rank", found)
    assert found == ([[0], [1]] if device.type == "cuda" else [[], []])


def gradients_of_both_ways(process: Process) -> dict[str, State]:
    """Way -> this rank's gradients in the third of three steps, in which no wait is allowed."""
    results: dict[str, State] = {}
    on_gpu = process.device.type == "cuda"
    for exchange in ("all_reduce", "factors"):
        engine = small_engine(process, micro=2, precision="bf16", exchange=exchange)
        noted: dict[str, Any] = {}
        engine.optimizer.register_step_pre_hook(
            lambda *_, e=engine, n=noted: n.update(given_gradients(e))
        )
        shares = [
            [part.to(process.device) for part in share(tensor, process, 1)]
            for tensor in batch_of_step(0)
        ]
        engine.optimizer.set_learning_rate(1e-6)  # the weights stay the same in both
        for step in range(3):
            if step == 2 and on_gpu:
                torch.cuda.set_sync_debug_mode("error")
            for images, labels, keys in zip(*shares, strict=True):
                engine.backward(loss_of(engine, images, labels, keys))
                engine.step()
        if on_gpu:
            torch.cuda.set_sync_debug_mode("default")
        results[exchange] = {name: gradient.cpu() for name, gradient in noted.items()}
    return results


@pytest.mark.parametrize("world_size", [2, 4])
def test_factors_of_all_ranks_give_the_gradients_of_an_all_reduce(
    world_size, require_gpus, in_ranks, figure
):
    require_gpus(world_size)
    differences = [
        relative_difference(results["factors"], results["all_reduce"])
        for results in in_ranks(gradients_of_both_ways, world_size)
    ]
    figure("largest relative difference", max(differences))
    assert max(differences) < 2.0**-6
