"""How large a network is, counted from its configuration: no torch, no weights.

`vggdist/model/summary.py` counts the same on the network itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from vggdist.config import FULLY_CONNECTED, ModelConfig
from vggdist.model.configurations import Convolution


@dataclass(frozen=True)
class LayerSize:
    """A weight layer."""

    name: str
    """As in the paper, conv1_1 to fc8."""
    num_parameters: int
    """Weights, biases, and batch normalization's."""
    multiply_adds: int
    """For one place of its output map; the fully connected layers have one place for each crop."""
    downsampling: int
    """How many pixels of the image, along a side, one place of the map stands for; 0: all."""


def layer_sizes(model: ModelConfig, crop_size: int) -> tuple[LayerSize, ...]:
    """The weight layers, from the first to the last.

    Args:
        crop_size: side of the network's input, pixels; fc6 is as large as it makes the last map.
    """
    layers, channels = [], 3
    for block, parts in enumerate(model.blocks()):
        convolutions = [part for part in parts if isinstance(part, Convolution)]
        for number, part in enumerate(convolutions, start=1):
            weights = part.kernel_size**2 * channels * part.channels
            extra = part.channels * (3 if model.batch_norm else 1)
            name = f"conv{block + 1}_{number}"
            layers.append(LayerSize(name, weights + extra, weights, 2**block))
            channels = part.channels
    side = crop_size >> len(model.blocks())
    inputs = channels * side * side
    widths = (model.fc_width, model.fc_width, model.num_classes)
    for name, outputs in zip(FULLY_CONNECTED, widths, strict=True):
        layers.append(LayerSize(name, (inputs + 1) * outputs, inputs * outputs, 0))
        inputs = outputs
    return tuple(layers)


def multiply_adds(layers: tuple[LayerSize, ...], height: int, width: int, num_places: int) -> int:
    """Multiply-adds of one image.

    Args:
        height, width: of the image, pixels.
        num_places: of the score map; 1 for a crop.
    """
    return sum(
        layer.multiply_adds
        * (
            (height // layer.downsampling) * (width // layer.downsampling)
            if layer.downsampling
            else num_places
        )
        for layer in layers
    )
