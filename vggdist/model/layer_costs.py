"""What each weight layer of a training computes and sends. No torch."""

from dataclasses import dataclass
from math import prod

from vggdist.config import FULLY_CONNECTED, Config, trained_layers
from vggdist.distributed.exchange_time import Gradient
from vggdist.model.summary import summarize


@dataclass(frozen=True)
class Layer:
    """A weight layer, and what belongs to it.

    Attributes:
        name: the paper's name, conv1_1 to fc8.
        num_parameters: weights and biases, those of its batch normalization included.
        multiply_adds: of one image's forward pass, without biases.
        matrix: (in_features, out_features) of a fully connected layer, else none.
        backward_passes: as `ModelSummary.backward_passes`.
        is_trained: whether it has a gradient.
    """

    name: str
    num_parameters: int
    multiply_adds: int
    matrix: tuple[int, int] | None
    backward_passes: int
    is_trained: bool

    @property
    def gradient(self) -> Gradient:
        """What deciding about its exchange needs; a frozen layer sends nothing."""
        num_elements, matrix = (self.num_parameters, self.matrix) if self.is_trained else (0, None)
        return Gradient(self.name, num_elements, self.multiply_adds, self.backward_passes, matrix)


def count_layers(config: Config, fc6_side: int | None = None) -> tuple[Layer, ...]:
    """The weight layers of a training, from the first to the last.

    Args:
        config: its network, crop size and trained layers count.
        fc6_side: as for `summarize`.
    """
    trained = set(trained_layers(config))
    layers: list[Layer] = []
    summary = summarize(config.model, config.data.crop_size, fc6_side)
    backward_passes = summary.backward_passes(trained)
    for layer, *behind in summary.weight_layers():
        outputs = prod(layer.output_shape)
        is_connected = layer.name in FULLY_CONNECTED
        layers.append(
            Layer(
                layer.name,
                sum(row.num_parameters for row in (layer, *behind)),
                layer.multiply_adds,
                matrix=(layer.multiply_adds // outputs, outputs) if is_connected else None,
                backward_passes=backward_passes[layer.name],
                is_trained=layer.name in trained,
            )
        )
    return tuple(layers)
