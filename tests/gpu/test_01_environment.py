"""What the other tests run on."""

import pytest
import torch

from tests.machine import describe
from vggdist.distributed.device import require_kernels

pytestmark = pytest.mark.gpu


def test_torch_has_kernels_for_the_device_and_they_run(device, figure):
    for name, value in describe(device).items():
        figure(name, value)
    if device.type == "cuda":
        require_kernels(device)
    maps = torch.ones(2, 8, 16, 16, device=device).to(memory_format=torch.channels_last)
    layer = torch.nn.Conv2d(8, 8, 3, padding=1, device=device)
    with torch.no_grad():
        layer.weight.fill_(0.5)
        layer.bias.zero_()
        assert layer(maps)[0, 0, 8, 8].item() == 0.5 * 8 * 9
