"""The step from feature maps to the fully connected layers."""

from torch import Tensor, nn


class FlattenLayer(nn.Module):
    """(n, c, h, w) -> (n, c * h * w), ordered channel, row, column whatever the memory format.

    This is the order of torchvision's fc6 weights. `view` would fail on channels_last maps, which
    are stored as row, column, channel.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(start_dim=1)
