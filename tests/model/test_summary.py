"""The oracles are section A2 of the reference, which is torchvision's where it has the network, and
the network itself, through which a shape is sent on torch's meta device."""

import json
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vggdist.config import ModelConfig
from vggdist.layers.local_response_norm import LocalResponseNorm
from vggdist.layers.maxpool_layer import MaxPoolLayer
from vggdist.model.summary import ModelSummary, render_summary, summarize
from vggdist.model.vgg import build_vgg, layer_name

NUM_PARAMETERS = {
    ("A", False): 132_863_336,
    ("A-LRN", False): 132_863_336,
    ("B", False): 133_047_848,
    ("C", False): 133_638_952,
    ("D", False): 138_357_544,
    ("E", False): 143_667_240,
    ("A", True): 132_868_840,
    ("A-LRN", True): 132_868_840,
    ("B", True): 133_053_736,
    ("C", True): 133_647_400,
    ("D", True): 138_365_992,
    ("E", True): 143_678_248,
}
GIGA_MULTIPLY_ADDS = {
    "A": 7.609, "A-LRN": 7.609, "B": 11.308, "C": 11.771, "D": 15.470, "E": 19.632,
}  # fmt: skip
NUM_WEIGHT_LAYERS = {"A": 11, "A-LRN": 11, "B": 13, "C": 16, "D": 16, "E": 19}


@pytest.fixture(scope="module")
def d() -> ModelSummary:
    return summarize(ModelConfig(), 224)


@pytest.mark.parametrize(("configuration", "batch_norm"), NUM_PARAMETERS)
def test_parameters_and_multiply_adds_are_those_of_the_reference(
    configuration: str, batch_norm: bool
) -> None:
    config = ModelConfig(configuration=configuration, batch_norm=batch_norm)
    summary = summarize(config, 224)
    assert summary.num_parameters == NUM_PARAMETERS[configuration, batch_norm]
    assert round(summary.multiply_adds / 1e9, 3) == GIGA_MULTIPLY_ADDS[configuration]
    assert summary.num_weight_layers == NUM_WEIGHT_LAYERS[configuration]


def built_layers(config: ModelConfig, crop_size: int) -> list[tuple[Any, ...]]:
    """Name, type, shape, parameters and multiply-adds of each layer that an image passes."""
    model = build_vgg(config, crop_size, device="meta").eval()
    found: list[tuple[Any, ...]] = []

    def note(path: str, module: nn.Module, output: Tensor) -> None:
        shape = tuple(output.shape[1:])
        num_parameters = sum(parameter.numel() for parameter in module.parameters())
        has_matrix = isinstance(module, nn.Conv2d | nn.Linear)
        places = prod(shape[1:]) * module.weight.numel() if has_matrix else 0
        found.append((layer_name(path), type(module), shape, num_parameters, places))

    for path, module in model.named_modules():
        if isinstance(module, tuple(KINDS)):
            module.register_forward_hook(lambda m, _, output, path=path: note(path, m, output))
    model(torch.empty(1, 3, crop_size, crop_size, device="meta"))
    return found


KINDS = {
    nn.Conv2d: "convolution",
    nn.BatchNorm2d: "batch normalization",
    LocalResponseNorm: "LRN",
    MaxPoolLayer: "max-pooling 2x2",
    nn.Linear: "fully connected",
}
OWN = ModelConfig(
    configuration=(("3-8", "1-6", "LRN"), ("5-16", "LRN", "3-4")),
    num_classes=7,
    fc_width=24,
    batch_norm=True,
)


@pytest.mark.parametrize(
    "config",
    [OWN, *(ModelConfig(configuration=c, batch_norm=b) for c, b in NUM_PARAMETERS)],
    ids=lambda config: f"{config.configuration}-{config.batch_norm}",
)
def test_every_layer_is_counted_as_it_is_built(config: ModelConfig) -> None:
    counted, built = summarize(config, 64).layers, built_layers(config, 64)
    assert [
        (layer.name, layer.output_shape, layer.num_parameters, layer.multiply_adds)
        for layer in counted
    ] == [(name, *counts) for name, _, *counts in built]
    for layer, (_, built_type, *_) in zip(counted, built, strict=True):
        (kind,) = (word for base, word in KINDS.items() if issubclass(built_type, base))
        assert layer.kind.startswith(kind)


def test_a_whole_image_costs_its_area_in_convolutions_and_its_places_in_the_rest(
    d: ModelSummary,
) -> None:
    rest = 123_633_664  # multiply-adds of fc6 to fc8
    assert d.dense_multiply_adds(224, 224, num_places=1) == d.multiply_adds
    assert d.dense_multiply_adds(448, 224, num_places=8) == 2 * (d.multiply_adds - rest) + 8 * rest


@pytest.mark.parametrize("batch_norm", [False, True])
def test_of_a_network_of_ones_own_the_weight_layers_and_whole_images_are_counted(
    batch_norm: bool,
) -> None:
    model = OWN.model_copy(update={"batch_norm": batch_norm})
    summary = summarize(model, 64)
    assert tuple(first.name for first, *_ in summary.weight_layers()) == model.weight_layers()
    assert summary.dense_multiply_adds(64, 64, num_places=1) == summary.multiply_adds


def test_a_crop_that_cannot_be_halved_once_per_block_is_refused() -> None:
    with pytest.raises(ValueError, match="48 cannot be halved 5 times, once per block; use a mul"):
        summarize(ModelConfig(), 48)


def test_ds_layers_have_the_shapes_and_counts_of_the_reference(d: ModelSummary) -> None:
    layers = {layer.name: layer for layer in d.layers}
    counts = {
        name: (layers[name].output_shape, layers[name].num_parameters)
        for name in ("conv1_1", "conv1_2", "pool1", "conv3_1", "conv5_3", "pool5", "fc6", "fc8")
    }
    assert counts == {
        "conv1_1": ((64, 224, 224), 1_792),
        "conv1_2": ((64, 224, 224), 36_928),
        "pool1": ((64, 112, 112), 0),
        "conv3_1": ((256, 56, 56), 295_168),
        "conv5_3": ((512, 14, 14), 2_359_808),
        "pool5": ((512, 7, 7), 0),
        "fc6": ((4096,), 102_764_544),
        "fc8": ((1000,), 4_097_000),
    }
    assert round(layers["conv1_1"].multiply_adds / 1e6, 1) == 86.7
    assert layers["fc7"].multiply_adds == 4096 * 4096


def test_the_shallow_net_of_section_4_1_has_its_parameters() -> None:
    """B with each pair of 3x3 as one 5x5: 134,503,528 parameters."""
    channels = (64, 128, 256, 512, 512)
    config = ModelConfig(configuration=tuple((f"5-{width}",) for width in channels))
    summary = summarize(config, 224)
    assert summary.num_parameters == 134_503_528
    assert summary.configuration == (("5-64",), ("5-128",), ("5-256",), ("5-512",), ("5-512",))


def test_batch_normalization_and_lrn_have_lines_of_their_own() -> None:
    config = ModelConfig(configuration="A-LRN", batch_norm=True)
    first = [(layer.name, layer.kind) for layer in summarize(config, 64).layers[:4]]
    assert first == [
        ("conv1_1", "convolution 3x3"),
        ("norm1_1", "batch normalization"),
        ("lrn1_1", "LRN"),
        ("pool1", "max-pooling 2x2"),
    ]


def test_the_dictionary_survives_json_and_has_these_keys(d: ModelSummary) -> None:
    summary = json.loads(json.dumps(d.to_dict()))
    assert summary.keys() == {
        "num_parameters",
        "multiply_adds",
        "layers",
        "configuration",
        "crop_size",
    }
    assert summary["configuration"] == "D"
    assert summary["crop_size"] == 224
    assert summary["layers"][0] == {
        "name": "conv1_1",
        "kind": "convolution 3x3",
        "output_shape": [64, 224, 224],
        "num_parameters": 1792,
        "multiply_adds": 86_704_128,
    }


def test_the_table_has_a_line_per_layer_and_the_totals(d: ModelSummary) -> None:
    table = render_summary(d)
    lines = table.splitlines()
    assert lines[2].split() == (
        ["conv1_1", "convolution", "3x3", "64", "x", "224", "x", "224", "1,792", "86,704,128"]
    )
    assert len(lines) == 2 + len(d.layers) + 3
    assert "configuration D: 16 weight layers, 138,357,544 parameters," in table
    assert "15.470 G multiply-adds for one image of 224 x 224 pixels" in table
