"""Files of others give the logits that they gave in their own program: torchvision and timm
themselves, and Caffe and Keras as loops in NumPy."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import normalize, to_dtype

from tests.convert.third_party_networks import (
    CLASSES,
    TINY,
    WIDTH,
    caffe_arrays,
    caffe_logits,
    keras_arrays,
    keras_logits,
    our_logits,
    random_pixels,
    torchvision_network,
)
from vggdist.artifacts.weights import load_weights
from vggdist.config_file import load_config
from vggdist.convert.importing import Imported, import_weights
from vggdist.convert.layouts import detect_layout, map_side, to_vgg
from vggdist.errors import WeightsError
from vggdist.model.configurations import parse_configuration


def imported(file: Path, out: Path, configuration: str, **options: object) -> Imported:
    config = load_config(None, [f"model.configuration={configuration}"])
    return import_weights(file, out, config, **options)


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(path, **arrays)
    return path


def preprocessed(pixels: np.ndarray) -> Tensor:
    """torchvision's own preprocessing of its ImageNet weights, after the crop."""
    images = to_dtype(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.float32, scale=True)
    return normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "bn"])
@pytest.mark.parametrize("configuration", ["A", "B", "D", "E"])
def test_a_state_dict_of_torchvision_gives_torchvisions_logits(
    configuration: str, batch_norm: bool, tmp_path: Path
) -> None:
    theirs = torchvision_network(configuration, batch_norm)
    torch.save(theirs.state_dict(), tmp_path / "vgg.pth")
    found = imported(tmp_path / "vgg.pth", tmp_path / "ours.safetensors", configuration)
    assert found.layout == "torchvision"
    model = found.description.model
    assert (model.num_classes, model.fc_width, model.batch_norm) == (CLASSES, WIDTH, batch_norm)
    assert found.description.crop_size == 32
    assert found.num_parameters == sum(one.numel() for one in theirs.parameters())
    with torch.inference_mode():
        expected = theirs(preprocessed(random_pixels()))
    assert expected.std() > 0.01
    logits = our_logits(tmp_path / "ours.safetensors", random_pixels())
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_the_crop_size_follows_from_fc6(tmp_path: Path) -> None:
    torch.save(torchvision_network("A", side=3).state_dict(), tmp_path / "vgg.pth")
    assert imported(tmp_path / "vgg.pth", tmp_path / "f", "A").description.crop_size == 96


def test_a_network_of_timm_gives_timms_logits(tmp_path: Path) -> None:
    from timm.models.vgg import VGG as TimmVGG  # noqa: N811

    torch.manual_seed(0)
    widths = [4, "M", 4, "M", 6, 6, "M", 8, "M", 8, "M"]
    theirs = TimmVGG(widths, num_classes=CLASSES, norm_layer=nn.BatchNorm2d).eval()
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    found = imported(
        tmp_path / "timm.pth",
        tmp_path / "ours.safetensors",
        "[[3-4],[3-4],[3-6,3-6],[3-8],[3-8]]",
    )
    assert found.layout == "timm"
    assert found.description.crop_size == 224
    pixels = random_pixels(224, 1)
    with torch.inference_mode():
        expected = theirs(preprocessed(pixels))
    logits = our_logits(tmp_path / "ours.safetensors", pixels)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-6)


def test_arrays_of_caffe_give_caffes_logits(tmp_path: Path) -> None:
    file = save_arrays(tmp_path / "caffe.npz", caffe_arrays())
    found = imported(file, tmp_path / "ours.safetensors", TINY)
    assert found.layout == "caffe"
    assert found.description.mean == (123.68, 116.779, 103.939)
    assert found.description.std == (1.0, 1.0, 1.0)
    expected = caffe_logits(random_pixels(), caffe_arrays())
    logits = our_logits(tmp_path / "ours.safetensors", random_pixels()).numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-3)


def test_arrays_of_keras_give_kerass_logits(tmp_path: Path) -> None:
    file = save_arrays(tmp_path / "keras.npz", keras_arrays())
    found = imported(file, tmp_path / "ours.safetensors", TINY)
    assert found.layout == "keras"
    expected = keras_logits(random_pixels(), keras_arrays())
    logits = our_logits(tmp_path / "ours.safetensors", random_pixels()).numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-3)


def test_the_first_layers_channels_are_reversed_exactly_and_only_for_bgr(tmp_path: Path) -> None:
    file = save_arrays(tmp_path / "caffe.npz", caffe_arrays())
    first = torch.from_numpy(caffe_arrays()["conv1_1_W"])
    for scaling, expected in (("mean-bgr", first.flip(1)), ("mean-rgb", first)):
        imported(file, tmp_path / "ours.safetensors", TINY, scaling=scaling)
        weights = load_weights(tmp_path / "ours.safetensors")
        assert torch.equal(weights.tensors["features.block1.conv1.weight"], expected)
        assert weights.description.mean == (123.68, 116.779, 103.939)


def caffe_blobs(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Files of Caffe before 2015 have four dimensions everywhere."""
    return {
        name: array.reshape((1,) * (4 - array.ndim) + array.shape) for name, array in arrays.items()
    }


CAFFE_SPELLINGS: dict[str, Callable[[str], str]] = {
    "slash": lambda name: name.replace("_W", "/weight").replace("_b", "/bias"),
    "slim": lambda name: "vgg_16/" + name.replace("_W", "/weights").replace("_b", "/biases"),
    "dot": lambda name: name.replace("_W", ".weight").replace("_b", ".bias"),
    "numbers": lambda name: name.replace("_W", "_0").replace("_b", "_1"),
    "words": lambda name: name.replace("_W", "_weights").replace("_b", "_biases"),
    "small": lambda name: name.replace("_W", "_w"),
}


@pytest.mark.parametrize("spelling", CAFFE_SPELLINGS)
def test_the_usual_spellings_of_caffes_names_are_understood(spelling: str) -> None:
    plain = {name: torch.from_numpy(array) for name, array in caffe_arrays().items()}
    spelled = {CAFFE_SPELLINGS[spelling](name): tensor for name, tensor in plain.items()}
    assert spelled.keys() != plain.keys()
    blocks = parse_configuration((("3-4",), ("3-6", "1-5")))
    assert detect_layout(spelled) == "caffe"
    expected = to_vgg(plain, "caffe", blocks)
    found = to_vgg(spelled, "caffe", blocks)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_old_blobs_of_caffe_have_four_dimensions() -> None:
    plain = {name: torch.from_numpy(array) for name, array in caffe_arrays().items()}
    old = {name: torch.from_numpy(array) for name, array in caffe_blobs(caffe_arrays()).items()}
    assert old["fc6_W"].shape == (1, 1, WIDTH, 5 * 8 * 8)
    blocks = parse_configuration((("3-4",), ("3-6", "1-5")))
    expected, found = to_vgg(plain, "caffe", blocks), to_vgg(old, "caffe", blocks)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


KERAS_SPELLINGS: dict[str, Callable[[str, str], str]] = {
    "keras 1": lambda layer, kind: f"{layer}_{'W' if kind == 'kernel' else 'b'}_1",
    "keras 1 in a group": lambda layer, kind: f"{layer}/{layer}_{kind[0].replace('k', 'W')}_1:0",
    "keras 2 in a group": lambda layer, kind: f"{layer}/{layer}/{kind}:0",
    "get_weights": lambda layer, kind: f"{layer}_{int(kind == 'bias')}",
}


@pytest.mark.parametrize("spelling", KERAS_SPELLINGS)
def test_the_usual_spellings_of_kerass_names_are_understood(spelling: str) -> None:
    plain = {name: torch.from_numpy(array) for name, array in keras_arrays().items()}
    spelled = {
        KERAS_SPELLINGS[spelling](*name.removesuffix(":0").split("/")): tensor
        for name, tensor in plain.items()
    }
    blocks = parse_configuration((("3-4",), ("3-6", "1-5")))
    assert detect_layout(spelled) == "keras"
    expected, found = to_vgg(plain, "keras", blocks), to_vgg(spelled, "keras", blocks)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_convolutions_for_fc6_to_fc8_in_kerass_order_are_matrices_here() -> None:
    """As in TensorFlow Slim's files; a 7x7 convolution over a 7x7 map is a matrix product."""
    kernel = torch.randn(8, 8, 5, WIDTH)
    blocks = parse_configuration((("3-4",), ("3-6", "1-5")))
    found = to_vgg({"vgg_16/fc6/weights": kernel}, "keras", blocks)["fc6.linear.weight"]
    maps = torch.randn(1, 5, 8, 8)
    expected = torch.einsum("nchw,hwco->no", maps, kernel)
    torch.testing.assert_close(maps.flatten(1) @ found.T, expected, rtol=1e-4, atol=1e-4)


def test_c_is_numbered_as_d_and_local_response_normalization_counts_in_a_sequence() -> None:
    d = {f"features.{i}.weight": torch.zeros(1) for i in (0, 2, 5, 7, 10, 12, 14)}
    named = to_vgg(d, "torchvision", parse_configuration("C"))
    assert list(named)[-2:] == ["features.block3.conv2.weight", "features.block3.conv3.weight"]
    lrn = {f"features.{i}.weight": torch.zeros(1) for i in (0, 4, 7)}
    named = to_vgg(lrn, "torchvision", parse_configuration("A-LRN"))
    assert list(named) == [f"features.block{i}.conv1.weight" for i in (1, 2, 3)]


def test_half_precision_becomes_single_and_counters_stay_integers(tmp_path: Path) -> None:
    state = torchvision_network("A", batch_norm=True).half().state_dict()
    old = {name: tensor for name, tensor in state.items() if "tracked" not in name}
    for case in (state, old):
        torch.save(case, tmp_path / "half.pth")
        imported(tmp_path / "half.pth", tmp_path / "f.safetensors", "A")
        tensors = load_weights(tmp_path / "f.safetensors").tensors
        counters = {name for name in tensors if name.endswith("num_batches_tracked")}
        assert len(counters) == 8
        for name, tensor in tensors.items():
            assert tensor.dtype == (torch.int64 if name in counters else torch.float32)
        assert our_logits(tmp_path / "f.safetensors", random_pixels()).isfinite().all()


def test_an_unknown_layout_is_refused_with_its_first_names() -> None:
    with pytest.raises(WeightsError) as refused:
        detect_layout({"layer1.0.conv1.weight": torch.zeros(4, 3, 3, 3), "fc.weight": torch.eye(2)})
    assert str(refused.value) == (
        "The layout of these tensors is not known: layer1.0.conv1.weight, fc.weight. Name it with "
        "--layout vggdist|torchvision|timm|caffe|keras if it is one of these, or rename the "
        "tensors to conv1_1_W, conv1_1_b, fc6_W and so on."
    )


def test_kerass_names_with_kernels_in_theanos_order_are_not_guessed() -> None:
    """Theano turned its kernels around, so the order of the dimensions is not all there is."""
    with pytest.raises(WeightsError, match="layout of these tensors is not known: block1_conv1_W"):
        detect_layout({"block1_conv1_W": torch.zeros(64, 3, 3, 3)})


def test_two_tensors_for_one_place_are_refused() -> None:
    tensors = {"conv1_1_W": torch.zeros(4, 3, 3, 3), "conv1_1/weight": torch.zeros(4, 3, 3, 3)}
    with pytest.raises(
        WeightsError, match=r"conv1_1/weight and another tensor are both meant for "
    ):
        to_vgg(tensors, "caffe", parse_configuration("A"))


@pytest.mark.parametrize(
    ("num_inputs", "side"), [(25088, 7), (512, 1), (512 * 100, 10), (512 * 8, None), (100, None)]
)
def test_the_side_of_the_last_map_is_a_whole_number_or_none(
    num_inputs: int, side: int | None
) -> None:
    assert map_side(num_inputs, parse_configuration("D")) == side
