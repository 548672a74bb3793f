"""`vggdist import` and `vggdist export` as a person calls them."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from tests.conftest import Call
from tests.convert.third_party_networks import (
    TINY,
    caffe_arrays,
    caffe_logits,
    random_pixels,
    torchvision_network,
)
from vggdist import cli


def test_from_caffes_arrays_to_onnx(call: Call, tmp_path: Path) -> None:
    np.savez(tmp_path / "caffe.npz", **caffe_arrays())
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\ndog\nelk\n")
    ours, graph = tmp_path / "ours.safetensors", tmp_path / "graph.onnx"
    code, out, _ = call(
        "import",
        tmp_path / "caffe.npz",
        "--out",
        ours,
        "--classes",
        tmp_path / "names.txt",
        "--json",
        tmp_path / "import.json",
        f"model.configuration={TINY}",
    )
    assert code == 0
    assert f"written to {ours}" in out
    told = json.loads((tmp_path / "import.json").read_text())
    assert told["classes"] == ["ant", "bee", "cat", "dog", "elk"]
    assert (told["layout"], told["missing"], told["out"]) == ("caffe", [], str(ours))

    report = tmp_path / "export.json"
    code, out, _ = call("export", ours, "--format", "onnx", "--out", graph, "--json", report)
    assert code == 0
    assert "largest difference of logits" in out
    assert json.loads(report.read_text())["largest_difference"] < 0.01

    pixels = random_pixels()
    fed = (pixels - np.array([123.68, 116.779, 103.939])).transpose(0, 3, 1, 2)
    session = onnxruntime.InferenceSession(graph)
    (logits,) = session.run(None, {"images": fed.astype(np.float32)})
    np.testing.assert_allclose(logits, caffe_logits(pixels, caffe_arrays()), rtol=1e-4, atol=1e-3)


def test_a_column_of_table_1_is_named_by_an_option(call: Call, tmp_path: Path) -> None:
    torch.save(torchvision_network("B").state_dict(), tmp_path / "vgg13.pth")
    words = ("import", tmp_path / "vgg13.pth", "--out", tmp_path / "b.safetensors")
    code, out, _ = call(*words, "--configuration", "B", "--layout", "torchvision")
    assert code == 0
    assert "torchvision layout, configuration B, " in out
    code, _, err = call(*words, "--configuration", "D")
    assert code == 5
    assert err.startswith(f"error: {tmp_path / 'vgg13.pth'} does not hold the layers of this ")
    assert "Its convolutions are those of B: --configuration B.\n" in err


def test_a_part_is_imported_on_request(call: Call, tmp_path: Path) -> None:
    convolutions = {n: a for n, a in caffe_arrays().items() if n.startswith("conv")}
    np.savez(tmp_path / "notop.npz", **convolutions)
    words = (
        "import",
        tmp_path / "notop.npz",
        "--out",
        tmp_path / "o.safetensors",
        f"model.configuration={TINY}",
    )
    code, _, err = call(*words)
    assert code == 5
    assert "add --partial.\n" in err
    code, out, _ = call(*words, "--partial", "--crop-size", "64", "--input", "mean-rgb")
    assert code == 0
    assert "missing: fc6, fc7, fc8\n" in out
    assert "crop size 64\n" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("export", "nowhere", "--format", "onnx", "--out", "o"),
            "nowhere does not exist; give a run folder",
        ),
        (
            ("import", "nowhere.pth", "--out", "o.safetensors"),
            "nowhere.pth does not exist; give a file with weights.",
        ),
        (("predict", "checkpoints", "a.jpg"), "checkpoints has no weights; give a run folder"),
        (("predict", "nowhere", "a.jpg"), "nowhere does not exist; give a run folder"),
    ],
)
def test_what_is_not_there_is_a_sentence(
    call, words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    code, _, err = call(*words)
    assert code in (2, 5)
    assert err.startswith(f"error: {message}")


def test_without_onnxruntime_an_export_says_what_to_install(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "caffe.npz", **caffe_arrays())
    ours = tmp_path / "ours.safetensors"
    call("import", tmp_path / "caffe.npz", "--out", ours, f"model.configuration={TINY}")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, err = call("export", ours, "--format", "onnx", "--out", tmp_path / "graph.onnx")
    assert code == 2
    assert err.startswith("error: the library onnxruntime is not installed; ")
    assert "pip install 'vggdist[convert]'" in err
    assert not (tmp_path / "graph.onnx").exists()


@pytest.mark.parametrize("verb", ["import", "export", "predict"])
def test_the_help_teaches_with_an_example(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["vggdist", verb, "--help"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert f"example: vggdist {verb}" in capsys.readouterr().out.replace("examples:", "example:")


def test_choices_of_the_command_line_are_those_of_the_library() -> None:
    """The command line does not import torch, so it spells them out."""
    from vggdist.convert.exporting import FORMATS
    from vggdist.convert.importing import INPUT_SCALINGS
    from vggdist.convert.layouts import LAYOUTS

    parser = cli.build_parser()
    for layout in ("auto", *LAYOUTS):
        assert parser.parse_args(["import", "f", "--out", "o", "--layout", layout])
    for scaling in INPUT_SCALINGS:
        assert parser.parse_args(["import", "f", "--out", "o", "--input", scaling])
    for form in FORMATS:
        assert parser.parse_args(["export", "r", "--out", "o", "--format", form])
