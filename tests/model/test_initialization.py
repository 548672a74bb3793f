"""The oracle for random weights is the formula of each method; for copies, the list of A3.5."""

import math

import pytest
import torch
from torch import Tensor, nn

from vggdist.config import ModelConfig
from vggdist.errors import ConfigError
from vggdist.model.initialization import Method, copy_trained, initialize
from vggdist.model.vgg import VGG, build_vgg

SMALL = {"fc_width": 256, "num_classes": 10}


def initialized(
    method: Method = "glorot", seed: int = 0, crop_size: int = 32, **changes: object
) -> VGG:
    model = build_vgg(ModelConfig.model_validate(SMALL | changes), crop_size)
    initialize(model, method, initial_std=0.1, seed=seed)
    return model


def weight_layers(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def expected_std(method: Method, weight: Tensor) -> float:
    receptive_field = weight[0][0].numel()
    fan_in, fan_out = weight.shape[1] * receptive_field, weight.shape[0] * receptive_field
    return {
        "glorot": math.sqrt(2 / (fan_in + fan_out)),
        "gaussian": 0.1,
        "kaiming": math.sqrt(2 / fan_in),
    }[method]


@pytest.mark.parametrize("method", ["glorot", "gaussian", "kaiming"])
def test_every_weight_has_mean_0_and_the_standard_deviation_of_the_formula(method: Method) -> None:
    for layer in weight_layers(initialized(method, configuration="A")):
        weight = layer.weight.detach()
        std = expected_std(method, weight)
        tolerance = 5 * std / weight.numel() ** 0.5
        assert abs(weight.mean().item()) < tolerance, layer
        assert abs(weight.std().item() - std) < tolerance, layer
        assert layer.bias is not None
        assert not layer.bias.any(), layer


def test_glorot_is_uniform_and_the_others_are_normal() -> None:
    """The fourth moment over the squared variance: 1.8 for uniform, 3 for normal."""
    for method, kurtosis in (("glorot", 1.8), ("gaussian", 3.0), ("kaiming", 3.0)):
        weight = initialized(method, configuration="A").features.block4.conv1.weight.detach()
        measured = weight.pow(4).mean() / weight.var() ** 2
        assert abs(measured.item() - kurtosis) < 0.05, method


def test_batch_normalization_begins_as_the_identity_on_fresh_statistics() -> None:
    model = initialized(configuration=[["3-4"]], batch_norm=True)
    state = model.features.block1.norm1.state_dict()
    assert {name: tensor.tolist() for name, tensor in state.items()} == {
        "weight": [1.0] * 4,
        "bias": [0.0] * 4,
        "running_mean": [0.0] * 4,
        "running_var": [1.0] * 4,
        "num_batches_tracked": 0,
    }


def test_weights_depend_on_the_seed_and_not_on_the_memory_format_or_earlier_draws() -> None:
    blocks = [["3-8"], ["3-12"]]
    first = initialized(seed=5, configuration=blocks)
    again = build_vgg(ModelConfig.model_validate(SMALL | {"configuration": blocks}), 32)
    again.to(memory_format=torch.channels_last)
    torch.manual_seed(99)
    initialize(again, "glorot", initial_std=0.1, seed=5)
    other = initialized(seed=6, configuration=blocks)
    for mine, same, different in zip(
        weight_layers(first), weight_layers(again), weight_layers(other), strict=True
    ):
        assert torch.equal(mine.weight, same.weight)
        assert not torch.equal(mine.weight, different.weight)


def test_torchs_global_random_numbers_are_left_alone() -> None:
    before = torch.get_rng_state()
    initialized(configuration=[["3-4"]])
    assert torch.equal(torch.get_rng_state(), before)


def test_d_gets_the_first_four_convolutions_and_the_fully_connected_layers_of_a() -> None:
    a, d = initialized(seed=1, configuration="A"), initialized(seed=2, configuration="D")
    before = {name: tensor.clone() for name, tensor in d.state_dict().items()}
    report = copy_trained(d, a.state_dict())
    copied = ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8")
    assert report.copied == tuple((name, name) for name in copied)
    assert report.random == (
        *("conv1_2", "conv2_2", "conv3_3", "conv4_1", "conv4_2", "conv4_3"),
        *("conv5_1", "conv5_2", "conv5_3"),
    )
    paths = {
        *("features.block1.conv1", "features.block2.conv1"),
        *("features.block3.conv1", "features.block3.conv2"),
        *("fc6.linear", "fc7.linear", "fc8.linear"),
    }
    for path, tensor in d.state_dict().items():
        source = a.state_dict() if path.rpartition(".")[0] in paths else before
        assert torch.equal(tensor, source[path]), path


def test_batch_normalization_goes_along_with_its_convolution() -> None:
    a = initialized(configuration="A", batch_norm=True)
    a.features.block3.norm2.running_var.fill_(7.0)
    a.features.block3.norm2.weight.data.fill_(3.0)
    a.features.block4.norm1.running_var.fill_(7.0)
    b = initialized(configuration="B", batch_norm=True)
    copy_trained(b, a.state_dict())
    assert b.features.block3.norm2.running_var.eq(7.0).all()
    assert b.features.block3.norm2.weight.eq(3.0).all()
    assert b.features.block4.norm1.running_var.eq(1.0).all()


def test_the_same_configuration_is_copied_whole_and_only_a_new_fc8_stays_random() -> None:
    """S = 384 begins with the weights of S = 256 (section 3.1); new classes need a new fc8."""
    blocks = [["3-4"], ["3-4"] * 2, ["3-4"] * 2]
    source = initialized(seed=1, configuration=blocks)
    same = initialized(seed=2, configuration=blocks)
    assert copy_trained(same, source.state_dict()).random == ()
    for path, tensor in source.state_dict().items():
        assert torch.equal(same.state_dict()[path], tensor), path
    other_classes = initialized(seed=2, configuration=blocks, num_classes=7)
    assert copy_trained(other_classes, source.state_dict()).random == ("fc8",)


def test_layers_of_equal_shape_find_each_other_within_their_block() -> None:
    source = initialized(configuration=[["3-4"], ["3-6"]])
    model = initialized(configuration=[["3-4"], ["1-6", "3-6"], ["3-8"]])
    assert copy_trained(model, source.state_dict()).copied == (
        ("conv1_1", "conv1_1"),
        ("fc7", "fc7"),
        ("fc8", "fc8"),
    )


def test_a_network_of_which_no_convolution_fits_is_refused_with_both_shapes() -> None:
    wide = initialized(configuration=[["3-8"]])
    for other in (
        initialized(configuration=[["3-4"]]),
        initialized(configuration=[["3-8"]], batch_norm=True),
    ):
        with pytest.raises(ConfigError, match="no convolution of the trained network fits") as info:
            copy_trained(wide, other.state_dict())
    assert "trained: conv1_1 (8, 3, 3, 3), with batch normalization" in str(info.value)
    assert "here: conv1_1 (8, 3, 3, 3), without batch normalization" in str(info.value)
    assert "or set model.initialize_from=null" in str(info.value)


def test_weights_in_another_layout_are_refused_by_name() -> None:
    model = initialized(configuration=[["3-8"]])
    with pytest.raises(ConfigError, match=r"cannot be read: 'features\.0\.weight' is not part of"):
        copy_trained(model, {"features.0.weight": torch.zeros(8, 3, 3, 3)})
