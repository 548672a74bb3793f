"""Networks in: a file in the layout of others becomes a weights file that describes itself."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from vggdist.artifacts.formats import find_format
from vggdist.artifacts.names import shortened
from vggdist.artifacts.paths import quote
from vggdist.artifacts.weights import Description, read_description, save_weights
from vggdist.config import Config, ModelConfig, Triple
from vggdist.convert.layouts import Layout, detect_layout, map_side, to_vgg
from vggdist.convert.third_party import read_tensors
from vggdist.errors import ConfigError, WeightsError
from vggdist.model.configurations import TABLE_1
from vggdist.model.loading import differing_layers
from vggdist.model.vgg import build_vgg, layer_name

InputScaling = Literal["torchvision", "mean-rgb", "mean-bgr"]
INPUT_SCALINGS: tuple[InputScaling, ...] = get_args(InputScaling)

# 255 times (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225).
TORCHVISION_MEAN: Triple = (123.675, 116.28, 103.53)
TORCHVISION_STD: Triple = (58.395, 57.12, 57.375)
PAPER_MEAN: Triple = (123.68, 116.779, 103.939)

_USUAL_INPUT: dict[Layout, InputScaling] = {
    "torchvision": "torchvision",
    "timm": "torchvision",
    "caffe": "mean-bgr",
    "keras": "mean-bgr",
}
_FIRST_KERNEL = "features.block1.conv1.weight"


@dataclass(frozen=True)
class Imported:
    """What an import has found and written."""

    file: Path
    out: Path
    layout: Layout
    description: Description
    num_parameters: int
    missing: tuple[str, ...]
    """Weight layers that the file does not have, by their names in the paper."""
    left_out: tuple[str, ...]
    """Names of tensors in the file that are not the network's."""

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "file": str(self.file),
            "out": str(self.out),
            "layout": self.layout,
            "num_parameters": self.num_parameters,
            "missing": list(self.missing),
            "left_out": list(self.left_out),
            **asdict(self.description),
            "model": self.description.model.model_dump(mode="json"),
        }


def import_weights(
    file: Path,
    out: Path,
    config: Config,
    *,
    layout: Layout | None = None,
    scaling: InputScaling | None = None,
    key: str | None = None,
    ignore: Sequence[str] = (),
    partial: bool = False,
    crop_size: int | None = None,
    classes: Sequence[str] = (),
) -> Imported:
    """Reads the weights of a network in any of the layouts and writes a weights file.

    Batch normalization, the number of classes and the width of fc6 and fc7 are those of the file
    unless `config` sets them, and the crop size follows from fc6's inputs. With `partial` whole
    layers may be missing; the weights file then lacks them too, and a training that begins from it
    (`model.initialize_from`) draws them at random.

    Args:
        file: of torch.save, or .safetensors or .npz, whatever its name.
        out: the weights file to write.
        config: the configuration. `data.mean`, `data.std` and the training scale count if set.
        layout: of the file; none: found out from names and shapes.
        scaling: what the network was fed; none: what is usual for the layout. mean-bgr: the first
            layer's channels are reversed, so that it takes RGB from then on.
        key: where in the file the network is; none: where the only one is.
        ignore: patterns of names of tensors that are left out, such as `aux.*`.
        partial: the file need not have all layers.
        crop_size: pixels; none: as fc6 says, or 224 without it.
        classes: names, in the order of labels.

    Raises:
        WeightsError: the file cannot be read, or its layers are not those of the configuration.
        ConfigError: settings that do not belong together.
    """
    found, left_out = read_tensors(file, key, ignore)
    layout = layout or detect_layout(found)
    stored = read_description(file) if find_format(file) == "safetensors" else None
    model = config.model
    if stored is not None and "configuration" not in model.model_fields_set:
        told = {name: getattr(model, name) for name in model.model_fields_set}
        model = stored.model.model_copy(update=told)
    tensors = to_vgg(found, layout, model.blocks())
    model = _model(model, tensors)
    description = _describe(stored, config, model, layout, scaling)
    crop_size = crop_size or _crop_size(tensors, model) or description.crop_size
    _require_usable(crop_size, model)
    missing = _require_layers(file, tensors, model, crop_size, partial)
    if (scaling or _USUAL_INPUT.get(layout)) == "mean-bgr" and _FIRST_KERNEL in tensors:
        tensors[_FIRST_KERNEL] = tensors[_FIRST_KERNEL].flip(1)
    without = f", without {', '.join(missing)}" if missing else ""
    description = replace(
        description,
        crop_size=crop_size,
        classes=_checked(classes, model) or description.classes,
        origin=f"{file.name} ({layout} layout{without})",
    )
    save_weights(out, tensors, description)
    num_parameters = sum(
        tensor.numel()
        for name, tensor in tensors.items()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    )
    return Imported(file, out, layout, description, num_parameters, missing, left_out)


def read_classes(path: Path) -> tuple[str, ...]:
    """Names of classes from a text file, one in each line.

    Raises:
        ConfigError: it cannot be read, or a line is empty.
    """
    try:
        names = path.read_text(encoding="utf-8").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--classes {quote(path)} cannot be read: {error}.") from error
    names = [name.strip() for name in names]
    if "" in names:
        raise ConfigError(
            f"--classes {quote(path)}: line {names.index('') + 1} is empty; write a name in each "
            "line, in the order of labels."
        )
    return tuple(names)


def render_imported(imported: Imported) -> str:
    """What a person should know of an import, in a few lines."""
    description = imported.description
    model = description.model
    lines = [
        f"{quote(imported.file)}: {imported.layout} layout, configuration {description.name}, "
        f"{imported.num_parameters:,} parameters",
        f"classes {model.fc8_width}, width of fc6 and fc7 {model.fc_width}, crop size "
        f"{description.crop_size}",
        f"input: {input_text(description)}",
    ]
    if imported.left_out:
        lines.append(f"left out: {shortened(imported.left_out)}")
    if imported.missing:
        lines += [
            f"missing: {', '.join(imported.missing)}",
            f"A training with model.initialize_from={quote(imported.out)} draws these at random.",
        ]
    return "\n".join([*lines, f"written to {quote(imported.out)}"])


def input_text(description: Description) -> str:
    """What a network is fed, as a formula."""
    mean, std = (
        f"[{', '.join(f'{value:g}' for value in values)}]"
        for values in (description.mean, description.std)
    )
    levels = f"RGB, grey levels 0 to 255 less {mean}"
    if description.std != (1.0, 1.0, 1.0):
        levels += f", divided by {std}"
    turned = "; photos turned by their EXIF orientation"
    return levels + turned * (description.orientation == "apply")


def _model(model: ModelConfig, tensors: Mapping[str, Tensor]) -> ModelConfig:
    """The configured network, with what only the file can know."""
    found: dict[str, Any] = {"batch_norm": any(".norm" in name for name in tensors)}
    for field, name in (("num_classes", "fc8"), ("fc_width", "fc6")):
        weight = tensors.get(f"{name}.linear.weight")
        if weight is not None and weight.dim() == 2:
            found[field] = len(weight)
    unset = {field: value for field, value in found.items() if field not in model.model_fields_set}
    return model.model_copy(update={"num_classes": model.fc8_width} | unset)


def _describe(
    stored: Description | None,
    config: Config,
    model: ModelConfig,
    layout: Layout,
    scaling: InputScaling | None,
) -> Description:
    """What the file says of itself, or else what is usual, or else what the user says."""
    data = config.data
    description = stored or Description(model, data.crop_size, PAPER_MEAN)
    scaling = scaling or (None if stored else _USUAL_INPUT.get(layout))
    if scaling is not None:
        torchvision = scaling == "torchvision"
        description = replace(
            description,
            mean=TORCHVISION_MEAN if torchvision else PAPER_MEAN,
            std=TORCHVISION_STD if torchvision else (1.0, 1.0, 1.0),
        )
    told = {name: getattr(data, name) for name in {"mean", "std"} & data.model_fields_set}
    if {"train_scale_min", "train_scale_max"} & data.model_fields_set:
        told["train_scale"] = (data.train_scale_min, data.train_scale_max)
    return replace(description, model=model, **told)


def _crop_size(tensors: Mapping[str, Tensor], model: ModelConfig) -> int | None:
    """The crop size that gives fc6 its inputs; None without fc6, or if no crop size does."""
    weight = tensors.get("fc6.linear.weight")
    side = map_side(weight.shape[1], model.blocks()) if weight is not None else None
    return None if side is None else side * 2 ** len(model.blocks())


def _require_usable(crop_size: int, model: ModelConfig) -> None:
    if crop_size % 32:
        raise ConfigError(
            f"the crop size is {crop_size}, which is no multiple of 32; networks of such images "
            "cannot be used here. Without fc6 in the file, name another with --crop-size."
        )
    build_vgg(model, crop_size, "meta")


def _require_layers(
    file: Path, tensors: Mapping[str, Tensor], model: ModelConfig, crop_size: int, partial: bool
) -> tuple[str, ...]:
    """The weight layers that are missing, where that is allowed.

    Raises:
        WeightsError: the layers of the file are not those of the network.
    """
    expected = build_vgg(model, crop_size, "meta").state_dict()
    found = {_layer(name) for name in tensors}
    missing = dict.fromkeys(_layer(name) for name in expected if _layer(name) not in found)
    if found.isdisjoint(map(_layer, expected)):
        raise WeightsError(
            f"{quote(file)} has no tensor that is named as in its layout; its first are "
            f"{shortened(tuple(tensors))}. Name another --layout, or none."
        )
    if partial:
        expected = {name: t for name, t in expected.items() if _layer(name) in found}
    if differing := differing_layers(expected, tensors):
        listing = "\n".join(f"  - {line}" for line in differing)
        remedies = list(_remedies(tensors, model, expected)) or [
            "Name the configuration that they were trained with, and their layout with --layout."
        ]
        raise WeightsError(
            f"{quote(file)} does not hold the layers of this network. {' '.join(remedies)}\n"
            f"What differs:\n{listing}"
        )
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise WeightsError(
                f"{_layer(name)} in {quote(file)} has weights that are not finite; the file is "
                "damaged, or its training had failed. Fetch it again."
            )
    return tuple(missing)


def _remedies(
    tensors: Mapping[str, Tensor], model: ModelConfig, expected: Mapping[str, Tensor]
) -> Iterator[str]:
    """What to do about layers that differ, as sentences."""
    convolutions = {name: t for name, t in tensors.items() if name.startswith("features.block")}
    has_norms = any(".norm" in name for name in convolutions)
    fitting = [name for name in TABLE_1 if _fits(model, convolutions, name, has_norms)]
    is_other = bool(fitting) and model.configuration not in fitting
    if is_other:
        names = " and ".join(fitting)
        yield f"Its convolutions are those of {names}: --configuration {fitting[0]}."
    if has_norms != model.batch_norm and convolutions:
        yield f"Set model.batch_norm={str(has_norms).lower()}, or leave it out."
    if all(_same(name, expected, tensors) for name in expected if name.startswith("features.")):
        for key, layer, number in (
            ("model.num_classes", "fc8", model.fc8_width),
            ("model.fc_width", "fc7", model.fc_width),
        ):
            weight = tensors.get(f"{layer}.linear.weight")
            if weight is not None and weight.dim() == 2 and len(weight) != number:
                yield f"Set {key}={len(weight)}, or leave it out."
        crop_size = _crop_size(tensors, model)
        name = "fc6.linear.weight"
        if crop_size is not None and expected[name].shape[1:] != tensors[name].shape[1:]:
            yield f"Set --crop-size {crop_size}, or leave it out."
    if strange := [name for name in tensors if _layer(name) == name]:
        parts = (name.partition(".") for name in strange)
        patterns = dict.fromkeys(f"{first}.*" if dot else first for first, dot, _ in parts)
        options = " ".join(f"--ignore {shlex.quote(pattern)}" for pattern in patterns)
        yield f"What belongs to no layer is left out with {options}."
    if not is_other and not {_layer(name) for name in expected} <= {_layer(n) for n in tensors}:
        yield "If layers are meant to be missing, add --partial."


def _same(name: str, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> bool:
    return name in tensors and tensors[name].shape == expected[name].shape


def _fits(
    model: ModelConfig, convolutions: Mapping[str, Tensor], configuration: str, batch_norm: bool
) -> bool:
    """Whether the convolutions are those of a column of Table 1."""
    column = model.model_copy(update={"configuration": configuration, "batch_norm": batch_norm})
    expected = build_vgg(column, 224, "meta").features.state_dict(prefix="features.")
    return not differing_layers(expected, convolutions)


def _layer(path: str) -> str:
    """The paper's name of a tensor's layer, batch normalization with its convolution."""
    try:
        return layer_name(path).replace("norm", "conv")
    except ValueError:
        return path


def _checked(classes: Sequence[str], model: ModelConfig) -> tuple[str, ...]:
    if classes and len(classes) != model.fc8_width:
        raise ConfigError(
            f"--classes has {len(classes)} names, but the network tells {model.fc8_width} "
            "classes apart; write one name for each, in the order of labels."
        )
    return tuple(classes)
