"""The max-pooling that ends every block of convolutions."""

from torch import nn


class MaxPoolLayer(nn.MaxPool2d):
    """Over 2x2 pixels with stride 2 (section 2.1): (n, c, h, w) -> (n, c, h // 2, w // 2)."""

    def __init__(self) -> None:
        super().__init__(kernel_size=2, stride=2)
