"""`import vggdist`: the page of the documents, run as it stands; and what a classifier is shown."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vggdist
from vggdist.artifacts.weights import Description, load_weights, save_weights
from vggdist.config import ModelConfig
from vggdist.model.initialization import build_initialized
from vggdist.predict import predict

PAGE = Path(__file__).resolve().parent.parent / "docs" / "python.md"
CLASSES = ("cat", "dog", "owl")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = ModelConfig(configuration=(("3-8",), ("3-16",)), num_classes=3, fc_width=16)
    network = build_initialized(model, 32, seed=0)
    path = tmp_path_factory.mktemp("api") / "tiny.safetensors"
    description = Description(
        model, 32, (120.0, 110.0, 100.0), (60.0, 60.0, 60.0), (40, 56), CLASSES
    )
    save_weights(path, network.state_dict(), description)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number, size in enumerate([(80, 60), (50, 90), (64, 64), (40, 41)]):
        small = Image.fromarray(generator.integers(0, 256, (5, 4, 3), dtype=np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


def test_a_loaded_network_says_of_images_what_the_command_predict_says(weights, photos):
    network = vggdist.load(weights, device="cpu")
    expected = predict(load_weights(weights), photos, precision="fp32", device="cpu")
    for found, prediction in zip(network.classify(photos, top=3), expected, strict=True):
        assert [name for name, _ in found] == [choice.name for choice in prediction.choices]
        confidences = [choice.confidence for choice in prediction.choices]
        assert [value for _, value in found] == pytest.approx(confidences, abs=1e-4)


def test_files_pictures_and_arrays_are_the_same_images(weights, photos):
    network = vggdist.load(str(weights), device="cpu")
    pictures = [Image.open(photo) for photo in photos]
    arrays = [np.array(picture) for picture in pictures]
    posteriors = network(photos)
    assert posteriors.shape == (4, 3)
    assert torch.allclose(posteriors.sum(dim=1), torch.ones(4))
    for images in (list(map(str, photos)), pictures, arrays, list(map(torch.tensor, arrays))):
        assert torch.equal(network(images), posteriors)
    assert torch.allclose(network(photos[0])[0], posteriors[0], atol=1e-6)


def test_what_is_no_image_is_refused_with_a_sentence(weights, tmp_path):
    network = vggdist.load(weights, device="cpu")
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(vggdist.VggdistError, match=r"a\.jpg cannot be used"):
        network(tmp_path / "a.jpg")
    with pytest.raises(vggdist.VggdistError, match=r"must be \(height, width, 3\) and uint8"):
        network(np.zeros((3, 32, 32), dtype=np.float32))
    with pytest.raises(vggdist.VggdistError, match=r"data\.root is not set"):
        vggdist.open_loader(vggdist.Config())
    with pytest.raises(vggdist.VggdistError, match="scale: at a shorter side of 16 pixels"):
        vggdist.load(weights, scale=16)


def test_every_name_is_on_the_page_and_importing_the_package_is_light():
    assert {name for name in vggdist.__all__ if f"`{name}" not in PAGE.read_text()} == set()
    code = "import sys, vggdist; dir(vggdist); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
