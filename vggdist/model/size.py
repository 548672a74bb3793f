"""How large a network is for images of any size: the counts of `model/summary.py` by place."""

from __future__ import annotations

from dataclasses import dataclass

from vggdist.config import ModelConfig
from vggdist.model.summary import summarize


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
    sizes = []
    for layer, *behind in summarize(model, crop_size).weight_layers():
        is_convolution = len(layer.output_shape) == 3
        side = layer.output_shape[1] if is_convolution else 1
        sizes.append(
            LayerSize(
                layer.name,
                sum(row.num_parameters for row in (layer, *behind)),
                layer.multiply_adds // side**2,
                crop_size // side if is_convolution else 0,
            )
        )
    return tuple(sizes)


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
