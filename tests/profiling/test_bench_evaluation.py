"""The numbers hang together; how fast anything is, is not tested."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.profiling.tiny import TINY
from vggdist.cli import main
from vggdist.config import ModelConfig
from vggdist.evaluation.scores import dense_posteriors
from vggdist.model.dense import DenseNetwork
from vggdist.model.initialization import build_initialized
from vggdist.profiling.evaluation import one_at_a_time


@pytest.mark.parametrize("with_files", [False, True])
def test_bench_evaluation_prints_a_table_and_writes_json(
    with_files: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds = "2" if with_files else "1"
    words = ["bench", "evaluation", "--scale", "40", "--rounds", rounds, *TINY]
    if with_files:
        folder = tmp_path / "images" / "one"
        folder.mkdir(parents=True)
        for number, size in enumerate([(50, 40), (50, 40), (45, 60)]):
            pixels = np.random.default_rng(number).integers(0, 255, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
        words += ["--data", str(tmp_path / "images")]
    monkeypatch.setattr("sys.argv", ["vggdist", *words, "--json", str(tmp_path / "found.json")])
    assert main() == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["num_images"] == (3 if with_files else 36)
    assert found["num_alone"] == (1 if with_files else 12)
    assert set(found["ratios"]) == {"one_at_a_time", "fixed_shape_per_pixel", "multi_crop_plain"}
    assert all(ratio > 0 for ratio in found["ratios"].values())
    assert f"{found['ratios']['one_at_a_time']:.2f} x" in printed


def test_the_way_that_ours_is_compared_with_computes_the_same() -> None:
    config = ModelConfig(configuration=(("3-8",), ("3-12",)), num_classes=5, fc_width=24)
    network = build_initialized(config, 32, seed=0).eval()
    dense = DenseNetwork(network, torch.float32, torch.device("cpu"))

    class Part:
        images = torch.randn(3, 3, 41, 60)

    (ours,) = dense_posteriors(dense, [Part()], True, "logits", 10**6)
    theirs = one_at_a_time(network, dense)(Part.images)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
