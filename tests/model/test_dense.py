"""The oracles: the plain forward of a crop, and loops over windows of the whole image's maps."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from vggdist.config import ModelConfig
from vggdist.model import dense as dense_module
from vggdist.model.dense import DenseNetwork
from vggdist.model.initialization import build_initialized
from vggdist.model.vgg import VGG

CROP = 32
NETWORKS = {
    "plain": ModelConfig(configuration=(("3-8",), ("3-12", "3-12")), num_classes=7, fc_width=24),
    "batch norm": ModelConfig(
        configuration=(("3-8", "3-8"), ("3-12",)), num_classes=7, fc_width=24, batch_norm=True
    ),
    "LRN": ModelConfig(configuration=(("3-8", "LRN"), ("3-12",)), num_classes=7, fc_width=24),
    "1x1": ModelConfig(
        configuration=(("3-8",), ("3-12",), ("3-16", "1-16")), num_classes=7, fc_width=24
    ),
    "one window": ModelConfig(configuration=(("3-8",),) * 5, num_classes=7, fc_width=24),
}
each_network = pytest.mark.parametrize("name", NETWORKS)
SHAPES = [(3, 32, 32), (2, 32, 47), (1, 61, 38), (2, 50, 50)]


def build(name: str) -> VGG:
    network = build_initialized(NETWORKS[name], CROP, seed=1).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # as a training leaves them
            module.running_mean.uniform_(-20, 20)
            module.running_var.uniform_(50, 400)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.uniform_(module.bias, -1, 1)
    return network


def random_images(n: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * width)
    return torch.randn(n, 3, height, width, generator=generator) * 60


def windows(network: VGG, images: Tensor, layer: str = "fc8") -> Tensor:
    """(n, rows, columns, units): the layers applied to one window of the maps after the other."""
    maps = network.features(images)
    side = CROP // 2 ** (len(network.features) // 2)
    rows, columns = (length - side + 1 for length in maps.shape[2:])
    found = []
    for i, j in itertools.product(range(rows), range(columns)):
        units = network.fc6(maps[:, :, i : i + side, j : j + side].flatten(1))
        for name in ("fc7", "fc8")[: ("fc6", "fc7", "fc8").index(layer)]:
            units = getattr(network, name)(units)
        found.append(units)
    return torch.stack(found, dim=1).view(len(images), rows, columns, -1)


@each_network
@torch.no_grad()
def test_dense_on_an_image_of_the_crop_size_is_the_plain_forward(name: str) -> None:
    network = build(name)
    images = random_images(3, CROP, CROP)
    expected = network(images)
    found = network.score_map(images)[:, :, 0, 0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    dense = DenseNetwork(network, torch.float32, torch.device("cpu"))
    (scores,) = dense.score_maps([dense.maps(images)])
    assert scores.shape == (3, 1, 1, 7)
    torch.testing.assert_close(scores[:, 0, 0], expected, rtol=1e-4, atol=1e-3)


@each_network
@torch.no_grad()
def test_the_score_map_is_the_layers_applied_to_each_window_of_the_whole_image_s_maps(
    name: str,
) -> None:
    network = build(name)
    dense = DenseNetwork(network, torch.float32, torch.device("cpu"))
    images = [random_images(*shape) for shape in SHAPES]
    for layer in dense_module.LAYERS:
        found = dense.score_maps([dense.maps(one) for one in images], layer)
        for one, scores in zip(images, found, strict=True):
            expected = windows(network, one, layer)
            torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-3)
    for one in images:
        by_pixel = network.score_map(one).permute(0, 2, 3, 1)
        torch.testing.assert_close(by_pixel, windows(network, one), rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_windows_go_through_fc6_in_pieces_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build("plain")
    dense = DenseNetwork(network, torch.float32, torch.device("cpu"))
    maps = [dense.maps(random_images(*shape)) for shape in SHAPES]
    whole = dense.score_maps(maps)
    bytes_of_a_window = network.fc6.linear.in_features * 4
    monkeypatch.setattr(dense_module, "WINDOW_BYTES", 3 * bytes_of_a_window + 5)
    seen: list[int] = []
    linear = torch.nn.functional.linear

    def noting(units: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        seen.append(len(units))
        return linear(units, weight, bias)

    monkeypatch.setattr("torch.nn.functional.linear", noting)
    for one, other in zip(whole, dense.score_maps(maps), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
    assert max(seen) == 3


@torch.no_grad()
def test_bf16_is_cast_once_and_close_to_fp32() -> None:
    network = build("batch norm")
    images = random_images(2, 40, 60)
    dense = DenseNetwork(network, torch.bfloat16, torch.device("cpu"))
    (scores,) = dense.score_maps([dense.maps(images)])
    assert scores.dtype == torch.bfloat16
    expected = windows(network, images)
    assert (scores.float() - expected).abs().max() < 0.05 * expected.abs().max()
    assert all(weight.dtype == torch.bfloat16 for weight, _ in dense._layers)


def test_the_network_that_was_given_is_not_changed() -> None:
    network = build("batch norm")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    DenseNetwork(network, torch.bfloat16, torch.device("cpu"))
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("shape", [(1, 3, 31, 40), (1, 3, 40, 31), (1, 1, 40, 40), (3, 40, 40)])
def test_images_smaller_than_the_network_s_input_are_refused(shape: tuple[int, ...]) -> None:
    network = build("plain")
    images = torch.zeros(shape)
    dense = DenseNetwork(network, torch.float32, torch.device("cpu"))
    for function in (network.maps, network.score_map, dense.maps):
        with pytest.raises(ValueError, match="h and w at least 32; rescale them"):
            function(images)
