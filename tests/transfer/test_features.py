"""The oracle is a loop over the files: Pillow rescales, plain torch applies layer after layer."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tests.conftest import Call
from tests.reference import Reference, rescaled
from vggdist.artifacts.weights import Description, load_weights, save_weights
from vggdist.config import ModelConfig
from vggdist.errors import ConfigError, DataError, VggdistError, WeightsError
from vggdist.model.initialization import build_initialized
from vggdist.transfer.features import Request, compute_features
from vggdist.transfer.features_file import Features, load_features

CROP = 32
MODEL = ModelConfig(
    configuration=(("3-8",), ("3-12", "3-12"), ("3-16",)), num_classes=3, fc_width=24
)
OVERRIDES = ("precision=fp32", "device=cpu", "data.num_threads=2")
CLASSES = ("birds", "boats")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    network = build_initialized(MODEL, CROP, seed=5)
    description = Description(MODEL, CROP, (120.0, 110.0, 100.0), (60.0, 55.0, 50.0))
    save_weights(path, network.state_dict(), description)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with 9 smooth images of several shapes."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(9):
        path = root / CLASSES[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        small = Image.fromarray(generator.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        shape = [(60, 40), (40, 52), (45, 45)][number % 3]
        small.resize(shape, Image.Resampling.BICUBIC).save(path)
    return root


@torch.no_grad()
def described(reference: Reference, path: Path, scale: int, layer: str, flip: bool) -> np.ndarray:
    """Mean over all places, and over the mirror image."""
    network, side = reference.network, CROP // 8
    image = rescaled(path, scale)
    found = []
    for one in (image, ImageOps.mirror(image))[: 1 + flip]:
        maps = network.features(reference.tensor(one))
        if layer == "pool5":
            found.append(maps.mean((2, 3))[0])
            continue
        units = [
            network.fc7(network.fc6(maps[..., i : i + side, j : j + side].flatten(1)))[0]
            for i in range(maps.shape[2] - side + 1)
            for j in range(maps.shape[3] - side + 1)
        ]
        found.append(torch.stack(units).mean(0))
    return torch.stack(found).mean(0).numpy()


def compute(weights: Path, root: Path, **changes: object) -> Features:
    values: dict[str, object] = {"scales": (32, 48), "overrides": OVERRIDES}
    return compute_features(Request(str(weights), str(root), **(values | changes)))  # type: ignore[arg-type]


@pytest.mark.parametrize("layer", ["fc7", "pool5"])
@pytest.mark.parametrize("aggregate", ["average", "stack"])
@pytest.mark.parametrize("flip", [True, False])
def test_descriptors_are_those_of_a_loop_over_pillow_s_images(
    weights: Path, folder: Path, layer: str, aggregate: str, flip: bool
) -> None:
    found = compute(weights, folder, layer=layer, aggregate=aggregate, flip=flip)
    reference = Reference(weights)
    paths = sorted(folder.rglob("*.png"))
    assert found.files == tuple(str(path.relative_to(folder)) for path in paths)
    assert found.classes == CLASSES
    assert [CLASSES[label] for label in found.labels] == [path.parent.name for path in paths]
    for descriptor, path in zip(found.descriptors, paths, strict=True):
        scales = [described(reference, path, scale, layer, flip) for scale in (32, 48)]
        whole = np.concatenate(scales) if aggregate == "stack" else np.mean(scales, axis=0)
        expected = whole / np.linalg.norm(whole)
        assert descriptor.shape == expected.shape
        # A grey level, by which the two ways to rescale may differ, moves a unit this much.
        np.testing.assert_allclose(descriptor, expected, atol=5e-3)


def test_a_data_set_s_images_are_all_taken_and_keep_their_split(
    weights: Path, folder: Path, tmp_path: Path
) -> None:
    for split in ("train", "val"):
        (tmp_path / split).symlink_to(folder)
    found = compute(weights, tmp_path, scales=(32,))
    alone = compute(weights, folder, scales=(32,))
    assert found.files == tuple(
        f"{split}/{name}" for split in ("train", "val") for name in alone.files
    )
    np.testing.assert_allclose(found.descriptors, np.tile(alone.descriptors, (2, 1)), atol=1e-6)


def test_the_command_writes_a_file_that_says_what_it_is(
    weights: Path, folder: Path, tmp_path: Path, call: Call
) -> None:
    out, told = tmp_path / "f.npz", tmp_path / "f.json"
    words = ["features", weights, "--data", folder, "--scales", "32,40", "--no-flip"]
    words += ["--aggregate", "stack", "--out", out, "--json", told, *OVERRIDES]
    code, printed, _ = call(*words)
    assert code == 0
    with np.load(out, allow_pickle=False) as file:
        assert file["X"].shape == (9, 48)
        assert file["X"].dtype == np.float32
        assert np.linalg.norm(file["X"], axis=1) == pytest.approx(np.ones(9), abs=1e-5)
        assert sorted(file["y"]) == [0] * 5 + [1] * 4
        assert len(file["files"]) == 9
    stored = load_features(out)
    assert stored.recipe is not None
    assert (stored.recipe.scales, stored.recipe.aggregate) == ((32, 40), "stack")
    assert json.loads(told.read_text())
    assert "9 images of 2 classes, 48 units of each" in printed


def refusal(kind: type[VggdistError], weights: Path, root: Path, **changes: object) -> str:
    with pytest.raises(kind) as caught:
        compute(weights, root, **changes)
    return str(caught.value)


def test_what_has_no_features_is_refused_in_a_sentence(
    weights: Path, folder: Path, tmp_path: Path
) -> None:
    small = refusal(ConfigError, weights, folder, scales=(16,))
    assert "at a shorter side of 16 pixels images are smaller than the network's input" in small
    assert "does not exist" in refusal(DataError, weights, tmp_path / "none")
    (tmp_path / "broken" / "one").mkdir(parents=True)
    (tmp_path / "broken" / "one" / "a.jpg").write_bytes(b"no image")
    assert "cannot be used" in refusal(DataError, weights, tmp_path / "broken")


def test_every_bad_image_is_named_at_once_with_what_to_do(
    weights: Path, folder: Path, tmp_path: Path
) -> None:
    for split in ("train", "val"):
        shutil.copytree(folder, tmp_path / split)
    file = next((tmp_path / "train").glob("*/0.png"))
    with Image.open(file) as image:
        image.resize((200, 200)).save(file, "JPEG")
    damaged = bytearray(file.read_bytes())
    middle = len(damaged) // 2
    damaged[middle : middle + 4] = b"\xff\x01\xff\x01"
    file.write_bytes(damaged)  # which its first and last bytes do not tell
    bad = [file]
    for split, number in (("train", 3), ("val", 5), ("val", 6)):
        bad += (tmp_path / split).glob(f"*/{number}.png")
        bad[-1].write_bytes(b"no image")
    message = refusal(DataError, weights, tmp_path)
    assert len(bad) == 4
    assert all(f"  {path}: " in message for path in bad)
    assert f"2 of the 9 images in {tmp_path / 'val'} cannot be used" in message
    assert "Replace them with good copies, or delete them. An evaluation counts" in message


@pytest.mark.parametrize("factor", [1e25, 1e38])
def test_a_network_that_has_exploded_has_no_features(
    folder: Path, tmp_path: Path, factor: float
) -> None:
    network = build_initialized(MODEL, CROP, seed=5)
    with torch.no_grad():
        network.fc7.linear.weight.mul_(factor)
    description = Description(MODEL, CROP, (120.0, 110.0, 100.0), (60.0, 55.0, 50.0))
    save_weights(tmp_path / "exploded.safetensors", network.state_dict(), description)
    request = Request(
        str(tmp_path / "exploded.safetensors"), str(folder), (40,), overrides=OVERRIDES
    )
    with pytest.raises(WeightsError, match="features are infinite or not numbers for 9 of 9"):
        compute_features(request)


def test_pool5_needs_convolutions_alone_and_fc7_says_what_is_missing(
    weights: Path, folder: Path, tmp_path: Path, call: Call
) -> None:
    whole = load_weights(weights)
    convolutions = {n: t for n, t in whole.tensors.items() if n.startswith("features.")}
    path = tmp_path / "convolutions.safetensors"
    save_weights(path, convolutions, whole.description)
    request = Request(str(path), str(folder), (40,), "pool5", overrides=OVERRIDES)
    expected = compute_features(replace(request, network=str(weights)))
    assert np.array_equal(compute_features(request).descriptors, expected.descriptors)

    sentence = (
        f"error: {path} has convolutions only, and this needs fc6, fc7 and fc8 too. With such a "
        "file a training can begin (model.initialize_from), and `vggdist features --layer pool5` "
        "describes images.\n"
    )
    out, image = tmp_path / "f.npz", next(folder.rglob("*.png"))
    for words in (["features", path, "--data", folder, "--out", out], ["predict", path, image]):
        code, _, err = call(*words)
        assert code == WeightsError.exit_code
        assert err.endswith(sentence)
