"""What an import makes of a file, and what it says of one that is not what was meant."""

import os
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from tests.convert.third_party_networks import (
    CLASSES,
    TINY,
    TinyVGG,
    caffe_arrays,
    our_logits,
    random_pixels,
    torchvision_network,
)
from vggdist.artifacts import checkpoint
from vggdist.artifacts.formats import find_format
from vggdist.artifacts.weights import load_weights
from vggdist.config_file import load_config
from vggdist.convert.importing import Imported, import_weights, read_classes, render_imported
from vggdist.errors import ConfigError, WeightsError
from vggdist.model.initialization import build_initialized, copy_trained
from vggdist.model.loading import build_network


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
    whole = "is empty: " if share == 0 else "cannot be read: it is cut off or damaged ("
    assert message.startswith(f"{file} {whole}")
    assert message.endswith("Fetch it again.")
    assert "weights_only" not in message


def test_a_damaged_array_is_refused(caffe: Path) -> None:
    encoded = bytearray(caffe.read_bytes())
    encoded[len(encoded) // 2] ^= 0xFF  # the archive has checksums
    caffe.write_bytes(encoded)
    assert "it is cut off or damaged" in refusal(caffe)


OTHERS = {
    "nothing.pth": (None, "does not exist; give a file with weights."),
    "words.pth": (
        b"hello world",
        "is no file of weights that is known here: it begins with b'hello w",
    ),
    "empty.npz": (b"", "is empty: it was not copied or fetched whole. Fetch it again."),
    "pointer.safetensors": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 553433881\n",
        "is a pointer of Git LFS, which stands for the file itself. Fetch that with `git lfs pull`",
    ),
    "page.pth": (b"\n<!DOCTYPE html>\n<html><head><title>Log in</title>", "is a web page: the "),
    "denied.safetensors": (
        b"\xef\xbb\xbf<?xml version='1.0'?><Error>",
        "is a web page: the server",
    ),
    "vgg.caffemodel": (b"1234", "is a model of Caffe. Load it in Caffe, and save its arrays by "),
    "caffe.bin": (b"\n\x13VGG_ILSVRC_16_layers\x12", "is a model of Caffe. Load it in Caffe, and "),
    "vgg.h5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "is an HDF5 file, as Keras writes them. Open it"),
    "vgg.onnx": (b"\x08\n\x12\x07pytorch\x1a\x0c2.14.1", "is an ONNX graph, which holds what is"),
    "vgg.pth.tar": (bytes(257) + b"ustar\x0000", "is an archive or a compressed file. Unpack it"),
    "vgg.pth.gz": (b"\x1f\x8b\x08\x00", "is an archive or a compressed file. Unpack it"),
    "model.safetensors.index.json": (b'{"weight_map": {}}', "is text in JSON, such as the index"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_weights_file_is_named_for_what_it_is(name: str, tmp_path: Path) -> None:
    content, message = OTHERS[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert refusal(tmp_path / name).startswith(f"{tmp_path / name} {message}")
    with pytest.raises(WeightsError) as refused:
        load_weights(tmp_path / name)
    assert str(refused.value).startswith(f"{tmp_path / name} {message}")


def test_programs_and_archives_are_named_for_what_they_are(tmp_path: Path) -> None:
    network, images = torch.nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(network, images), tmp_path / "trace.pt")
    graph = onnx.helper.make_graph([], "vgg", [], [])
    onnx.save(onnx.helper.make_model(graph, producer_name="a"), tmp_path / "graph.pth")
    onnx.save(onnx.helper.make_model(graph), tmp_path / "nameless.pth")
    torch.save(network.state_dict(), tmp_path / "tensors.pth")
    with zipfile.ZipFile(tmp_path / "packed.pth", "w") as archive:
        archive.write(tmp_path / "tensors.pth")
    with zipfile.ZipFile(tmp_path / "vgg.keras", "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", b"\x89HDF")
    with (tmp_path / "one.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    for name, what in {
        "trace.pt": "a TorchScript archive, which holds a program",
        "graph.pth": "an ONNX graph",
        "nameless.pth": "an ONNX graph",
        "packed.pth": "a zip archive. Unpack it",
        "vgg.keras": "a model of Keras",
        "one.npz": "a single array of NumPy, without a name",
        "": "a folder; give a file. Run folders and checkpoints of vggdist are taken",
    }.items():
        assert refusal(tmp_path / name).startswith(f"{tmp_path / name} is {what}")


def test_the_advice_about_programs_gives_files_that_can_be_imported(tmp_path: Path) -> None:
    network = TinyVGG().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(network), tmp_path / "script.pth")
    exported = torch.export.export(network, (torch.zeros(2, 3, 32, 32),))
    torch.export.save(exported, tmp_path / "program.pt")
    for name in ("script.pth", "program.pt"):
        (command,) = re.findall(r"torch\.save\(.*\)", refusal(tmp_path / name))
        eval(command, {"torch": torch, "FILE": tmp_path / name, "NEW": tmp_path / "new.pth"})
        weights = load_weights(run(tmp_path / "new.pth").out)
        assert torch.equal(weights.tensors["fc7.linear.weight"], network.classifier[3].weight)
        weights.path.unlink()


@pytest.mark.parametrize(
    "first", [b"{", b"[", b"\x80", b"PK", b"\x08\x0a\x12", b"\x1f\x8b", b"\n\x08"]
)
def test_safetensors_are_recognized_however_long_their_header_is(
    first: bytes, tmp_path: Path
) -> None:
    """Its length is what they begin with."""
    file = tmp_path / "weights.safetensors"
    save_file(tensors_of_caffe(), file)
    encoded = file.read_bytes()
    length = int.from_bytes(encoded[:8], "little")
    wanted = int.from_bytes(first, "little")
    while wanted < length:
        wanted += 256 ** len(first)
    header = encoded[8 : 8 + length].ljust(wanted)
    file.write_bytes(wanted.to_bytes(8, "little") + header + encoded[8 + length :])
    assert find_format(file) == "safetensors"
    assert run(file).layout == "caffe"


def test_momentum_is_not_taken_for_weights(tmp_path: Path) -> None:
    arrays = {name: torch.from_numpy(array) for name, array in caffe_arrays().items()}
    checkpoint.save(tmp_path, checkpoint.Checkpoint(1, arrays, arrays, {}), keep=2)
    momentum = tmp_path / "step-00000001" / checkpoint.MOMENTUM
    momentum.rename(tmp_path / "renamed.safetensors")
    save_file(arrays, tmp_path / checkpoint.MOMENTUM)  # as earlier versions wrote it
    for name in ("renamed.safetensors", checkpoint.MOMENTUM):
        message = f"{tmp_path / name} is the momentum of a training, which looks like weights"
        assert refusal(tmp_path / name).startswith(message)
        with pytest.raises(WeightsError, match="is the momentum of a training"):
            load_weights(tmp_path / name)


def tensors_of_caffe() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in caffe_arrays().items()}


def tiny_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return TinyVGG().state_dict()


def as_people_have_them() -> dict[str, Any]:
    """File name -> what torch.save put there, around the tensors of a network."""
    vgg = tiny_state()
    sides = {
        "epoch": 3,
        "acc": 71.5,
        "best_acc1": torch.tensor(71.5),
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2, 2, 3, 3)}}},
        "scheduler": {"gamma": 0.1},
    }
    files: dict[str, Any] = {
        # The common example saves data parallel VGGs so: only `features` is wrapped.
        "model_best.pth.tar": {
            "arch": "vgg",
            "state_dict": {
                name.replace("features.", "features.module."): tensor
                for name, tensor in vgg.items()
            },
            **sides,
        },
        "VGG.PTH": vgg,
        "vgg": vgg,
        "lightning.ckpt": {
            "state_dict": {
                **{f"model.net.{name}": tensor for name, tensor in vgg.items()},
                "criterion.weight": torch.ones(5),
                "train_accuracy.total": torch.tensor(9),
            },
            "pytorch-lightning_version": "2.5",
            "optimizer_states": [{"state": {0: {"momentum_buffer": torch.zeros(2, 2, 3, 3)}}}],
            "callbacks": {},
        },
        "thop.pth": {
            **vgg,
            "total_ops": torch.zeros(1),
            "features.0.total_ops": torch.zeros(1),
            "classifier.0.total_params": torch.zeros(1),
        },
        "compiled.pth": {f"_orig_mod.module.{name}": tensor for name, tensor in vgg.items()},
    }
    for outer in ("net", "model", "model_state", "weights", "ema", "state_dict_ema", "state_dict"):
        files[f"{outer}.pth"] = {outer: vgg, **sides}
    return files


@pytest.mark.parametrize("name", as_people_have_them())
def test_weights_as_people_have_them_come_in(name: str, tmp_path: Path) -> None:
    torch.save(tiny_state(), tmp_path / "plain.pth")
    expected = load_weights(run(tmp_path / "plain.pth").out).tensors
    torch.save(as_people_have_them()[name], tmp_path / name)
    imported = run(tmp_path / name)
    tensors = load_weights(imported.out).tensors
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())
    left_out = {
        "lightning.ckpt": ("state_dict.criterion.weight", "state_dict.train_accuracy.total"),
        "thop.pth": ("total_ops", "features.0.total_ops", "classifier.0.total_params"),
    }
    if name in left_out:
        assert imported.left_out == left_out[name]
        assert f"left out: {', '.join(left_out[name])}\n" in render_imported(imported)
    assert set(imported.left_out) <= {"best_acc1", *left_out.get(name, ())}
    assert imported.to_dict()["left_out"] == list(imported.left_out)


def test_of_several_networks_one_is_named(tmp_path: Path) -> None:
    first, second = tensors_of_caffe(), {n: t + 1 for n, t in tensors_of_caffe().items()}
    file = tmp_path / "several.pth"
    torch.save({"model": first, "ema": {"shadow copy": second}, "epoch": 3}, file)
    message = refusal(file)
    assert message == (
        f"{file} holds several networks: model, 'ema.shadow copy'. Name one of them with --key."
    )
    for key, tensors in (("model", first), ("ema", second), ("ema.shadow copy", second)):
        run(file, key=key)
        taken = load_weights(tmp_path / "out.safetensors").tensors["fc7.linear.weight"]
        assert torch.equal(taken, tensors["fc7_W"])
        (tmp_path / "out.safetensors").unlink()
    assert refusal(file, key="net").endswith("several networks: model, 'ema.shadow copy'. Name one "
                                             "of them with --key.")  # fmt: skip
    torch.save({"model": first}, file)
    assert refusal(file, key="net") == (
        f"{file} holds no network at --key net; it has model. Leave out --key, or name that."
    )
    run(file, ignore=["ema.*"])


def test_a_tensor_with_and_without_a_wrapper_is_not_chosen_for_anybody(tmp_path: Path) -> None:
    wrapped = {f"module.{name}": tensor + 1 for name, tensor in tensors_of_caffe().items()}
    torch.save({**tensors_of_caffe(), **wrapped}, tmp_path / "both.pth")
    assert " holds conv1_1_W twice, with module or _orig_mod before it or in it and without. " in (
        refusal(tmp_path / "both.pth")
    )


def test_auxiliary_heads_are_left_out_as_the_advice_says(tmp_path: Path) -> None:
    extra = {
        "aux.0.weight": torch.zeros(2, 5),
        "aux.0.bias": torch.zeros(2),
        "extra head": torch.zeros(1),
    }
    torch.save({**tensors_of_caffe(), **extra}, tmp_path / "aux.pth")
    message = refusal(tmp_path / "aux.pth")
    advice = "What belongs to no layer is left out with --ignore 'aux.*' --ignore 'extra head'."
    assert f"this network. {advice}\nWhat differs:\n" in message
    imported = run(tmp_path / "aux.pth", ignore=["aux.*", "extra head"])
    assert imported.left_out == tuple(extra)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.zeros(3)])
def test_a_file_without_named_tensors_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    assert refusal(tmp_path / "x.pth").endswith(
        "holds no tensors with names, so there are no weights in it."
    )


def test_weights_of_another_configuration_are_refused_with_the_layers_and_the_right_one(
    tmp_path: Path,
) -> None:
    file = tmp_path / "vgg.pth"
    torch.save(torchvision_network("B").state_dict(), file)
    for batch_norm in ((), ("model.batch_norm=false",)):
        message = refusal(file, "model.configuration=A", *batch_norm)
        assert message == (
            f"{file} does not hold the layers of this network. Its convolutions are those of B: "
            "--configuration B.\nWhat differs:\n"
            "  - conv1_2: the network has no such layer, the file weight 64x64x3x3, bias 64\n"
            "  - conv2_2: the network has no such layer, the file weight 128x128x3x3, bias 128"
        )
    message = refusal(file, "model.configuration=D")
    assert "  - conv3_3: the network has weight 256x256x3x3, bias 256, the file no such" in message
    assert "this network. Its convolutions are those of B: --configuration B.\n" in message


def test_a_configuration_that_only_lrn_tells_apart_is_named_with_its_sister(tmp_path: Path) -> None:
    torch.save(torchvision_network("A").state_dict(), tmp_path / "vgg.pth")
    message = refusal(tmp_path / "vgg.pth", "model.configuration=E")
    assert "Its convolutions are those of A and A-LRN: --configuration A.\n" in message


def test_what_settings_say_must_be_what_the_file_has(caffe: Path) -> None:
    message = refusal(caffe, "model.num_classes=7")
    assert "this network. Set model.num_classes=5, or leave it out.\n" in message
    assert "  - fc8: the network has weight 7x12, bias 7, the file weight 5x12, bias 5" in message
    message = refusal(caffe, "model.fc_width=7")
    assert "this network. Set model.fc_width=12, or leave it out.\n" in message
    message = refusal(caffe, crop_size=64)
    assert "this network. Set --crop-size 32, or leave it out.\n" in message
    assert "  - fc6: the network has weight 12x1280, bias 12, the file weight 12x320" in message
    message = refusal(caffe, "model.batch_norm=true")
    assert "this network. Set model.batch_norm=false, or leave it out.\n" in message
    assert "  - norm1_1: the network has weight 4, running_var 4" in message


def test_another_layout_than_the_files_is_refused(caffe: Path) -> None:
    message = refusal(caffe, layout="torchvision")
    assert message == (
        f"{caffe} has no tensor that is named as in its layout; its first are conv1_1_W, "
        "conv1_1_b, conv2_1_W, conv2_1_b, conv2_2_W and 7 more. Name another --layout, or none."
    )
    assert "trained with, and their layout with --layout.\n" in refusal(caffe, layout="keras")
    assert "conv1_1: the network has weight 4x3x3x3, bias 4, the file weight" in refusal(
        caffe, layout="keras"
    )


def test_missing_layers_are_an_error_unless_they_may_be_missing(tmp_path: Path) -> None:
    convolutions = {n: a for n, a in caffe_arrays().items() if n.startswith("conv")}
    file = tmp_path / "notop.npz"
    np.savez(file, **convolutions)
    message = refusal(file)
    for layer in ("fc6", "fc7", "fc8"):
        assert f"  - {layer}: the network has weight " in message
    assert "this network. If layers are meant to be missing, add --partial.\n" in message

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
    assert "conv2_1: the network has weight 6x4x3x3, bias 6, the file weight 6x4x3x3" in message


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
