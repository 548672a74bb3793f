"""Building a network with the weights of a file, or listing the layers that differ."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vggdist.artifacts.weights import Weights
from vggdist.config import FULLY_CONNECTED, ModelConfig
from vggdist.errors import WeightsError
from vggdist.model.vgg import VGG, build_vgg, layer_name

ABSENT = "the file no such layer"
"""End of a `differing_layers` line for a layer missing from the file."""


def build_network(
    weights: Weights, model: ModelConfig | None = None, *, convolutions_only: bool = False
) -> VGG:
    """The network with these weights, fp32, on the CPU, in evaluation mode.

    Args:
        weights: a file's weights.
        model: the expected network; None: as the file describes.
        convolutions_only: leave the fully connected layers without memory, on the meta device; the
            file need not have them.

    Raises:
        WeightsError: the weights are of another network; the message lists the differing layers.
    """
    network = build_vgg(model or weights.description.model, weights.description.crop_size, "meta")
    expected, tensors = network.state_dict(), weights.tensors
    if convolutions_only:
        expected, tensors = _convolutions(expected), _convolutions(tensors)
    require_fit(expected, tensors, str(weights.path))
    network.load_state_dict(tensors, strict=not convolutions_only, assign=True)
    return network.eval()


def _convolutions(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith("features.")}


def require_fit(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuses tensors that are not those of a network.

    Args:
        expected: the network's, by their names.
        tensors: those that are given.
        what: name of the source of the tensors, for the message.

    Raises:
        WeightsError: lists the layers that differ.
    """
    differing = differing_layers(expected, tensors)
    missing = {line.partition(":")[0] for line in differing if line.endswith(ABSENT)}
    if len(differing) == len(missing) and missing == set(FULLY_CONNECTED):
        raise WeightsError(
            f"{what} has convolutions only, and this needs fc6, fc7 and fc8 too. With such a file "
            "a training can begin (model.initialize_from), and `vggdist features --layer pool5` "
            "describes images."
        )
    if differing:
        listing = "\n".join(f"  - {line}" for line in differing)
        remedy = (
            "Name the configuration, batch normalization, number of classes and crop size that "
            "they were trained with."
        )
        if all(line.endswith(ABSENT) for line in differing):
            remedy += " A file imported with --partial can only begin a training, as "
            remedy += "model.initialize_from."
        raise WeightsError(
            f"{what} holds the weights of another network. These layers differ:\n{listing}\n"
            f"{remedy}"
        )


def differing_layers(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """A line for each weight layer that differs, by its name in the paper."""
    wanted, found = _shapes(expected), _shapes(given)
    lines = []
    for name in sorted(wanted | found):
        if wanted.get(name) != found.get(name):
            here = wanted.get(name, "no such layer")
            there = f"the file {found[name]}" if name in found else ABSENT
            lines.append(f"{name}: the network has {here}, {there}")
    return lines


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Layer -> its tensors' shapes as text, such as `weight 64x3x3x3, bias 64`."""
    layers: dict[str, list[str]] = {}
    for path, tensor in tensors.items():
        try:
            layer = layer_name(path)
        except ValueError:
            layer = path
        if not path.endswith("num_batches_tracked"):
            shape = "x".join(map(str, tensor.shape))
            layers.setdefault(layer, []).append(f"{path.rpartition('.')[2]} {shape}")
    return {name: ", ".join(sorted(shapes, reverse=True)) for name, shapes in layers.items()}
