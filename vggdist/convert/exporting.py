"""Networks out: files for other programs, each checked against the network before it is kept."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, assert_never, get_args

import torch
from torch import nn

from vggdist.artifacts.files import replacing
from vggdist.artifacts.names import listed
from vggdist.artifacts.paths import quote, require_suffix
from vggdist.artifacts.weights import (
    METADATA_KEY,
    Description,
    Weights,
    load_weights,
    save_weights,
)
from vggdist.convert.graphs import DenseLogits, Network, write_onnx, write_torch_export
from vggdist.convert.importing import input_text
from vggdist.convert.layouts import last_channels, numbered_modules
from vggdist.errors import ConfigError, WeightsError
from vggdist.model.class_names import class_names
from vggdist.model.configurations import Configuration, Convolution
from vggdist.model.loading import build_network
from vggdist.model.vgg import VGG

Format = Literal["safetensors", "torchvision", "onnx", "torch-export"]
FORMATS: tuple[Format, ...] = get_args(Format)
GRAPHS: tuple[Format, ...] = ("onnx", "torch-export")
"""Formats that hold what is computed, not only weights."""

TOLERANCE = 1e-4
"""Largest difference between logits, as a share of the largest logit."""

_SUFFIXES: dict[Format, tuple[str, ...]] = {
    "safetensors": (".safetensors",),
    "torchvision": (".pth", ".pt"),
    "onnx": (".onnx",),
    "torch-export": (".pt2",),
}
_TOLD_ELSEWHERE = ("channels", "mean", "std", "output", "posteriors", "classes")
_TORCHVISION = {"A": "vgg11", "B": "vgg13", "D": "vgg16", "E": "vgg19"}
_TORCHVISION_FC_WIDTH, _TORCHVISION_CHANNELS, _TORCHVISION_SIDE = 4096, 512, 7
_LARGEST_ONNX = 2**31  # bytes: it is one Protocol Buffers message
_LARGEST_GRAPH = 2**23  # bytes: what a file has besides weights, such as torch.export's examples


@dataclass(frozen=True)
class Exported:
    """What an export has written, and how far it is from the original."""

    weights: Path
    out: Path
    format: Format
    dense: bool
    description: Description
    preprocessing: Mapping[str, Any]
    """As `Description.preprocessing`, with the names of ImageNet's classes where it has none."""
    largest_difference: float
    """Between its logits and the original's."""
    largest_logit: float
    """Of the original."""
    shapes: tuple[tuple[int, ...], ...]
    """(n, 3, height, width) of the random images that both were given."""
    how: str
    """How to load it."""

    @property
    def normalize(self) -> tuple[list[float], list[float]]:
        """Mean and std for torchvision's `Normalize`, whose pixels go from 0 to 1."""
        mean, std = self.description.mean, self.description.std
        return [value / 255 for value in mean], [value / 255 for value in std]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        mean, std = self.normalize
        return {
            "weights": str(self.weights),
            "out": str(self.out),
            "format": self.format,
            "dense": self.dense,
            "largest_difference": self.largest_difference,
            "largest_logit": self.largest_logit,
            "shapes": [list(shape) for shape in self.shapes],
            "normalize": {"mean": mean, "std": std},
            "preprocessing": self.preprocessing,
        }


def export(weights: Weights, out: Path, form: Format, *, dense: bool = False) -> Exported:
    """Writes a network as a file for other programs, if that gives the network's own logits.

    Args:
        weights: the network.
        out: the file; an old one is replaced at once or not at all.
        form: safetensors: a weights file of ours. torchvision: a state dict for its VGG class.
            onnx: with any number of images. torch-export: a .pt2 of torch.export, likewise.
        dense: the network for whole images of any height and width (section 3.2), of which it
            averages the score map; onnx and torch-export only.

    Raises:
        ConfigError: the format has no such network, or the file another suffix.
        WeightsError: its logits differ from the original's, or it cannot be written.
    """
    network = build_network(weights)
    _require_possible(weights, network, form, dense)
    require_suffix("--out", out, _SUFFIXES[form])
    original = DenseLogits(network).eval() if dense else network
    preprocessing = weights.description.preprocessing(whole=dense)
    preprocessing["classes"] = class_names(weights.description)
    try:
        with replacing(out, suffix=_SUFFIXES[form][0]) as temporary:
            _require_space(out, _num_bytes(network))
            reloaded = _write(form, weights, original, preprocessing, temporary)
            shapes = _shapes(network, dense)
            differences = [
                _compare(original, reloaded, shape, weights.description) for shape in shapes
            ]
            difference, logit = torch.tensor(differences).amax(dim=0).tolist()  # nan stays nan
            if not difference <= TOLERANCE * logit:
                raise WeightsError(
                    f"{quote(out)} is not written: its logits differ from the network's by up to "
                    f"{difference:g}, where the largest logit is {logit:g}. Weights that are not "
                    "finite do that; otherwise please report it."
                )
    except OSError as error:
        raise WeightsError(f"{quote(out)} cannot be written: {error}.") from error
    return Exported(
        weights.path,
        out,
        form,
        dense,
        weights.description,
        preprocessing,
        difference,
        logit,
        shapes,
        _how_to_load(form, weights.description, out),
    )


def render_exported(exported: Exported) -> str:
    """What a person should know of an export, in a few lines."""
    mean, std = (f"[{', '.join(f'{value:.6g}' for value in v)}]" for v in exported.normalize)
    size = exported.description.crop_size
    shape = (
        f"(n, 3, h, w), h and w at least {size}" if exported.dense else f"(n, 3, {size}, {size})"
    )
    side, names = exported.preprocessing["shorter_side"], exported.preprocessing["classes"]
    resizing = f"Resize({side}), " + ("" if exported.dense else f"CenterCrop({size}), ")
    tested = ", ".join("x".join(map(str, shape)) for shape in exported.shapes)
    return "\n".join(
        [
            f"{quote(exported.weights)}: configuration {exported.description.name} as "
            f"{exported.format}{', dense' if exported.dense else ''}",
            f"largest difference of logits {exported.largest_difference:.2g} (largest logit "
            f"{exported.largest_logit:.3g}; random images {tested})",
            f"input: images {shape}; {input_text(exported.description)}",
            f"made of an image by: {_preparation(exported.preprocessing)}",
            f"in torchvision's terms: {resizing}ToTensor(), Normalize(mean={mean}, std={std})",
            f"output: logits of {len(names)} classes, {listed(names)}; their soft-max gives the "
            "posteriors",
            _where_stored(exported.format),
            f"to load it: {exported.how}",
            f"written to {quote(exported.out)}",
        ]
    )


def _preparation(preprocessing: Mapping[str, Any]) -> str:
    """`orientation ignore, shorter side 256 ...`."""
    return ", ".join(
        f"{key.replace('_', ' ')} {str(value).lower()}"
        for key, value in preprocessing.items()
        if key not in _TOLD_ELSEWHERE and value is not None
    )


def _where_stored(form: Format) -> str:
    if form == "torchvision":
        return "a state dict of torchvision cannot hold all this; --json does"
    return f"all this is in the file's metadata {METADATA_KEY}, in JSON (docs/conversion.md)"


def _write(
    form: Format,
    weights: Weights,
    original: nn.Module,
    preprocessing: Mapping[str, Any],
    path: Path,
) -> Network:
    """Writes a file; returns what it computes once it is loaded again."""
    description = weights.description
    match form:
        case "safetensors":
            save_weights(path, weights.tensors, description)
            return build_network(load_weights(path))
        case "torchvision":
            return _write_torchvision(original, description, path)
        case "onnx":
            return write_onnx(original, description, preprocessing, path)
        case "torch-export":
            return write_torch_export(original, description, preprocessing, path)
        case _:
            assert_never(form)


def _how_to_load(form: Format, description: Description, out: Path) -> str:
    """A command, or an expression of Python."""
    file = repr(str(out))
    match form:
        case "safetensors":
            return f"vggdist predict {quote(out)} IMAGE"
        case "torchvision":
            model = description.model
            layers = _torchvision_layers(model.blocks())
            built = f"vgg.VGG(vgg.make_layers({layers}, {model.batch_norm}), "
            if isinstance(model.configuration, str):
                built = f"{_TORCHVISION[model.configuration]}{'_bn' if model.batch_norm else ''}("
            network = f"torchvision.models.{built}num_classes={model.fc8_width})"
            return f"{network}.load_state_dict(torch.load({file}))"
        case "onnx":
            return f"onnxruntime.InferenceSession({file})"
        case "torch-export":
            return f"torch.export.load({file}).module()"
        case _:
            assert_never(form)


def _require_possible(weights: Weights, network: VGG, form: Format, dense: bool) -> None:
    if dense and form not in GRAPHS:
        raise ConfigError(
            f"--dense is for {' and '.join(GRAPHS)}; {form} holds weights alone, which are the "
            "same for whole images."
        )
    if form == "torchvision":
        _require_torchvision(weights.description)
    if form == "onnx" and _num_bytes(network) > _LARGEST_ONNX:
        raise ConfigError(
            f"{quote(weights.path)} has {_num_bytes(network) / 2**30:.1f} GiB of weights, and an "
            ".onnx file ends at 2 GiB; use torch-export."
        )


def _require_torchvision(description: Description) -> None:
    """Its VGG class has 3x3 convolutions, a last map of 512x7x7, and 4096 units in fc6 and fc7."""
    model, blocks = description.model, description.model.blocks()
    reasons = []
    layers = [layer for block in blocks for layer in block]
    if any(not isinstance(layer, Convolution) for layer in layers):
        reasons.append("LRN")
    if any(isinstance(layer, Convolution) and layer.kernel_size != 3 for layer in layers):
        reasons.append("convolutions that are not 3x3")
    if description.crop_size != _TORCHVISION_SIDE * 2 ** len(blocks):
        reasons.append(f"crop size {description.crop_size}")
    if (channels := last_channels(blocks)) != _TORCHVISION_CHANNELS:
        reasons.append(f"{channels} channels before fc6")
    if model.fc_width != _TORCHVISION_FC_WIDTH:
        reasons.append(f"fc6 and fc7 of {model.fc_width} units")
    if reasons:
        raise ConfigError(
            f"torchvision has no such network as this {description.name}, with "
            f"{' and '.join(reasons)}; it has A, B, D and E at crop size 224. Export it as "
            "torch-export, onnx or safetensors."
        )


def _write_torchvision(network: nn.Module, description: Description, path: Path) -> Network:
    from torchvision.models.vgg import VGG as TheirVGG  # noqa: N811  (a second)
    from torchvision.models.vgg import make_layers

    assert isinstance(network, VGG)
    modules, model = numbered_modules(network), description.model
    state = {}
    for name, tensor in network.state_dict().items():
        module, _, kind = name.rpartition(".")
        state[f"{modules[module]}.{kind}"] = tensor
    torch.save(state, path)
    layers = _torchvision_layers(model.blocks())
    with torch.device("meta"):
        theirs = TheirVGG(make_layers(layers, model.batch_norm), num_classes=model.fc8_width)
    theirs.load_state_dict(torch.load(path, weights_only=True), strict=True, assign=True)
    reloaded: Network = theirs.eval()
    return reloaded


def _torchvision_layers(blocks: Configuration) -> list[int | str]:
    """`make_layers`' notation: channels of convolutions, M for max-pooling."""
    layers: list[int | str] = []
    for block in blocks:
        layers += [layer.channels for layer in block if isinstance(layer, Convolution)]
        layers.append("M")
    return layers


def _shapes(network: VGG, dense: bool) -> tuple[tuple[int, ...], ...]:
    """Shapes that a file is checked with, none that of the example."""
    size = network.crop_size
    if dense:
        return (1, 3, size, size), (2, 3, size + 33, size), (1, 3, size + 32, size + 95)
    return (1, 3, size, size), (3, 3, size, size)


@torch.inference_mode()
def _compare(
    original: Network, reloaded: Network, shape: tuple[int, ...], description: Description
) -> tuple[float, float]:
    """Largest difference and largest logit for random pixels, scaled as the network wants them."""
    generator = torch.Generator().manual_seed(sum(shape))
    pixels = torch.randint(256, shape, generator=generator).float()
    mean, std = (torch.tensor(v)[:, None, None] for v in (description.mean, description.std))
    images = (pixels - mean) / std
    expected, logits = original(images), reloaded(images)
    if expected.shape != logits.shape:
        return float("nan"), 0.0
    return float((logits - expected).abs().max()), float(expected.abs().max())


def _require_space(out: Path, num_bytes: int) -> None:
    """Asked before: a full disk ends the whole process within torch's writer."""
    free = shutil.disk_usage(out.parent).free
    if free < 1.01 * num_bytes + _LARGEST_GRAPH:
        raise WeightsError(
            f"{quote(out)} cannot be written: {free / 2**20:,.0f} MiB are free in "
            f"{quote(out.parent)}, and it takes some {(num_bytes + _LARGEST_GRAPH) / 2**20:,.0f} "
            "MiB."
        )


def _num_bytes(network: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
