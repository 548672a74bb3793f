"""A network as a plan sees it: what each weight layer computes, keeps and sends. No torch.

The counts are those of `model/summary.py`, which asks torch; a test compares the two.
"""

from dataclasses import dataclass

from vggdist.config import FULLY_CONNECTED, Config, trained_layers
from vggdist.model.configurations import Convolution


@dataclass(frozen=True)
class PlannedLayer:
    """A weight layer, and what belongs to it.

    Attributes:
        name: the paper's name, conv1_1 to fc8.
        num_parameters: weights and biases, those of its batch normalization included.
        multiply_adds: of one image's forward pass, without biases.
        kept_elements: what autograd keeps of one image for the backward pass.
        kept_indices: places that the max-pooling behind the layer keeps of one image.
        matrix: (in_features, out_features) of a fully connected layer, else none.
        backward_passes: each as long as the forward pass: one for the gradient of the weights if
            the layer is trained, one for that of its input if a layer before it is.
        is_trained: whether it has a gradient.
    """

    name: str
    num_parameters: int
    multiply_adds: int
    kept_elements: int
    kept_indices: int
    matrix: tuple[int, int] | None
    backward_passes: int
    is_trained: bool


def plan_layers(config: Config, pooled_side: int | None = None) -> tuple[PlannedLayer, ...]:
    """The weight layers of a configuration, from the first to the last.

    Args:
        config: its network, crop size and trained layers count.
        pooled_side: side of the maps that fc6 takes, if something pools them to it; none: what the
            last max-pooling leaves.
    """
    trained = set(trained_layers(config))
    layers: list[PlannedLayer] = []

    def add(name: str, num_parameters: int, multiply_adds: int, **rest: object) -> None:
        passes = int(name in trained) + int(any(layer.is_trained for layer in layers))
        values = {"kept_indices": 0, "matrix": None, **rest}
        layers.append(
            PlannedLayer(
                name=name,
                num_parameters=num_parameters,
                multiply_adds=multiply_adds,
                backward_passes=passes,
                is_trained=name in trained,
                **values,  # type: ignore[arg-type]
            )
        )

    model, side, channels = config.model, config.data.crop_size, 3
    for block, block_layers in enumerate(model.blocks(), start=1):
        convolutions = [layer for layer in block_layers if isinstance(layer, Convolution)]
        for number, layer in enumerate(convolutions, start=1):
            weights = layer.kernel_size**2 * channels * layer.channels
            outputs = side * side * layer.channels
            pooled = outputs // 4 if number == len(convolutions) else 0
            add(
                f"conv{block}_{number}",
                weights + layer.channels * (3 if model.batch_norm else 1),
                weights * side * side,
                # ReLU works in place: its outputs are kept once, for itself and the next layer.
                kept_elements=outputs * (2 if model.batch_norm else 1) + pooled,
                kept_indices=pooled,
            )
            channels = layer.channels
        side //= 2
    units = (pooled_side or side) ** 2 * channels
    widths = (model.fc_width, model.fc_width, model.num_classes)
    for name, width in zip(FULLY_CONNECTED, widths, strict=True):
        # What ReLU gives, and its product with dropout's mask, which is the next layer's input.
        kept = width if name == FULLY_CONNECTED[-1] else 2 * width
        add(name, (units + 1) * width, units * width, kept_elements=kept, matrix=(units, width))
        units = width
    return tuple(layers)
