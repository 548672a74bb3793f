"""What a network costs before it exists: weight layers, parameters, multiply-adds and shapes."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from vggdist.config import ModelConfig
from vggdist.layers.local_response_norm import LocalResponseNorm
from vggdist.layers.maxpool_layer import MaxPoolLayer
from vggdist.model.vgg import build_vgg, layer_name


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

    def to_dict(self) -> dict[str, object]:
        """The fields as dictionaries, tuples, strings and integers, ready for JSON."""
        return asdict(self)


def summarize(config: ModelConfig, crop_size: int) -> ModelSummary:
    """Counts by sending a shape through the network on torch's meta device: no memory, no weights.

    Multiply-adds are those of convolutions and fully connected layers without biases, as
    torchvision counts its `_ops`.

    Raises:
        ValueError: `crop_size` cannot be halved once per block.
    """
    model = build_vgg(config, crop_size, device="meta").eval()
    layers: list[LayerSummary] = []
    for path, module in model.named_modules():
        if isinstance(
            module, nn.Conv2d | nn.BatchNorm2d | LocalResponseNorm | MaxPoolLayer | nn.Linear
        ):
            module.register_forward_hook(_counting(layer_name(path), layers))
    model(torch.empty(1, 3, crop_size, crop_size, device="meta"))
    return ModelSummary(
        configuration=config.configuration,
        crop_size=crop_size,
        num_parameters=sum(layer.num_parameters for layer in layers),
        multiply_adds=sum(layer.multiply_adds for layer in layers),
        layers=tuple(layers),
    )


def _counting(
    name: str, layers: list[LayerSummary]
) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
    """A forward hook that appends the layer to `layers`."""

    def count(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        shape = tuple(output.shape[1:])
        num_parameters = sum(parameter.numel() for parameter in module.parameters())
        layers.append(
            LayerSummary(name, _kind(module), shape, num_parameters, _multiply_adds(module, shape))
        )

    return count


def _kind(module: nn.Module) -> str:
    """What a layer is called in the table."""
    match module:
        case nn.Conv2d():
            return f"convolution {module.kernel_size[0]}x{module.kernel_size[0]}"
        case nn.BatchNorm2d():
            return "batch normalization"
        case LocalResponseNorm():
            return "LRN"
        case MaxPoolLayer():
            return "max-pooling 2x2"
        case _:
            return "fully connected"


def _multiply_adds(module: nn.Module, output_shape: tuple[int, ...]) -> int:
    """Of one image: every weight once per output pixel; none in layers without a matrix."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        num_pixels = output_shape[1] * output_shape[2] if len(output_shape) == 3 else 1
        return module.weight.numel() * num_pixels
    return 0


def render_summary(summary: ModelSummary) -> str:
    """The summary as a table of text; the caller prints it."""
    name = summary.configuration if isinstance(summary.configuration, str) else "custom"
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
