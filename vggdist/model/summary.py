"""The layers of a network counted from its configuration: shapes, parameters, multiply-adds.

No torch and no weights; a test holds the counts to those of the network itself.
"""

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass

from vggdist.config import FULLY_CONNECTED, ModelConfig
from vggdist.model.configurations import Convolution, configuration_name


@dataclass(frozen=True)
class LayerSummary:
    """One layer, for one image: `output_shape` is (c, h, w) or (units,)."""

    name: str
    kind: str
    output_shape: tuple[int, ...]
    num_parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class ModelSummary:
    """A network in numbers: `configuration` as in `ModelConfig`, `multiply_adds` for one image."""

    configuration: str | tuple[tuple[str, ...], ...]
    crop_size: int
    num_parameters: int
    multiply_adds: int
    layers: tuple[LayerSummary, ...]

    @property
    def num_weight_layers(self) -> int:
        """The number in the head of Table 1: convolutions and fully connected layers."""
        return sum(layer.multiply_adds > 0 for layer in self.layers)

    def weight_layers(self) -> Iterator[tuple[LayerSummary, ...]]:
        """Each weight layer with the layers without a matrix that follow it."""
        starts = [number for number, layer in enumerate(self.layers) if layer.multiply_adds]
        for start, end in zip(starts, [*starts[1:], len(self.layers)], strict=True):
            yield self.layers[start:end]

    def backward_passes(self, trained: Collection[str]) -> dict[str, int]:
        """Weight layer -> parts of its backward pass, each as long as its forward pass.

        One for the gradient of the weights if the layer is among the trained, one for that of its
        input if a layer before it is.
        """
        passes: dict[str, int] = {}
        is_above = False
        for layer, *_ in self.weight_layers():
            passes[layer.name] = (layer.name in trained) + is_above
            is_above |= layer.name in trained
        return passes

    def dense_multiply_adds(self, height: int, width: int, num_places: int) -> int:
        """Multiply-adds of a whole image of `height` x `width` pixels.

        Args:
            num_places: of the score map: the fully connected layers compute each.
        """
        total = 0
        for layer in self.layers:
            if len(layer.output_shape) == 1:
                total += num_places * layer.multiply_adds
                continue
            side = layer.output_shape[1]
            pixels = self.crop_size // side  # along a side, of the image, for one place of the map
            total += (height // pixels) * (width // pixels) * (layer.multiply_adds // side**2)
        return total

    def to_dict(self) -> dict[str, object]:
        """The fields as dictionaries, tuples, strings and integers, ready for JSON."""
        return asdict(self)


def summarize(config: ModelConfig, crop_size: int, fc6_side: int | None = None) -> ModelSummary:
    """Counts layer by layer, in the order in which an image passes them.

    Multiply-adds are those of convolutions and fully connected layers without biases, as
    torchvision counts its `_ops`.

    Args:
        config: the network.
        crop_size: side of the images in pixels.
        fc6_side: of the maps that fc6 takes, if something pools them to it; none: what the last
            max-pooling leaves.

    Raises:
        ValueError: `crop_size` cannot be halved once per block.
    """
    blocks = config.blocks()
    require_halves(crop_size, len(blocks))
    layers: list[LayerSummary] = []
    channels, side = 3, crop_size
    for block, parts in enumerate(blocks, start=1):
        number = 0
        for part in parts:
            if isinstance(part, Convolution):
                number += 1
                size, weights = part.kernel_size, part.kernel_size**2 * channels * part.channels
                channels = part.channels
                rows = [("conv", f"convolution {size}x{size}", weights + channels, weights)]
                if config.batch_norm:
                    rows.append(("norm", "batch normalization", 2 * channels, 0))
            else:
                rows = [("lrn", "LRN", 0, 0)]
            layers += [
                LayerSummary(
                    f"{name}{block}_{number}",
                    kind,
                    (channels, side, side),
                    num_parameters,
                    num_weights * side * side,
                )
                for name, kind, num_parameters, num_weights in rows
            ]
        side //= 2
        layers.append(LayerSummary(f"pool{block}", "max-pooling 2x2", (channels, side, side), 0, 0))
    inputs = channels * (fc6_side or side) ** 2
    widths = (config.fc_width, config.fc_width, config.fc8_width)
    for name, width in zip(FULLY_CONNECTED, widths, strict=True):
        layers.append(
            LayerSummary(name, "fully connected", (width,), (inputs + 1) * width, inputs * width)
        )
        inputs = width
    return ModelSummary(
        configuration=config.configuration,
        crop_size=crop_size,
        num_parameters=sum(layer.num_parameters for layer in layers),
        multiply_adds=sum(layer.multiply_adds for layer in layers),
        layers=tuple(layers),
    )


def require_halves(crop_size: int, num_blocks: int) -> None:
    """Each block ends in a pooling that halves the maps.

    Raises:
        ValueError: `crop_size` cannot be halved once per block.
    """
    if crop_size % 2**num_blocks:
        raise ValueError(
            f"crop_size {crop_size} cannot be halved {num_blocks} times, once per block; "
            f"use a multiple of {2**num_blocks}."
        )


def render_summary(summary: ModelSummary) -> str:
    """The summary as a table of text; the caller prints it."""
    name = configuration_name(summary.configuration)
    lines = [
        f"{'layer':<10}{'kind':<21}{'output':>15}{'parameters':>14}{'multiply-adds':>17}",
        "-" * 77,
    ]
    for layer in summary.layers:
        output = " x ".join(map(str, layer.output_shape))
        lines.append(
            f"{layer.name:<10}{layer.kind:<21}{output:>15}"
            f"{layer.num_parameters:>14,}{layer.multiply_adds:>17,}"
        )
    lines += [
        "-" * 77,
        f"configuration {name}: {summary.num_weight_layers} weight layers, "
        f"{summary.num_parameters:,} parameters,",
        f"{summary.multiply_adds / 1e9:.3f} G multiply-adds for one image of "
        f"{summary.crop_size} x {summary.crop_size} pixels",
    ]
    return "\n".join(lines)
