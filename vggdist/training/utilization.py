"""Model FLOP utilization: the share of its devices' peak that a training makes use of.

That is images/s x floating-point operations of an image / (devices x peak of each). The operations
are those of the network's matrices, whatever computes them: an algorithm that needs fewer, such as
Winograd's, may be above 1.
"""

import torch

from vggdist.config import Config
from vggdist.distributed.peak import peak_teraflops
from vggdist.model.layer_costs import count_layers


class Utilization:
    """Of a training, where the peak of its devices in its precision is known.

    Attributes:
        peak: which peak that is, in words; empty: it is not known.
    """

    def __init__(self, config: Config, world_size: int, device: torch.device) -> None:
        self.peak = ""
        self._images_per_second_at_peak = float("inf")
        if device.type != "cuda":
            return
        name, precision = torch.cuda.get_device_name(device), config.resolved_precision
        teraflops = peak_teraflops(name, precision)
        if teraflops is not None:
            self.peak = f"{name} in {precision}: {teraflops:g} TFLOPS"
            flops = training_flops(config)
            self._images_per_second_at_peak = world_size * teraflops * 1e12 / flops

    def of(self, images_per_second: float) -> dict[str, float]:
        """The fraction at a speed of all ranks, by its name; empty where it is not known."""
        if not self.peak:
            return {}
        return {"model_flop_utilization": images_per_second / self._images_per_second_at_peak}


def training_flops(config: Config) -> int:
    """Floating-point operations of a step for one image, a multiply-add being two.

    With F the multiply-adds of the forward pass and F1 those of the first layer, 2 (3 F - F1), if
    all layers are trained.
    """
    return sum(
        2 * layer.multiply_adds * (1 + layer.backward_passes) for layer in count_layers(config)
    )
