"""The oracle is torchvision: equal weights must give equal logits."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

from vggdist.config import ModelConfig
from vggdist.layers.conv_block import ConvBlock
from vggdist.layers.maxpool_layer import MaxPoolLayer
from vggdist.model.initialization import initialize
from vggdist.model.vgg import VGG, build_vgg, layer_name

TORCHVISION = {"A": "vgg11", "B": "vgg13", "D": "vgg16", "E": "vgg19"}


def small_vgg(crop_size: int = 64, **changes: object) -> VGG:
    """A network that is built and run in milliseconds."""
    config = ModelConfig.model_validate(
        {"configuration": [["3-8"], ["3-12", "LRN", "1-6"]], "fc_width": 20, "num_classes": 5}
        | changes
    )
    model = build_vgg(config, crop_size)
    initialize(model, "kaiming", initial_std=0.1, seed=1)
    return model


@pytest.fixture(scope="module")
def fc_weights() -> list[Tensor]:
    """fc6 to fc8 are the same in all networks, and drawing 123 M numbers takes a second."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(4096, 25088), (4096,), (4096, 4096), (4096,), (1000, 4096), (1000,)]
    return [torch.empty(shape).uniform_(-0.02, 0.02, generator=generator) for shape in shapes]


def random_features(model: VGG) -> list[Tensor]:
    """Weights that keep activations alive, biases and running statistics away from 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    tensors = []
    for name, tensor in model.features.state_dict().items():
        drawn = torch.rand(tensor.shape, generator=generator)
        if tensor.dim() == 4:
            drawn = (drawn - 0.5) * (24 / tensor[0].numel()) ** 0.5
        elif "norm" in name and not name.endswith(("bias", "mean")):
            drawn += 0.5
        tensors.append(drawn.to(tensor.dtype))
    return tensors


@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "bn"])
@pytest.mark.parametrize("configuration", TORCHVISION)
def test_with_torchvisions_weights_the_logits_are_torchvisions(
    configuration: str, batch_norm: bool, fc_weights: list[Tensor]
) -> None:
    with torch.device("meta"):
        name = TORCHVISION[configuration] + ("_bn" if batch_norm else "")
        theirs = getattr(torchvision.models, name)(weights=None).eval()
        ours = VGG(ModelConfig(configuration=configuration).blocks(), batch_norm=batch_norm).eval()
    tensors = random_features(ours) + fc_weights
    for model in (ours, theirs):  # both layouts list layers, and a layer's tensors, in one order
        names = model.state_dict().keys()
        model.load_state_dict(dict(zip(names, tensors, strict=True)), assign=True)
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        logits, expected = ours(image), theirs(image)
    assert expected.std() > 0.01
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_blocks_and_poolings_alternate_and_halve_the_maps() -> None:
    model = small_vgg()
    x = torch.randn(2, 3, 64, 64)
    shapes = []
    for module in model.features:
        x = module(x)
        shapes.append((type(module), tuple(x.shape[1:])))
    assert shapes == [
        (ConvBlock, (8, 64, 64)),
        (MaxPoolLayer, (8, 32, 32)),
        (ConvBlock, (6, 32, 32)),
        (MaxPoolLayer, (6, 16, 16)),
    ]
    assert model.fc6.linear.weight.shape == (20, 6 * 16 * 16)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 5)


@pytest.mark.parametrize("crop_size", [64, 96])
def test_fc6_follows_the_crop_size(crop_size: int) -> None:
    model = build_vgg(ModelConfig(fc_width=8, num_classes=3), crop_size, device="meta")
    side = crop_size // 32
    assert model.fc6.linear.in_features == 512 * side * side
    assert model(torch.empty(2, 3, crop_size, crop_size, device="meta")).shape == (2, 3)


def test_c_ends_its_last_three_blocks_with_1x1_convolutions() -> None:
    """Counted by hand in Table 1."""
    model = build_vgg(ModelConfig(configuration="C"), 224, device="meta")
    kernels = {
        layer_name(path): tuple(module.weight.shape)
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
    }
    assert kernels == {
        "conv3_3": (256, 256, 1, 1),
        "conv4_3": (512, 512, 1, 1),
        "conv5_3": (512, 512, 1, 1),
    }


def test_a_lrn_is_a_with_one_normalization_before_the_first_pooling() -> None:
    names = {}
    for configuration in ("A", "A-LRN"):
        model = build_vgg(ModelConfig(configuration=configuration), 224, device="meta")
        names[configuration] = [path for path, _ in model.named_modules()]
    (only,) = [name for name in names["A-LRN"] if name not in names["A"]]
    assert only == "features.block1.lrn1"
    following = names["A-LRN"][names["A-LRN"].index(only) + 1]
    assert following == "features.pool1"


def test_channels_last_gives_the_same_logits() -> None:
    model, x = small_vgg().eval(), torch.randn(2, 3, 64, 64)
    expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    logits = model(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_with_keys_a_micro_batch_gets_the_masks_it_has_in_the_whole_batch() -> None:
    model, x = small_vgg(dropout=0.5), torch.randn(4, 3, 64, 64)
    keys = torch.tensor([11, 22, 33, 44])
    whole = model(x, keys)
    halves = torch.cat([model(x[:2], keys[:2]), model(x[2:], keys[2:])])
    torch.testing.assert_close(halves, whole, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model(x, keys + 1), whole)


def test_in_eval_mode_keys_do_not_matter() -> None:
    model, x = small_vgg().eval(), torch.randn(2, 3, 64, 64)
    assert torch.equal(model(x, torch.tensor([1, 2])), model(x))


def test_every_parameter_gets_a_gradient() -> None:
    model = small_vgg(batch_norm=True)
    model(torch.randn(4, 3, 64, 64), torch.arange(4)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name


@pytest.mark.parametrize("shape", [(2, 3, 32, 64), (2, 1, 64, 64), (3, 64, 64)])
def test_images_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape \(.*this network takes \(n, 3, 64, 64\); crop"):
        small_vgg()(torch.zeros(shape))


def test_a_crop_size_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(ValueError, match=r"crop_size 100 cannot be halved 5 times.*multiple of 32"):
        build_vgg(ModelConfig(), 100)


def test_a_network_that_was_not_initialized_shows_nan() -> None:
    config = ModelConfig(configuration=(("3-4",),), fc_width=4, num_classes=3, batch_norm=True)
    model = build_vgg(config, 32)
    assert all(parameter.isnan().all() for parameter in model.parameters())
    assert model.eval()(torch.zeros(1, 3, 32, 32)).isnan().all()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("features.block1.conv1.weight", "conv1_1"),
        ("features.block3.conv12", "conv3_12"),
        ("features.block3.norm2.running_mean", "norm3_2"),
        ("features.block1.lrn1", "lrn1_1"),
        ("features.pool5", "pool5"),
        ("fc6.linear.bias", "fc6"),
        ("fc8", "fc8"),
    ],
)
def test_layers_have_the_papers_names(path: str, name: str) -> None:
    assert layer_name(path) == name


@pytest.mark.parametrize("path", ["features.0.weight", "classifier.0.weight", "fc9.bias", "fc61"])
def test_a_name_from_another_network_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=f"'{path}' is not part of a VGG network"):
        layer_name(path)
