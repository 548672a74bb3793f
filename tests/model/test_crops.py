"""The oracle is each crop by itself."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from vggdist.model.configurations import parse_configuration
from vggdist.model.crops import NOTHING, Sharing, alike, choose_sharing, crop_maps
from vggdist.model.vgg import VGG

CROP = 32
CONFIGURATIONS = {
    "like D": [["3-4", "3-4"], ["3-6", "3-6"], ["3-8"]],
    "LRN and 1x1": [["3-4", "LRN"], ["3-6", "1-6"], ["3-8"]],
    "5x5": [["5-4"], ["3-6"]],
}
LINES = [
    pytest.param([0, 4, 8, 12, 16], [0, 8, 16, 24, 32], id="all alike"),
    pytest.param([0, 2, 4, 6, 8], [0, 7, 15, 22, 29], id="all residues"),
    pytest.param([0], [0, 1, 2, 3, 4], id="one row"),
    pytest.param([0, 3], [0], id="two rows"),
]


def features(name: str) -> nn.Sequential:
    torch.manual_seed(0)
    blocks = parse_configuration(CONFIGURATIONS[name])
    return VGG(blocks, num_classes=3, crop_size=CROP, fc_width=8).features.eval()


def crops_alone(network: nn.Sequential, images: Tensor, rows: list, columns: list) -> Tensor:
    found = [
        network(images[:, :, y : y + CROP, x : x + CROP])
        for y, x in itertools.product(rows, columns)
    ]
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize(("rows", "columns"), LINES)
@pytest.mark.parametrize("max_pixels", [1, 3 * CROP**2, 10**9])
@torch.no_grad()
def test_crops_that_share_layers_have_the_maps_that_they_have_alone(
    name: str, rows: list[int], columns: list[int], max_pixels: int
) -> None:
    network = features(name)
    images = torch.randn(2, 3, rows[-1] + CROP, columns[-1] + CROP)
    expected = crops_alone(network, images, rows, columns)
    convolutions = [
        [layer for layer in block if isinstance(layer, nn.Conv2d)] for block in network[::2]
    ]
    reach, sharings = 0, [NOTHING]
    for number, layers in enumerate(convolutions, start=1):
        reach = -(-(reach + sum(layer.kernel_size[0] // 2 for layer in layers)) // 2)
        sharings.append(Sharing(number, reach))
    for sharing in sharings:
        if sharing.strip <= CROP:
            found = crop_maps(network, images, rows, columns, CROP, max_pixels, sharing)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert len([one for one in sharings if one.strip <= CROP]) >= 2


@torch.no_grad()
def test_a_ring_that_is_too_thin_would_be_noticed() -> None:
    """What the tests above rest on: the crop's own padding does reach so far."""
    network = features("like D")
    rows = [0, 4, 8, 12, 16]
    images = torch.randn(1, 3, 48, 48)
    expected = crops_alone(network, images, rows, rows)
    thin = crop_maps(network, images, rows, rows, CROP, 10**9, Sharing(2, 1))
    assert (thin - expected).abs().max() > 1e-3


def test_the_paper_s_grids_share_blocks_of_d_by_how_densely_they_lie() -> None:
    with torch.device("meta"):
        network = VGG(parse_configuration("D")).features
    dense, sparse = [0, 8, 16, 24, 32], [0, 72, 144, 216, 288]
    longer = [0, 29, 59, 88, 117]
    assert choose_sharing(network, dense, dense, 224).num_blocks == 3
    assert choose_sharing(network, dense, longer, 224).num_blocks == 2
    assert choose_sharing(network, dense, longer, 224).ring == 2
    assert choose_sharing(network, [0], [0], 224) == NOTHING
    plain = 25 * 224**2
    assert choose_sharing(network, dense, dense, 224).num_pixels(dense, dense, 224) < plain / 2
    assert choose_sharing(network, sparse, sparse, 224).num_pixels(sparse, sparse, 224) < plain


def test_lines_are_alike_when_their_remainders_are() -> None:
    assert alike([0, 29, 59, 88, 117], 4) == [[0, 88], [29, 117], [59]]
    assert alike([0, 8, 16], 4) == [[0, 8, 16]]
