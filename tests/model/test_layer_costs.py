"""The weight layers hold all that `summarize` counts, which a test of its own holds to the network;
what autograd keeps is what it really keeps."""

import pytest

from vggdist.config import Config
from vggdist.config_file import make_config
from vggdist.model.layer_costs import count_layers
from vggdist.model.summary import summarize


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("configuration", ["A", "A-LRN", "B", "C", "D", "E"])
def test_the_weight_layers_hold_all_that_the_summary_counts(
    configuration: str, batch_norm: bool
) -> None:
    config = make_config({"model": {"configuration": configuration, "batch_norm": batch_norm}})
    layers = count_layers(config)
    summary = summarize(config.model, config.data.crop_size)
    assert sum(layer.num_parameters for layer in layers) == summary.num_parameters
    counted = {row.name: row.multiply_adds for row in summary.layers if row.multiply_adds}
    assert {layer.name: layer.multiply_adds for layer in layers} == counted
    assert tuple(layer.name for layer in layers) == config.model.weight_layers()


def test_small_networks_of_ones_own_are_counted_too() -> None:
    config = make_config(
        {
            "model": {"configuration": [["3-8", "1-16"], ["5-8"]], "fc_width": 7, "num_classes": 3},
            "data": {"crop_size": 32},
        }
    )
    summary = summarize(config.model, 32)
    assert sum(layer.num_parameters for layer in count_layers(config)) == summary.num_parameters
    assert count_layers(config)[-3].matrix == (8 * 8 * 8, 7)


def test_maps_pooled_to_7x7_give_small_images_the_whole_fc6() -> None:
    layers = count_layers(make_config({"data": {"crop_size": 64}}), fc6_side=7)
    assert sum(layer.num_parameters for layer in layers) == 138_357_544
    assert layers[-3].matrix == (25088, 4096)


def test_the_backward_pass_is_twice_the_forward_pass_but_for_the_first_layer() -> None:
    passes = [layer.backward_passes for layer in count_layers(Config())]
    assert passes == [1] + [2] * 15


def test_nothing_is_propagated_below_the_first_trained_layer() -> None:
    config = make_config({"optimizer": {"trained_layers": ["conv5_3", "fc8"]}})
    passes = {layer.name: layer.backward_passes for layer in count_layers(config)}
    assert passes["conv5_2"] == 0
    assert passes["conv5_3"] == 1
    assert passes["fc6"] == passes["fc7"] == 1
    assert passes["fc8"] == 2
