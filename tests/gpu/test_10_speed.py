"""What a training of configuration D costs; figures are printed, and only their order is held."""

import pytest
import torch

from tests.benchmarks.gpu import (
    QUICK,
    Size,
    in_own_process,
    loader_rows,
    measure_loader,
    measure_training,
    settings,
    training_rows,
)
from vggdist.config import split_batch
from vggdist.config_file import load_config
from vggdist.model.fitting import needed_memory
from vggdist.model.memory import count_memory

pytestmark = pytest.mark.gpu

FITS_GIGABYTES = 40
"""D in 16 bits at a micro batch of 256 takes about 30 GB."""


@pytest.mark.parametrize("larger", [False, True], ids=["64 images", "256 images"])
def test_a_training_step_its_memory_and_its_images(larger, photos, device, rehearsal, figure):
    size = QUICK if rehearsal else Size(rounds=3, loader_seconds=1.5)
    if larger and rehearsal:
        pytest.skip("is the same as with 64 images")
    if larger:
        memory = torch.cuda.get_device_properties(device).total_memory / 1e9
        if memory < FITS_GIGABYTES:
            pytest.skip(f"needs a GPU with {FITS_GIGABYTES} GB, and this one has {memory:.0f}")
    overrides = settings(device.type, photos, size, size.micros[larger])
    training = measure_training(overrides, size.rounds)
    config = load_config(None, [*overrides, f"precision={training['precision']}"])
    split = split_batch(config.batch, 1)
    counted, needed = count_memory(config, split, {})["total"], needed_memory(config, split)
    figure("memory of the tensors by count, GB", counted / 1e9)
    figure("memory by which the micro batch is chosen, GB", needed / 1e9)
    shares = size.shares[:1] if larger else size.shares
    loader = in_own_process(measure_loader, overrides, shares, size.loader_seconds)
    for name, value in training_rows(training) + loader_rows(loader):
        figure(name, value)
    figure("bound", training["advice"])
    assert training["vggdist_seconds"] > 0
    figure("tuned with", ", ".join(training["tuned_settings"]))
    for sentence in training["tuned_missing"]:
        figure("not tuned", sentence)
    if device.type == "cuda":
        assert training["tuned_settings"] == ["cudnn.benchmark", "torch.compile", "a CUDA graph"]
    assert all(rate > 0 for rate in loader["images_per_second"].values())
    if device.type == "cuda":  # elsewhere it is an estimate
        # Weights and momentum of 138 million parameters alone are 1.1 GB.
        assert 1.1 < training["peak_gigabytes"]["vggdist"] < needed / 1e9
        assert loader["gigabytes"] < 8
