"""The oracle is plain forwards of single crops, and naive averages."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from vggdist.config import ModelConfig
from vggdist.evaluation.scores import (
    center_crop_posteriors,
    dense_posteriors,
    most_pixels,
    multi_crop_posteriors,
)
from vggdist.model.dense import DenseNetwork
from vggdist.model.initialization import build_initialized
from vggdist.model.vgg import VGG

CROP = 32
MODEL = ModelConfig(configuration=(("3-8",), ("3-12", "3-12")), num_classes=6, fc_width=24)
MEAN = 110.0


@dataclass
class Part:
    """What the loader gives: images of one shape."""

    pixels: np.ndarray

    @property
    def images(self) -> Tensor:
        return as_fed(self.pixels)


def as_fed(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float32) - MEAN).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def network() -> VGG:
    network = build_initialized(MODEL, CROP, seed=2).eval()
    with torch.no_grad():
        network.fc8.linear.weight.mul_(0.1)  # else one class has it all
    return network


@pytest.fixture(scope="module")
def dense(network: VGG) -> DenseNetwork:
    return DenseNetwork(network, torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def group() -> list[Part]:
    generator = np.random.default_rng(0)
    shapes = [(3, 40, 55), (1, 32, 33), (2, 70, 36), (1, 48, 48)]
    return [Part(generator.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in shapes]


def mirrored(pixels: np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(ImageOps.mirror(Image.fromarray(one))) for one in pixels])


@torch.no_grad()
def posteriors_of_windows(network: VGG, pixels: np.ndarray, average: str) -> np.ndarray:
    """One image after the other, one window after the other."""
    found = []
    for image in as_fed(pixels):
        maps = network.features(image[None])
        scores = [
            network.fc8(network.fc7(network.fc6(maps[:, :, i : i + 8, j : j + 8].flatten(1))))[0]
            for i in range(maps.shape[2] - 7)
            for j in range(maps.shape[3] - 7)
        ]
        logits = torch.stack(scores)
        before, after = logits.mean(0).softmax(0), logits.softmax(1).mean(0)
        found.append((before if average == "logits" else after).numpy())
    return np.stack(found)


@pytest.mark.parametrize("average", ["logits", "posteriors"])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("max_pixels", [1, 5000, 10**8])
def test_dense_posteriors_are_averages_over_windows_and_mirror_images(
    network: VGG, dense: DenseNetwork, group: list[Part], average: str, flip: bool, max_pixels: int
) -> None:
    found = dense_posteriors(dense, group, flip, average, max_pixels)
    for part, posteriors in zip(group, found, strict=True):
        expected = posteriors_of_windows(network, part.pixels, average)
        if flip:
            other = posteriors_of_windows(network, mirrored(part.pixels), average)
            expected = (expected + other) / 2
        np.testing.assert_allclose(posteriors.numpy(), expected, atol=2e-5)


def test_the_two_spatial_averages_differ(dense: DenseNetwork, group: list[Part]) -> None:
    one = dense_posteriors(dense, group, True, "logits", 10**8)
    other = dense_posteriors(dense, group, True, "posteriors", 10**8)
    assert max((a - b).abs().max() for a, b in zip(one, other, strict=True)) > 1e-3


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("max_pixels", [1, 5000, 10**8])
@torch.no_grad()
def test_multi_crop_posteriors_are_the_mean_over_pillow_s_crops(
    network: VGG, dense: DenseNetwork, group: list[Part], flip: bool, max_pixels: int
) -> None:
    found = multi_crop_posteriors(dense, group, flip, max_pixels)
    for part, posteriors in zip(group, found, strict=True):
        for pixels, one in zip(part.pixels, posteriors, strict=True):
            image = Image.fromarray(pixels)
            crops = []
            for i in range(5):
                for j in range(5):
                    top = int((image.height - CROP) * i / 4 + 0.5)
                    left = int((image.width - CROP) * j / 4 + 0.5)
                    crop = image.crop((left, top, left + CROP, top + CROP))
                    crops += [crop, ImageOps.mirror(crop)][: 1 + flip]
            logits = network(as_fed(np.stack([np.asarray(crop) for crop in crops])))
            np.testing.assert_allclose(one.numpy(), logits.softmax(1).mean(0).numpy(), atol=2e-5)


@torch.no_grad()
def test_centre_crop_posteriors_are_the_soft_max_of_the_plain_forward(
    network: VGG, dense: DenseNetwork
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (5, CROP, CROP, 3), dtype=np.uint8)
    plain = network(as_fed(pixels)).softmax(1)
    other = network(as_fed(mirrored(pixels))).softmax(1)
    for flip, expected in ((False, plain), (True, (plain + other) / 2)):
        found = center_crop_posteriors(dense, as_fed(pixels), flip, 2500)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_the_convolutions_take_no_more_pixels_at_once_than_they_may(
    dense: DenseNetwork, group: list[Part], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    maps = dense.maps

    def noting(images: Tensor) -> Tensor:
        taken.append(images.shape[0] * images.shape[2] * images.shape[3])
        return maps(images)

    monkeypatch.setattr(dense, "maps", noting)
    dense_posteriors(dense, group, True, "logits", 5000)
    assert max(taken) <= 5000
    assert len(taken) > len(group)


def test_an_unset_bound_depends_on_the_device() -> None:
    assert most_pixels(2.5, torch.device("cpu")) == 2_500_000
    assert most_pixels(None, torch.device("cpu")) < most_pixels(None, torch.device("cuda"))
