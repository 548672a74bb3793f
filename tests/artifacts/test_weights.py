"""A weights file says of itself what it is; whatever is wrong with one ends in a sentence."""

import json
import os
import re
import shlex
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vggdist.artifacts.weights import (
    Description,
    _parse,
    load_weights,
    read_description,
    save_weights,
)
from vggdist.cli import parse
from vggdist.config import ModelConfig
from vggdist.errors import WeightsError
from vggdist.model.initialization import build_initialized
from vggdist.model.loading import build_network
from vggdist.model.vgg import VGG

MODEL = ModelConfig(
    configuration=(("3-4",), ("3-6", "LRN")), batch_norm=True, num_classes=3, fc_width=8
)
DESCRIPTION = Description(
    MODEL,
    32,
    (120.5, 115.25, 100.0),
    (58.0, 57.0, 56.0),
    (36, 48),
    ("cat", "dog", "žirafa"),
    "somewhere",
)


@pytest.fixture
def network() -> VGG:
    return build_initialized(MODEL, 32, seed=1).eval()


@pytest.fixture
def file(network: VGG, tmp_path: Path) -> Path:
    path = tmp_path / "deep" / "network.safetensors"
    save_weights(path, network.state_dict(), DESCRIPTION)
    return path


def test_what_is_saved_comes_back(file: Path, network: VGG) -> None:
    weights = load_weights(file)
    assert weights.description == DESCRIPTION == read_description(file)
    assert weights.tensors.keys() == network.state_dict().keys()
    images = torch.randn(2, 3, 32, 32)
    rebuilt = build_network(weights)
    assert not rebuilt.training
    with torch.inference_mode():
        assert torch.equal(rebuilt(images), network(images))


@pytest.mark.parametrize("length", range(8))
def test_tensors_begin_where_results_do_not_depend_on_the_file(
    network: VGG, tmp_path: Path, length: int
) -> None:
    # In the file they begin behind a header of any length.
    description = Description(MODEL, 32, (0.0,) * 3, origin="x" * length)
    save_weights(tmp_path / "weights.safetensors", network.state_dict(), description)
    tensors = load_weights(tmp_path / "weights.safetensors").tensors.values()
    assert {tensor.data_ptr() % 64 for tensor in tensors} == {0}


def test_the_digest_is_the_files(file: Path, network: VGG, tmp_path: Path) -> None:
    first = load_weights(file).sha256
    os.link(file, tmp_path / "link.safetensors")
    assert load_weights(tmp_path / "link.safetensors").sha256 == first
    save_weights(
        tmp_path / "other.safetensors", network.state_dict(), Description(MODEL, 32, (0.0,) * 3)
    )
    assert load_weights(tmp_path / "other.safetensors").sha256 != first


def test_tensors_that_are_not_contiguous_are_saved(file: Path, network: VGG) -> None:
    tensors = dict(network.state_dict())
    matrix = tensors["fc7.linear.weight"]
    tensors["fc7.linear.weight"] = matrix.T.contiguous().T
    assert not tensors["fc7.linear.weight"].is_contiguous()
    save_weights(file, tensors, DESCRIPTION)
    assert torch.equal(load_file(file)["fc7.linear.weight"], matrix)


def test_others_may_read_a_weights_file_as_far_as_the_umask_lets_them(
    network: VGG, tmp_path: Path
) -> None:
    before = os.umask(0o027)
    try:
        save_weights(tmp_path / "f.safetensors", network.state_dict(), DESCRIPTION)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f.safetensors").stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("configuration", "batch_norm", "name"),
    [
        ("D", False, "D"),
        ("A-LRN", False, "A-LRN"),
        ("E", True, "E-BN"),
        ((("3-4",),), False, "custom"),
    ],
)
def test_a_network_is_called_by_its_column(
    configuration: str | tuple[tuple[str, ...], ...], batch_norm: bool, name: str
) -> None:
    model = ModelConfig(configuration=configuration, batch_norm=batch_norm)
    assert Description(model, 224, (0.0, 0.0, 0.0)).name == name


def test_weights_of_another_network_are_refused_with_the_differing_layers(file: Path) -> None:
    other = ModelConfig(
        configuration=(("3-4", "3-4"), ("3-6",)), batch_norm=True, num_classes=5, fc_width=8
    )
    with pytest.raises(WeightsError) as refused:
        build_network(load_weights(file), other)
    assert str(refused.value) == (
        f"{file} holds the weights of another network. These layers differ:\n"
        "  - conv1_2: the network has weight 4x4x3x3, bias 4, the file no such layer\n"
        "  - fc8: the network has weight 5x8, bias 5, the file weight 3x8, bias 3\n"
        "  - norm1_2: the network has weight 4, running_var 4, running_mean 4, bias 4, the file no "
        "such layer\n"
        "Name the configuration, batch normalization, number of classes and crop size that they "
        "were trained with."
    )
    assert refused.value.exit_code == 5


def test_a_part_of_a_network_is_refused_with_what_it_is_good_for(
    network: VGG, tmp_path: Path
) -> None:
    tensors = {name: t for name, t in network.state_dict().items() if not name.startswith("fc8")}
    save_weights(tmp_path / "part.safetensors", tensors, DESCRIPTION)
    with pytest.raises(WeightsError) as refused:
        build_network(load_weights(tmp_path / "part.safetensors"))
    text = str(refused.value)
    assert "  - fc8: the network has weight 3x8, bias 3, the file no such layer\n" in text
    assert text.endswith(
        "A file imported with --partial can only begin a training, as model.initialize_from."
    )


def test_the_order_of_tensors_does_not_matter(file: Path) -> None:
    turned = dict(reversed(load_file(file).items()))
    save_weights(file, turned, DESCRIPTION)
    build_network(load_weights(file))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(file: Path, share: float) -> None:
    encoded = file.read_bytes()
    file.write_bytes(encoded[: int(share * len(encoded))])
    with pytest.raises(WeightsError) as refused:
        load_weights(file)
    what = "is empty: it was not" if share == 0 else "cannot be read as a weights file: "
    assert str(refused.value).startswith(f"{file} {what}")
    assert str(refused.value).lower().endswith("fetch it again.")
    with pytest.raises(WeightsError, match=r"cannot be read as a \.safetensors file"):
        read_description(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nothing\.safetensors does not exist"):
        load_weights(tmp_path / "nothing.safetensors")


def test_a_file_of_others_is_refused_with_the_command_that_takes_it(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "it's.pth")
    np.savez(tmp_path / "caffe.npz", a=np.zeros(2))
    for name, what in (("it's.pth", "a file of torch.save"), ("caffe.npz", "an .npz file of Num")):
        with pytest.raises(WeightsError) as refused:
            load_weights(tmp_path / name)
        assert f" is {what}" in str(refused.value)
        (command,) = re.findall("`(.*)`", str(refused.value))
        words = shlex.split(command)
        assert words[:3] == ["vggdist", "import", str(tmp_path / name)]
        assert parse(words[1:]).out == (tmp_path / name).with_suffix(".safetensors")


def test_a_file_without_a_description_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "bare.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    assert read_description(path) is None
    with pytest.raises(WeightsError) as refused:
        load_weights(path)
    assert str(refused.value) == (
        f"{path} does not say which network it belongs to; `vggdist import {path} --configuration "
        "D --out FILE` writes a file that does."
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, r"describes its network in format 99, and this version of vggdist reads "),
        ({"crop_size": "wide"}, "describes its network in a way that is damaged: invalid literal"),
        ({"mean": [1, 2]}, "describes its network in a way that is damaged: not enough values"),
        ({"model": {"configuration": "Z"}}, "(?s)in a way that is damaged: .*not in Table 1"),
        ({"model": {"configuration": "D", "colour": 1}}, "(?s)in a way that is damaged: .*colour"),
    ],
)
def test_a_damaged_description_is_refused(
    file: Path, change: dict[str, object], message: str
) -> None:
    with safe_open(file, framework="pt") as opened:
        values = json.loads(opened.metadata()["vggdist"]) | change
    save_file(load_file(file), file, {"vggdist": json.dumps(values)})
    with pytest.raises(WeightsError, match=message):
        load_weights(file)


def test_what_cannot_be_written_is_said_and_leaves_nothing(network: VGG, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "x.safetensors", tmp_path / "folder"):
        with pytest.raises(WeightsError, match=f"^{path} cannot be written: .*"):
            save_weights(path, network.state_dict(), DESCRIPTION)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "folder"]


def test_an_old_file_stays_until_the_new_one_is_whole(
    file: Path, network: VGG, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file.read_bytes()

    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("vggdist.artifacts.weights.save_file", full)
    with pytest.raises(WeightsError, match=r"cannot be written: No space left on device\."):
        save_weights(file, network.state_dict(), DESCRIPTION)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("orientation", ["ignore", "apply", None])
def test_what_was_done_about_orientations_is_kept_and_done_again(tmp_path, orientation):
    path = tmp_path / "w.safetensors"
    save_weights(path, {}, replace(DESCRIPTION, orientation=orientation))
    read = read_description(path)
    assert read.orientation == orientation
    assert read.configure("data", []).data.orientation == (orientation or "ignore")
    assert read.photo_orientation == (orientation or "apply")


def test_an_older_file_says_nothing_of_orientations():
    (text,) = DESCRIPTION.to_metadata().values()
    values = json.loads(text)
    del values["orientation"]
    assert _parse(json.dumps(values), Path("old.safetensors")) == DESCRIPTION
