"""Sizes that are counted from the configuration are those of the paper and of the network."""

import pytest

from vggdist.config import ModelConfig
from vggdist.model.size import layer_sizes, multiply_adds
from vggdist.model.summary import summarize

PAPER = {  # torchvision's num_params and _ops of vgg11 to vgg19; C's are arithmetic on Table 1
    "A": (132_863_336, 7.609),
    "A-LRN": (132_863_336, 7.609),
    "B": (133_047_848, 11.308),
    "C": (133_638_952, 11.771),
    "D": (138_357_544, 15.470),
    "E": (143_667_240, 19.632),
}


@pytest.mark.parametrize("name", PAPER)
def test_parameters_and_multiply_adds_are_the_known_ones(name: str) -> None:
    layers = layer_sizes(ModelConfig(configuration=name), 224)
    num_parameters, giga = PAPER[name]
    assert sum(layer.num_parameters for layer in layers) == num_parameters
    assert round(multiply_adds(layers, 224, 224, 1) / 1e9, 3) == giga


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_network_of_one_s_own_is_as_large_as_it_is_built(batch_norm: bool) -> None:
    model = ModelConfig(
        configuration=(("3-8", "1-6"), ("5-16", "LRN")),
        num_classes=7,
        fc_width=24,
        batch_norm=batch_norm,
    )
    built = summarize(model, 64)
    layers = layer_sizes(model, 64)
    assert sum(layer.num_parameters for layer in layers) == built.num_parameters
    assert multiply_adds(layers, 64, 64, 1) == built.multiply_adds
    assert [layer.name for layer in layers] == list(model.weight_layers())


def test_a_whole_image_costs_its_area_in_convolutions_and_its_places_in_the_rest() -> None:
    layers = layer_sizes(ModelConfig(), 224)
    convolutions, rest = layers[:-3], layers[-3:]
    assert multiply_adds(convolutions, 448, 224, 1) == 2 * multiply_adds(convolutions, 224, 224, 1)
    assert multiply_adds(rest, 448, 224, 8) == 8 * 123_633_664
