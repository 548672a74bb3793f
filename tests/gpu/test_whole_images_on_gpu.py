"""Whole images that a GPU decodes and rescales are those of the CPU."""

import pytest
import torch

from vggdist.config import DataConfig
from vggdist.data.dataset import open_dataset
from vggdist.data.whole_images import WholeImageLoader

pytestmark = pytest.mark.gpu


def test_the_gpu_makes_the_whole_images_that_the_cpu_makes(tiny_dataset):
    manifest = open_dataset(tiny_dataset).train
    data = DataConfig(crop_size=32)
    groups = {}
    for device in ("cpu", "cuda:0"):
        with WholeImageLoader(
            manifest, data, scales=(32, 48, 100), group_size=6, device=device, num_threads=2
        ) as loader:
            groups[device] = [one for group in loader for one in group]
    for cpu, gpu in zip(groups["cpu"], groups["cuda:0"], strict=True):
        assert gpu.pixels.device == gpu.labels.device == torch.device("cuda:0")
        assert gpu.images.is_contiguous(memory_format=torch.channels_last)
        assert cpu.index.tolist() == gpu.index.tolist()
        assert torch.equal(cpu.labels, gpu.labels.cpu())
        difference = (cpu.pixels.float() - gpu.pixels.cpu().float()).abs()
        # Decoders may differ by a grey level or two.
        assert difference.mean() < 1.0
        assert difference.quantile(0.99) <= 6.0
