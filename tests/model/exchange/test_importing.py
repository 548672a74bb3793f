"""What an import makes of a file, and what it says of one that is not what was meant."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.model.exchange.foreign_networks import (
    CLASSES,
    TINY,
    caffe_arrays,
    our_logits,
    random_pixels,
    torchvision_network,
)
from vggdist.config_file import load_config
from vggdist.errors import ConfigError, WeightsError
from vggdist.model.exchange.importing import Imported, import_weights, read_classes, render_imported
from vggdist.model.initialization import build_initialized, copy_trained
from vggdist.model.weights import build_network, load_weights


class Payload:
    """Whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def run(file: Path, *overrides: str, **options: object) -> Imported:
    config = load_config(None, [f"model.configuration={TINY}", *overrides])
    return import_weights(file, file.parent / "out.safetensors", config, **options)


def refusal(file: Path, *overrides: str, **options: object) -> str:
    """What is said; and nothing is written."""
    with pytest.raises(WeightsError) as refused:
        run(file, *overrides, **options)
    assert not (file.parent / "out.safetensors").exists()
    return str(refused.value)


@pytest.fixture
def caffe(tmp_path: Path) -> Path:
    np.savez(tmp_path / "caffe.npz", **caffe_arrays())
    return tmp_path / "caffe.npz"


def test_pickles_with_code_are_refused_and_never_run(tmp_path: Path) -> None:
    sentinel = tmp_path / "ran"
    payload = Payload(sentinel)
    pickle.loads(pickle.dumps(payload))
    assert sentinel.exists(), "the payload is none"
    sentinel.unlink()
    state = {"state_dict": torchvision_network("A").state_dict(), "extra": payload}
    torch.save(state, tmp_path / "zipped.pth")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("plain.pth", "plain.bin", "plain.npz"):
        (tmp_path / name).write_bytes(pickle.dumps(payload))
    np.savez(tmp_path / "arrays.npz", conv1_1_W=np.array([payload], dtype=object))
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    files = ["zipped.pth", "old.pt", "plain.pth", "plain.bin", "plain.npz", "arrays.npz"]
    for name in [*files, "module.pth"]:
        message = refusal(tmp_path / name)
        assert message.startswith(f"{tmp_path / name} holds Python objects"), message
        assert "could run any code, so they stay in the file" in message
        assert message.endswith("or torch.save(model.state_dict(), FILE).")
    assert not sentinel.exists()
    assert "(posix.system)" in refusal(tmp_path / "zipped.pth")
    assert "(torch.nn.modules.linear.Linear)" in refusal(tmp_path / "module.pth")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz"])
def test_truncated_files_are_refused(suffix: str, share: float, tmp_path: Path) -> None:
    file = tmp_path / f"vgg{suffix}"
    tensors = {name: torch.from_numpy(array) for name, array in caffe_arrays().items()}
    match suffix:
        case ".pth":
            torch.save(tensors, file)
        case ".safetensors":
            save_file(tensors, file)
        case ".npz":
            np.savez(file, **caffe_arrays())
    run(file)
    (tmp_path / "out.safetensors").unlink()
    encoded = file.read_bytes()
    file.write_bytes(encoded[: int(share * len(encoded))])
    message = refusal(file)
    assert message.startswith(f"{file} cannot be read: it is cut off or damaged, or not what ")
    assert message.endswith("Fetch it again.")
    assert "weights_only" not in message


def test_a_damaged_array_is_refused(caffe: Path) -> None:
    encoded = bytearray(caffe.read_bytes())
    encoded[len(encoded) // 2] ^= 0xFF  # the archive has checksums
    caffe.write_bytes(encoded)
    assert "it is cut off or damaged" in refusal(caffe)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nothing.pth", None, "nothing.pth is no file; give a .pth, .pt, .safetensors or .npz"),
        ("words.pth", b"hello world", "words.pth cannot be read: it is cut off or damaged"),
        ("vgg.caffemodel", b"1234", "ends in .caffemodel; files that can be read end in .pth, "),
        ("vgg", b"1234", "ends in nothing; files that can be read end in .pth, "),
    ],
)
def test_what_is_no_weights_file_is_refused(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert message in refusal(tmp_path / name)


def test_a_single_array_is_no_archive(tmp_path: Path) -> None:
    with (tmp_path / "one.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    assert "it is cut off or damaged, or not what .npz says" in refusal(tmp_path / "one.npz")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.zeros(3)])
def test_a_file_without_named_tensors_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    assert refusal(tmp_path / "x.pth").endswith(
        "holds no tensors with names, so there are no weights in it."
    )


@pytest.mark.parametrize("outer", ["state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model."])
def test_weights_within_a_trainings_file_are_found(outer: str, prefix: str, tmp_path: Path) -> None:
    arrays = {prefix + name: torch.from_numpy(array) for name, array in caffe_arrays().items()}
    torch.save({outer: arrays, "epoch": 3, "lr": [0.1]}, tmp_path / "checkpoint.pt")
    np.savez(tmp_path / "plain.npz", **caffe_arrays())
    run(tmp_path / "plain.npz")
    expected = our_logits(tmp_path / "out.safetensors", random_pixels())
    run(tmp_path / "checkpoint.pt")
    assert torch.equal(our_logits(tmp_path / "out.safetensors", random_pixels()), expected)


def test_weights_of_another_configuration_are_refused_with_the_layers_and_the_right_one(
    tmp_path: Path,
) -> None:
    file = tmp_path / "vgg.pth"
    torch.save(torchvision_network("B").state_dict(), file)
    for batch_norm in ((), ("model.batch_norm=false",)):
        message = refusal(file, "model.configuration=A", *batch_norm)
        assert message == (
            f"{file} does not hold the layers of this network. They differ in:\n"
            "  - conv1_2: the network has no such layer, the file weight 64x64x3x3, bias 64\n"
            "  - conv2_2: the network has no such layer, the file weight 128x128x3x3, bias 128\n"
            "Its convolutions are those of B: --configuration B."
        )
    message = refusal(file, "model.configuration=D")
    assert "  - conv3_3: the network has weight 256x256x3x3, bias 256, the file no such" in message
    assert message.endswith("Its convolutions are those of B: --configuration B.")


def test_a_configuration_that_only_lrn_tells_apart_is_named_with_its_sister(tmp_path: Path) -> None:
    torch.save(torchvision_network("A").state_dict(), tmp_path / "vgg.pth")
    message = refusal(tmp_path / "vgg.pth", "model.configuration=E")
    assert message.endswith("Its convolutions are those of A and A-LRN: --configuration A.")


def test_what_settings_say_must_be_what_the_file_has(caffe: Path) -> None:
    message = refusal(caffe, "model.num_classes=7")
    assert "  - fc8: the network has weight 7x12, bias 7, the file weight 5x12, bias 5\n" in message
    message = refusal(caffe, crop_size=64)
    assert "  - fc6: the network has weight 12x1280, bias 12, the file weight 12x320" in message
    assert message.endswith(
        "Name the configuration that they were trained with, and their layout with --layout."
    )
    message = refusal(caffe, "model.batch_norm=true")
    assert "  - norm1_1: the network has weight 4, running_var 4" in message


def test_another_layout_than_the_files_is_refused(caffe: Path) -> None:
    message = refusal(caffe, layout="torchvision")
    assert message == (
        f"{caffe} has no tensor that is named as in its layout; its first are conv1_1_W, "
        "conv1_1_b, conv2_1_W, conv2_1_b, conv2_2_W. Name another --layout, or none."
    )
    assert "conv1_1: the network has weight 4x3x3x3, bias 4, the file weight" in refusal(
        caffe, layout="keras"
    )


def test_tensors_that_belong_nowhere_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "more.npz", **caffe_arrays(), fc9_W=np.zeros((2, 5), dtype=np.float32))
    message = refusal(tmp_path / "more.npz")
    assert "  - fc9_W: the network has no such layer, the file fc9_W 2x5\n" in message


def test_missing_layers_are_an_error_unless_they_may_be_missing(tmp_path: Path) -> None:
    convolutions = {n: a for n, a in caffe_arrays().items() if n.startswith("conv")}
    file = tmp_path / "notop.npz"
    np.savez(file, **convolutions)
    message = refusal(file)
    for layer in ("fc6", "fc7", "fc8"):
        assert f"  - {layer}: the network has weight " in message
    assert message.endswith("If these are meant to be missing, add --partial.")

    imported = run(file, "model.num_classes=9", "model.fc_width=16", partial=True, crop_size=64)
    assert imported.missing == ("fc6", "fc7", "fc8")
    assert imported.to_dict()["missing"] == ["fc6", "fc7", "fc8"]
    assert imported.description.crop_size == 64
    assert imported.description.origin == "notop.npz (caffe layout, without fc6, fc7, fc8)"
    text = render_imported(imported)
    assert "missing: fc6, fc7, fc8\n" in text
    assert f"A training with model.initialize_from={imported.out} draws these at random." in text


def test_a_training_can_begin_from_a_part(tmp_path: Path) -> None:
    kept = {n: a for n, a in caffe_arrays().items() if n.startswith(("conv", "fc6", "fc7"))}
    np.savez(tmp_path / "part.npz", **kept)
    imported = run(tmp_path / "part.npz", "model.num_classes=9", partial=True)
    assert imported.missing == ("fc8",)
    weights = load_weights(imported.out)
    network = build_initialized(weights.description.model, 32, seed=0)
    drawn = network.fc8.linear.weight.clone()
    report = copy_trained(network, weights.tensors)
    assert report.random == ("fc8",)
    assert [own for own, _ in report.copied] == ["conv1_1", "conv2_1", "conv2_2", "fc6", "fc7"]
    assert torch.equal(network.fc6.linear.weight, torch.from_numpy(caffe_arrays()["fc6_W"]))
    assert torch.equal(network.fc8.linear.weight, drawn)
    with pytest.raises(WeightsError, match=r"can only begin a training, as model\.init"):
        build_network(weights)


def test_a_layer_that_is_there_in_part_is_an_error_all_the_same(tmp_path: Path) -> None:
    arrays = caffe_arrays()
    del arrays["conv2_1_b"]
    np.savez(tmp_path / "part.npz", **arrays)
    message = refusal(tmp_path / "part.npz", partial=True)
    assert "conv2_1: the network has weight 6x4x3x3, bias 6, the file weight 6x4x3x3\n" in message


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    arrays = caffe_arrays()
    arrays["fc7_W"][3, 4] = np.nan
    np.savez(tmp_path / "nan.npz", **arrays)
    assert refusal(tmp_path / "nan.npz") == (
        f"fc7 in {tmp_path / 'nan.npz'} has weights that are not finite; the file is damaged, or "
        "its training had failed. Fetch it again."
    )


def test_a_crop_size_that_nothing_here_takes_is_refused(tmp_path: Path) -> None:
    arrays = caffe_arrays()
    arrays["fc6_W"] = np.zeros((12, 5 * 9 * 9), dtype=np.float32)
    np.savez(tmp_path / "odd.npz", **arrays)
    with pytest.raises(ConfigError, match="the crop size is 36, which is no multiple of 32"):
        run(tmp_path / "odd.npz")


def test_settings_say_what_the_file_cannot(caffe: Path) -> None:
    imported = run(
        caffe,
        "data.mean=[1,2,3]",
        "data.std=[4,5,6]",
        "data.crop_size=32",
        "data.train_scale_min=64",
        "data.train_scale_max=128",
        "model.dropout=0.2",
        classes=("a", "b", "c", "d", "e"),
    )
    description = load_weights(imported.out).description
    assert description == imported.description
    assert (description.mean, description.std) == ((1, 2, 3), (4, 5, 6))
    assert description.train_scale == (64, 128)
    assert description.model.dropout == 0.2
    assert description.classes == ("a", "b", "c", "d", "e")


def test_input_and_origin_are_recorded_and_told(caffe: Path) -> None:
    text = render_imported(run(caffe, scaling="torchvision"))
    assert text.splitlines() == [
        f"{caffe}: caffe layout, configuration custom, 4,442 parameters",
        "classes 5, width of fc6 and fc7 12, crop size 32",
        "input: RGB, grey levels 0 to 255 less [123.675, 116.28, 103.53], divided by [58.395, "
        "57.12, 57.375]",
        f"written to {caffe.parent / 'out.safetensors'}",
    ]
    imported = run(caffe)
    assert "input: RGB, grey levels 0 to 255 less [123.68, 116.779, 103.939]\n" in render_imported(
        imported
    )
    assert imported.description.train_scale is None
    assert imported.description.classes == ()
    assert imported.description.origin == "caffe.npz (caffe layout)"


def test_a_weights_file_of_ours_comes_in_as_it_is(caffe: Path) -> None:
    first = run(caffe, "data.mean=[1,2,3]", classes=tuple("abcde"))
    again = import_weights(
        first.out,
        caffe.parent / "again.safetensors",
        load_config(None, [f"model.configuration={TINY}"]),
    )
    assert again.layout == "vggdist"
    assert again.description.mean == (1, 2, 3)
    assert again.description.classes == tuple("abcde")
    pixels = random_pixels()
    assert torch.equal(our_logits(again.out, pixels), our_logits(first.out, pixels))


def test_tensors_of_ours_without_a_description_get_one(caffe: Path) -> None:
    weights = load_weights(run(caffe).out)
    save_file(dict(weights.tensors), caffe.parent / "bare.safetensors")
    imported = run(caffe.parent / "bare.safetensors")
    assert imported.layout == "vggdist"
    tensors = load_weights(imported.out).tensors
    assert all(torch.equal(tensors[name], tensor) for name, tensor in weights.tensors.items())


def test_the_count_of_class_names_must_be_the_networks(caffe: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        run(caffe, classes=("a", "b"))
    assert str(refused.value) == (
        "--classes has 2 names, but the network tells 5 classes apart; write one name for each, in "
        "the order of labels."
    )


def test_class_names_are_lines_of_text(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("great white shark\n  žirafa \ncrane\n\n", encoding="utf-8")
    assert read_classes(file) == ("great white shark", "žirafa", "crane")
    file.write_text("a\n\nb\n")
    with pytest.raises(ConfigError, match=r"classes\.txt: line 2 is empty; write a name in each"):
        read_classes(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"--classes .*classes\.txt cannot be read"):
        read_classes(file)
    with pytest.raises(ConfigError, match=r"--classes .*nothing\.txt cannot be read"):
        read_classes(tmp_path / "nothing.txt")


def test_an_import_is_told_in_words_that_json_knows(caffe: Path) -> None:
    import json

    told = json.loads(json.dumps(run(caffe).to_dict()))
    assert told["layout"] == "caffe"
    assert told["num_parameters"] == sum(array.size for array in caffe_arrays().values())
    assert told["model"]["num_classes"] == CLASSES
    assert told["mean"] == [123.68, 116.779, 103.939]
