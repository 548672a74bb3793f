"""What only a GPU can show: the same pixels, no waiting for the device, and a whole training."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.ranks import run_in_ranks
from vggdist.config import BatchSplit, DataConfig
from vggdist.data.batch import Batch
from vggdist.data.dataset import open_dataset
from vggdist.data.loader import TrainingLoader
from vggdist.data.plan import SamplePlan
from vggdist.distributed import process as world
from vggdist.distributed.process import Process

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]


def test_the_gpu_makes_the_images_that_the_cpu_makes(tiny_dataset):
    data = DataConfig(crop_size=32, train_scale_min=32, train_scale_max=40)
    manifest = open_dataset(tiny_dataset).train
    plan = SamplePlan(manifest.num_images, data, global_batch=8, seed=0)
    split = BatchSplit(global_batch=8, micro=8, accumulation_steps=1, world_size=1)
    images = {}
    for device in ("cpu", "cuda:0"):
        with TrainingLoader(manifest, plan, data, split, device=device) as loader:
            batch = next(loader)
        assert batch.images.device == torch.device(device)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        images[device] = batch.images.float().cpu()
    difference = (images["cpu"] - images["cuda:0"]).abs()
    # Decoders may differ by a grey level or two, and so may the rounding of the resize.
    assert difference.mean() < 1.0
    assert difference.quantile(0.99) <= 6.0


def steps_without_waiting(process: Process, precision: str) -> bool:
    """Three steps in which any wait for the device is an error."""
    from tests.training.small_engine import CROP_SIZE, small_engine
    from vggdist.training.agreement import Agreement, Verdict
    from vggdist.training.step import Meter, train_step

    world.stop()
    process = world.start("cuda")
    engine = small_engine(process, micro=4, batch_norm=True, precision=precision)
    agreement, meter = Agreement(engine), Meter(process.device)
    labels = torch.arange(4, device=process.device)
    pixels = torch.randint(256, (4, 3, CROP_SIZE, CROP_SIZE), dtype=torch.uint8)
    mean = torch.full((4, 3), 120.0, device=process.device)
    batch = Batch(pixels.to(process.device), mean, labels, labels, labels.cpu().numpy())
    for step in range(4):
        if step == 1:
            torch.cuda.set_sync_debug_mode("error")
        agreement.begin()
        train_step(engine, [batch] * 2, meter)
        verdict = Verdict(agreement.end(engine, stop_requested=False), step)
    torch.cuda.set_sync_debug_mode("default")
    return verdict.read() == (False, False, False, False)


@pytest.mark.multi_process
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_never_waits_for_the_gpu(precision):
    assert run_in_ranks(steps_without_waiting, 1, precision) == [True]


@pytest.mark.multi_process
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_training_runs_on_the_gpu_from_start_to_end(precision, tiny_overrides, tmp_path):
    command = [sys.executable, "launch/train.py", *tiny_overrides, "device=cuda"]
    done = subprocess.run(
        [*command, f"precision={precision}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "result.json").exists()
