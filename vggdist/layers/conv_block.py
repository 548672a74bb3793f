"""One block of Table 1: convolutions of one resolution. `MaxPoolLayer` pools after it."""

from collections.abc import Sequence

from torch import nn

from vggdist.layers.local_response_norm import LocalResponseNorm
from vggdist.model.configurations import Convolution, Layer


class ConvBlock(nn.Sequential):
    """Convolutions that keep height and width: (n, in_channels, h, w) -> (n, out_channels, h, w).

    The n-th convolution is `conv<n>`, followed by `norm<n>` with batch normalization, `relu<n>`,
    and `lrn<n>` where the configuration says LRN. Checkpoints are keyed by these names.
    """

    def __init__(self, in_channels: int, layers: Sequence[Layer], batch_norm: bool = False) -> None:
        """Builds the block.

        Args:
            in_channels: channels of the input maps.
            layers: one block of a `Configuration`, beginning with a convolution.
            batch_norm: batch normalization before each ReLU. The convolution keeps its bias, which
                is then redundant, so that weights and parameter counts are torchvision's.
        """
        super().__init__()
        channels, number = in_channels, 0
        for layer in layers:
            if isinstance(layer, Convolution):
                number += 1
                size = layer.kernel_size
                convolution = nn.Conv2d(channels, layer.channels, size, padding=size // 2)
                channels = layer.channels
                self.add_module(f"conv{number}", convolution)
                if batch_norm:
                    self.add_module(f"norm{number}", nn.BatchNorm2d(channels))
                self.add_module(f"relu{number}", nn.ReLU(inplace=True))
            else:
                self.add_module(f"lrn{number}", LocalResponseNorm())
        self.out_channels = channels
