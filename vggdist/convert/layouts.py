"""How others name and order the tensors of a VGG network, and how those become ours.

layout      | convolutions            | fully connected           | fc6's inputs
vggdist     | features.block1.conv1   | fc6.linear (out, in)      | channel, row, column
torchvision | features.0, OIHW        | classifier.0 (out, in)    | channel, row, column
timm        | features.0, OIHW        | pre_logits.fc1, OIHW      | channel, row, column
caffe       | conv1_1, OIHW           | fc6 (out, in)             | channel, row, column
keras       | conv1_1, HWIO           | fc6 (in, out)             | row, column, channel

OIHW is (channels out, channels in, height, width). Caffe's and Keras's arrays are told apart by
their order; the names may be those of either, with the usual endings for weights and biases.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vggdist.errors import WeightsError
from vggdist.model.configurations import (
    TABLE_1,
    Configuration,
    Convolution,
    parse_configuration,
)
from vggdist.model.vgg import VGG

Layout = Literal["vggdist", "torchvision", "timm", "caffe", "keras"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

_HEADS: dict[Layout, tuple[str, str, str]] = {
    "torchvision": ("classifier.0", "classifier.3", "classifier.6"),
    "timm": ("pre_logits.fc1", "pre_logits.fc2", "head.fc"),
}
_FULLY_CONNECTED = ("fc6.linear", "fc7.linear", "fc8.linear")
_KERAS_HEADS = {"fc1": "fc6", "fc2": "fc7", "predictions": "fc8"}
# conv1_1_W, conv1_1/weights, block1_conv1/kernel:0, block1_conv1/block1_conv1_W_1:0, fc6.bias ...
_ARRAY = re.compile(
    r"(?:.*/)?(?:(?P<conv>conv|block)(?P<block>\d+)_(?:conv)?(?P<number>\d+)|"
    r"(?P<fc>fc[12678]|predictions))[_./]+"
    r"(?:(?P<weight>w|weights?|kernel|0)|b|bias(?:es)?|1)(?:_1)?(?::0)?",
    re.IGNORECASE,
)


_NETWORK = re.compile(
    rf"features\.(?:block)?\d+\..+|classifier\.\d+\..+|pre_logits\.fc\d\..+|head\.fc\..+|"
    rf"fc[678]\.linear\..+|{_ARRAY.pattern}",
    re.IGNORECASE,
)


def split_name(name: str) -> tuple[str, str] | None:
    """A tensor's name in a larger file -> where the network is, and its name in there.

    `state_dict.model.features.0.weight` -> `state_dict.model.`, `features.0.weight`. None: no
    network of the layouts has such a tensor.
    """
    starts = [0, *(dot.end() for dot in re.finditer(r"\.", name))]
    inside = (start for start in starts if _NETWORK.fullmatch(name, start))
    start = next(inside, None)
    return None if start is None else (name[:start], name[start:])


def detect_layout(tensors: Mapping[str, Tensor]) -> Layout:
    """The layout of tensors, from their names and shapes.

    Raises:
        WeightsError: it is none of those known here; the message holds the first names.
    """
    if any(re.match(r"features\.block\d+\.|fc[678]\.linear\.", name) for name in tensors):
        return "vggdist"
    if any(name.startswith(("pre_logits.fc", "head.fc.")) for name in tensors):
        return "timm"
    if any(re.match(r"features\.\d+\.", name) for name in tensors):
        return "torchvision"
    arrays = {name: match for name in tensors if (match := _ARRAY.fullmatch(name))}
    kernels = [name for name, match in arrays.items() if match["conv"] and match["weight"]]
    for name in kernels:
        shape = tensors[name].shape
        if len(shape) == 4 and sum(shape[:2]) < sum(shape[2:]):  # the sides of a kernel are short
            return "keras"
        if len(shape) == 4 and not name.lower().rpartition("/")[2].startswith("block"):
            return "caffe"
    first = ", ".join(list(tensors)[:5])
    raise WeightsError(
        f"The layout of these tensors is not known: {first}. Name it with --layout "
        f"{'|'.join(LAYOUTS)} if it is one of these, or rename the tensors to conv1_1_W, "
        "conv1_1_b, fc6_W and so on."
    )


def to_vgg(
    tensors: Mapping[str, Tensor], layout: Layout, blocks: Configuration
) -> dict[str, Tensor]:
    """Tensors of a layout by the names of `VGG.state_dict()`, in its orders, fp32.

    Names that the layout does not have stay as they are.

    Args:
        tensors: as they are in the file.
        layout: theirs.
        blocks: of the network that they should be for. Where a numbered layout does not fit them,
            the layers are named as in the column of Table 1 that it fits.

    Raises:
        WeightsError: two tensors are meant for one place.
    """
    modules = _numbered(tensors, layout, blocks) if layout in _HEADS else {}
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        path = name
        if module in modules:
            path = f"{modules[module]}.{kind}"
        elif layout in ("caffe", "keras") and (match := _ARRAY.fullmatch(name)):
            path = _path(match)
        if path in renamed:
            raise WeightsError(f"{name} and another tensor are both meant for {path}; remove one.")
        counts = path.endswith("num_batches_tracked")
        renamed[path] = _ordered(tensor if counts else tensor.float(), path, layout, blocks)
    for path in [path for path in renamed if path.endswith("running_mean")]:
        # Files from before torch 0.4.1 do not count; nor does anything here use the count.
        counter = path.replace("running_mean", "num_batches_tracked")
        renamed.setdefault(counter, torch.zeros((), dtype=torch.int64))
    return renamed


def numbered_modules(network: VGG) -> dict[str, str]:
    """Our modules that have weights -> torchvision's, where features is one numbered sequence."""
    leaves = [
        (name, module)
        for name, module in network.features.named_modules()
        if not isinstance(module, nn.Sequential)
    ]
    numbers = {
        f"features.{name}": f"features.{number}"
        for number, (name, module) in enumerate(leaves)
        if any(True for _ in module.parameters())
    }
    return numbers | dict(zip(_FULLY_CONNECTED, _HEADS["torchvision"], strict=True))


def map_side(num_inputs: int, blocks: Configuration) -> int | None:
    """Side of the last map of these blocks that gives fc6 this many inputs; None: there is none."""
    num_pixels, rest = divmod(num_inputs, last_channels(blocks))
    side = math.isqrt(num_pixels)
    return side if side and not rest and side * side == num_pixels else None


def _numbered(
    tensors: Mapping[str, Tensor], layout: Layout, blocks: Configuration
) -> dict[str, str]:
    """The file's modules -> ours, by the first configuration that has all of its numbers."""
    batch_norm = any(name.endswith("running_mean") for name in tensors)
    found = {name.rpartition(".")[0] for name in tensors if re.match(r"features\.\d+\.", name)}

    def modules_of(blocks: Configuration) -> dict[str, str]:
        size = 2 ** len(blocks)
        with torch.device("meta"):
            network = VGG(blocks, batch_norm=batch_norm, num_classes=1, crop_size=size, fc_width=1)
        return {theirs: ours for ours, theirs in numbered_modules(network).items()}

    candidates = map(modules_of, (blocks, *map(parse_configuration, TABLE_1)))
    fitting = (modules for modules in candidates if found <= modules.keys())
    modules = next(fitting, None) or modules_of(blocks)
    return modules | dict(zip(_HEADS[layout], _FULLY_CONNECTED, strict=True))


def _path(match: re.Match[str]) -> str:
    """Our name of an array of Caffe or Keras."""
    kind = "weight" if match["weight"] else "bias"
    if match["conv"]:
        return f"features.block{match['block']}.conv{match['number']}.{kind}"
    layer = match["fc"].lower()
    return f"{_KERAS_HEADS.get(layer, layer)}.linear.{kind}"


def _ordered(tensor: Tensor, path: str, layout: Layout, blocks: Configuration) -> Tensor:
    """A tensor of ours in our order; a view where that is possible."""
    is_matrix = path.startswith("fc") and path.endswith("weight")
    if layout in ("caffe", "keras") and path.endswith("bias"):
        return tensor.flatten()  # old Caffe files have (1, 1, 1, n)
    if layout == "keras":
        if tensor.dim() == 4:
            tensor = tensor.permute(3, 2, 0, 1)
        elif is_matrix and tensor.dim() == 2:
            tensor = _by_channels(tensor, path, blocks)
    if is_matrix and tensor.dim() == 4:
        if layout == "caffe" and tensor.shape[:2] == (1, 1):  # the same old files
            return tensor[0, 0]
        return tensor.flatten(1)
    return tensor


def _by_channels(matrix: Tensor, path: str, blocks: Configuration) -> Tensor:
    """(in, out) -> (out, in); fc6's inputs from row, column, channel to channel, row, column."""
    side = map_side(len(matrix), blocks) if path.startswith("fc6") else None
    if side is None:
        return matrix.T
    maps = matrix.reshape(side, side, -1, matrix.shape[1])
    return maps.permute(3, 2, 0, 1).flatten(1)


def last_channels(blocks: Configuration) -> int:
    """Channels of the last map of these blocks, which fc6 sees."""
    return [layer.channels for layer in blocks[-1] if isinstance(layer, Convolution)][-1]
