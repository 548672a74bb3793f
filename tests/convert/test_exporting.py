"""What is written for other programs is run by them and compared with the network."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
from onnx import load as load_onnx
from PIL import Image, ImageOps
from safetensors import safe_open
from torch import Tensor

from tests.conftest import MakeImage
from tests.convert.third_party_networks import random_pixels
from vggdist.artifacts.weights import Description, Weights, load_weights, save_weights
from vggdist.config import ModelConfig
from vggdist.config_file import load_config
from vggdist.convert import exporting
from vggdist.convert.exporting import Exported, export, render_exported
from vggdist.convert.importing import import_weights
from vggdist.errors import ConfigError, WeightsError
from vggdist.model.initialization import build_initialized
from vggdist.model.loading import build_network
from vggdist.predict import predict

MODEL = ModelConfig(
    configuration=(("3-4", "LRN"), ("3-6", "1-8")),
    batch_norm=True,
    num_classes=5,
    fc_width=12,
    initialization="kaiming",
)


def make_weights(path: Path, model: ModelConfig = MODEL, crop_size: int = 32) -> Weights:
    """With biases and running statistics that show if they are forgotten."""
    network = build_initialized(model, crop_size, seed=3)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if name.endswith(("bias", "running_mean", "running_var")):
            tensor.uniform_(0.5, 1.5, generator=generator)
    mean, std = (123.0, 117.0, 104.0), (58.0, 57.0, 56.0)
    description = Description(model, crop_size, mean, std, (32, 48), tuple("abcde"), "a test")
    save_weights(path, network.state_dict(), description)
    return load_weights(path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return make_weights(tmp_path_factory.mktemp("weights") / "network.safetensors")


@torch.inference_mode()
def logits_of(weights: Weights, images: Tensor) -> Tensor:
    return build_network(weights)(images)


@torch.inference_mode()
def dense_logits(weights: Weights, images: Tensor) -> Tensor:
    """Section 3.2 as a loop: the fully connected layers on each window of the last map."""
    network = build_network(weights)
    maps = network.features(images)
    rows, columns = maps.shape[2] - 8 + 1, maps.shape[3] - 8 + 1
    places = [
        network.fc8(network.fc7(network.fc6(maps[:, :, y : y + 8, x : x + 8].flatten(1))))
        for y in range(rows)
        for x in range(columns)
    ]
    return torch.stack(places).mean(dim=0)


def run_onnx(path: Path, images: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def run_exported_program(path: Path, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.export.load(path).module()(images)


RUNTIMES = {"onnx": run_onnx, "torch-export": run_exported_program}
SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}
graphs = pytest.mark.parametrize("form", RUNTIMES)


def close(logits: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.01
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@graphs
def test_a_graph_gives_the_networks_logits_for_any_number_of_images(
    form: str, weights: Weights, tmp_path: Path
) -> None:
    out = tmp_path / f"network{SUFFIXES[form]}"
    exported = export(weights, out, form)
    assert exported.largest_difference < 1e-4
    assert exported.shapes == ((1, 3, 32, 32), (3, 3, 32, 32))
    for count in (1, 2, 5):
        images = torch.randn(count, 3, 32, 32)
        close(RUNTIMES[form](out, images), logits_of(weights, images))


@pytest.mark.slow
@graphs
def test_a_dense_graph_takes_images_of_any_height_and_width(
    form: str, weights: Weights, tmp_path: Path
) -> None:
    out = tmp_path / f"dense{SUFFIXES[form]}"
    exported = export(weights, out, form, dense=True)
    assert exported.shapes == ((1, 3, 32, 32), (2, 3, 65, 32), (1, 3, 64, 127))
    for shape in ((1, 3, 32, 32), (2, 3, 47, 33), (3, 3, 80, 61)):
        images = torch.randn(shape)
        close(RUNTIMES[form](out, images), dense_logits(weights, images))
    images = torch.randn(2, 3, 32, 32)
    close(RUNTIMES[form](out, images), logits_of(weights, images))


@graphs
def test_a_graph_has_no_dropout_and_does_not_change_the_network(
    form: str, weights: Weights, tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in weights.tensors.items()}
    out = tmp_path / f"n{SUFFIXES[form]}"
    export(weights, out, form)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(RUNTIMES[form](out, images), RUNTIMES[form](out, images))
    assert all(torch.equal(weights.tensors[name], tensor) for name, tensor in before.items())


def test_an_onnx_file_names_its_axes_and_carries_the_description(
    weights: Weights, tmp_path: Path
) -> None:
    export(weights, tmp_path / "n.onnx", "onnx", dense=True)
    session = onnxruntime.InferenceSession(tmp_path / "n.onnx")
    (images,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.shape) == ("images", ["batch", 3, "height", "width"])
    assert (logits.name, logits.shape) == ("logits", ["batch", 5])
    carried = json.loads(session.get_modelmeta().custom_metadata_map["vggdist"])
    assert carried["mean"] == [123.0, 117.0, 104.0]
    assert carried["std"] == [58.0, 57.0, 56.0]
    assert carried["classes"] == list("abcde")


def test_an_exported_program_carries_the_description(weights: Weights, tmp_path: Path) -> None:
    export(weights, tmp_path / "n.pt2", "torch-export")
    carried = {"vggdist": ""}
    torch.export.load(tmp_path / "n.pt2", extra_files=carried)
    assert json.loads(carried["vggdist"])["crop_size"] == 32


def test_safetensors_are_the_same_weights_file(weights: Weights, tmp_path: Path) -> None:
    exported = export(weights, tmp_path / "n.safetensors", "safetensors")
    assert exported.largest_difference == 0
    again = load_weights(tmp_path / "n.safetensors")
    assert again.description == weights.description
    assert again.sha256 == weights.sha256


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "bn"])
def test_through_torchvision_and_back_every_tensor_is_the_same(
    batch_norm: bool, tmp_path: Path
) -> None:
    """In real size: torchvision's fully connected layers have no other."""
    name = "vgg11_bn" if batch_norm else "vgg11"
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(num_classes=7)
    generator = torch.Generator().manual_seed(0)
    state = {
        key: torch.empty(tensor.shape).uniform_(-0.03, 0.05, generator=generator).abs_()
        if tensor.is_floating_point()
        else torch.tensor(3)
        for key, tensor in theirs.state_dict().items()
    }
    torch.save(state, tmp_path / "theirs.pth")
    config = load_config(None, ["model.configuration=A"])
    import_weights(tmp_path / "theirs.pth", tmp_path / "ours.safetensors", config)
    weights = load_weights(tmp_path / "ours.safetensors")
    exported = export(weights, tmp_path / "again.pth", "torchvision")
    assert exported.how == (
        f"torchvision.models.{name}(num_classes=7).load_state_dict(torch.load("
        f"'{tmp_path / 'again.pth'}'))"
    )
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in state.items())
    theirs.load_state_dict(again, strict=True, assign=True)

    pixels = random_pixels(224, 1)
    mean, std = exported.normalize
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        expected = theirs.eval()(torchvision.transforms.functional.normalize(images, mean, std))
    fed = (pixels - np.array(weights.description.mean)) / np.array(weights.description.std)
    ours = logits_of(weights, torch.from_numpy(fed).permute(0, 3, 1, 2).float())
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_the_papers_input_in_torchvisions_terms_is_the_papers_input() -> None:
    description = Description(MODEL, 32, (123.68, 116.779, 103.939))
    exported = Exported(Path("a"), Path("b"), "torchvision", False, description, {}, 0, 1, (), "")
    pixels = torch.from_numpy(random_pixels()).permute(0, 3, 1, 2)
    expected = pixels - torch.tensor(description.mean)[:, None, None]
    normalized = torchvision.transforms.functional.normalize(pixels / 255, *exported.normalize)
    torch.testing.assert_close(normalized, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "crop_size", "reason"),
    [
        ({"configuration": "C"}, 224, "as this C, with convolutions that are not 3x3; it has"),
        ({"configuration": "A-LRN"}, 224, "as this A-LRN, with LRN; it has A, B, D and E"),
        ({"configuration": "D"}, 320, "as this D, with crop size 320; it has A, B, D and E"),
        ({"fc_width": 8}, 224, "as this D, with fc6 and fc7 of 8 units; it has A, B, D and E"),
        (
            {"configuration": (("3-4",),), "fc_width": 8, "batch_norm": True},
            32,
            "as this custom-BN, with crop size 32 and 4 channels before fc6 and fc6 and fc7 of 8 ",
        ),
    ],
)
def test_networks_that_torchvision_has_not_are_refused(
    changes: dict[str, object],
    crop_size: int,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = ModelConfig.model_validate(changes)
    weights = Weights(Path("w"), Description(model, crop_size, (0.0, 0.0, 0.0)), {}, "")
    monkeypatch.setattr(exporting, "build_network", lambda weights: torch.nn.Identity())
    with pytest.raises(ConfigError) as refused:
        export(weights, tmp_path / "n.pth", "torchvision")
    assert f"torchvision has no such network {reason}" in str(refused.value)
    assert str(refused.value).endswith("Export it as torch-export, onnx or safetensors.")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["safetensors", "torchvision"])
def test_weights_alone_have_no_dense_form(form: str, weights: Weights, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        export(weights, tmp_path / "n", form, dense=True)
    assert str(refused.value) == (
        f"--dense is for onnx and torch-export; {form} holds weights alone, which are the same for "
        "whole images."
    )


def test_an_export_that_computes_something_else_is_refused_and_the_old_file_stays(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "n.onnx"
    out.write_bytes(b"old")

    def wrong(original: torch.nn.Module, *others: Any) -> object:
        others[-1].write_bytes(b"new")
        return lambda images: original(images) * 1.001

    monkeypatch.setattr(exporting, "write_onnx", wrong)
    with pytest.raises(WeightsError, match=r"n\.onnx is not written: its logits differ from the "):
        export(weights, out, "onnx")
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    weights = make_weights(tmp_path / "n.safetensors")
    weights.tensors["fc8.linear.bias"][2] = float("nan")
    with pytest.raises(WeightsError, match=r"differ from the network's by up to nan.*not finite"):
        export(weights, tmp_path / "out.safetensors", "safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_part_of_a_network_is_refused(weights: Weights, tmp_path: Path) -> None:
    tensors = {name: t for name, t in weights.tensors.items() if not name.startswith("fc8")}
    part = Weights(weights.path, weights.description, tensors, "")
    with pytest.raises(WeightsError, match="fc8: the network has weight 5x12, bias 5, the file no"):
        export(part, tmp_path / "n.onnx", "onnx")


def test_what_cannot_be_written_is_said(weights: Weights, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for form, name in (("safetensors", "out.safetensors"), ("torch-export", "out.pt2")):
        with pytest.raises(WeightsError, match=r"file/out.* cannot be written: "):
            export(weights, tmp_path / "file" / name, form)
        with pytest.raises(ConfigError, match=f"out.bin does not end in .*; name it .*{name}"):
            export(weights, tmp_path / "out.bin", form)


def test_a_disk_that_is_too_full_is_noticed_before(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    with pytest.raises(WeightsError) as refused:
        export(weights, tmp_path / "n.pt2", "torch-export")
    assert str(refused.value) == (
        f"{tmp_path / 'n.pt2'} cannot be written: 1 MiB are free in {tmp_path}, and it takes some "
        "8 MiB."
    )
    assert list(tmp_path.iterdir()) == []


def test_networks_that_an_onnx_file_cannot_hold_are_refused(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_LARGEST_ONNX", 1000)
    with pytest.raises(ConfigError, match=r"0\.0 GiB of weights, and an \.onnx file ends at 2 GiB"):
        export(weights, tmp_path / "n.onnx", "onnx")


def test_an_export_is_told_in_lines_and_in_json(weights: Weights, tmp_path: Path) -> None:
    exported = export(weights, tmp_path / "n.safetensors", "safetensors")
    told = json.loads(json.dumps(exported.to_dict()))
    assert told["largest_difference"] == 0
    assert told["shapes"] == [[1, 3, 32, 32], [3, 3, 32, 32]]
    assert told["normalize"]["mean"] == pytest.approx([123 / 255, 117 / 255, 104 / 255])
    lines = render_exported(exported).splitlines()
    assert lines[0] == f"{weights.path}: configuration custom-BN as safetensors"
    assert lines[1].startswith("largest difference of logits 0 (largest logit ")
    assert lines[1].endswith("; random images 1x3x32x32, 3x3x32x32)")
    assert lines[2] == (
        "input: images (n, 3, 32, 32); RGB, grey levels 0 to 255 less [123, 117, 104], divided by "
        "[58, 57, 56]"
    )
    assert lines[3] == (
        "made of an image by: orientation apply, shorter side 40, filter bilinear, antialias "
        "true, crop center, crop size 32"
    )
    assert lines[4] == (
        "in torchvision's terms: Resize(40), CenterCrop(32), ToTensor(), Normalize(mean=[0.482353, "
        "0.458824, 0.407843], std=[0.227451, 0.223529, 0.219608])"
    )
    assert lines[5] == (
        "output: logits of 5 classes, 'a', 'b', 'c', 'd', 'e'; their soft-max gives the posteriors"
    )
    assert lines[6] == "all this is in the file's metadata vggdist, in JSON (docs/conversion.md)"
    assert lines[8] == f"written to {tmp_path / 'n.safetensors'}"
    assert str(os.getpid()) not in lines[7]


def prepare(file: Path, preprocessing: dict[str, Any]) -> Tensor:
    """An image as docs/conversion.md says it, by Pillow."""
    assert (preprocessing["filter"], preprocessing["antialias"]) == ("bilinear", True)
    assert (preprocessing["crop"], preprocessing["channels"]) == ("center", "RGB")
    size = preprocessing["crop_size"]
    with Image.open(file) as image:
        turned = (
            ImageOps.exif_transpose(image) if preprocessing["orientation"] == "apply" else image
        )
        picture = turned.convert("RGB")
    side = round(size * min(picture.size) / preprocessing["shorter_side"])
    left, top = ((length - side) // 2 for length in picture.size)
    crop = picture.crop((left, top, left + side, top + side))
    pixels = np.asarray(crop.resize((size, size), Image.Resampling.BILINEAR), dtype=np.float32)
    fed = (pixels - np.array(preprocessing["mean"])) / np.array(preprocessing["std"])
    return torch.from_numpy(fed).permute(2, 0, 1)[None].float()


def test_what_a_file_stores_is_enough_to_predict_as_vggdist_does(
    weights: Weights, tmp_path: Path, make_image: MakeImage
) -> None:
    files = [make_image(tmp_path / f"{n}.png", 60 + 20 * n, 90, seed=n) for n in range(2)]
    expected = predict(weights, files, device="cpu", precision="fp32")
    onnx, program, plain = (tmp_path / f"n{end}" for end in (".onnx", ".pt2", ".safetensors"))
    export(weights, onnx, "onnx")
    export(weights, program, "torch-export")
    export(weights, plain, "safetensors")
    carried = {"vggdist": ""}
    torch.export.load(program, extra_files=carried)
    with safe_open(plain, framework="pt") as opened:
        in_safetensors = opened.metadata()["vggdist"]
    metadata = {entry.key: entry.value for entry in load_onnx(onnx).metadata_props}
    assert metadata["vggdist"] == carried["vggdist"] == in_safetensors

    preprocessing = json.loads(metadata["vggdist"])["preprocessing"]
    assert (preprocessing["output"], preprocessing["posteriors"]) == ("logits", "softmax")
    for file, prediction in zip(files, expected, strict=True):
        images = prepare(file, preprocessing)
        for logits in (run_onnx(onnx, images), run_exported_program(program, images)):
            confidences = dict(
                zip(preprocessing["classes"], logits.softmax(dim=1)[0].tolist(), strict=True)
            )
            assert confidences == pytest.approx(
                {choice.name: choice.confidence for choice in prediction.choices}, abs=1e-5
            )


def test_a_dense_network_is_fed_whole_images_and_an_unnamed_one_knows_imagenet_s_classes(
    tmp_path: Path,
) -> None:
    model = MODEL.model_copy(update={"num_classes": 1000})
    weights = make_weights(tmp_path / "network.safetensors", model)
    unnamed = replace(weights, description=replace(weights.description, classes=()))
    told = export(unnamed, tmp_path / "n.onnx", "onnx", dense=True).to_dict()["preprocessing"]
    assert (told["shorter_side"], told["crop"], told["crop_size"]) == (40, None, None)
    assert told["classes"][:2] == ("tench", "goldfish")
