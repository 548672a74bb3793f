"""Evaluations and descriptors of photos on a GPU, beside the CPU in fp32."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vggdist.artifacts.posteriors import PROTOCOLS, load_posteriors
from vggdist.artifacts.weights import Description, save_weights
from vggdist.config import ModelConfig
from vggdist.evaluate import Request, evaluate
from vggdist.model.initialization import build_initialized
from vggdist.transfer.features import Request as FeatureRequest
from vggdist.transfer.features import compute_features

pytestmark = pytest.mark.gpu

CROP, SCALES = 64, (80, 112)
MODEL = ModelConfig(
    configuration=(("3-16",), ("3-32", "3-32"), ("3-64",)), num_classes=2, fc_width=64
)
# Of posteriors. A grey level of difference and TF32's or bf16's rounding move logits that are 24
# times as large as a fresh network's.
TOLERANCE = {"fp32": 0.05, "bf16": 0.1, "fp16": 0.05}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random network whose posteriors differ from image to image."""
    network = build_initialized(MODEL, CROP, seed=3)
    with torch.no_grad():
        network.fc8.linear.weight.mul_(24)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    mean, std = (123.68, 116.779, 103.939), (58.4, 57.1, 57.4)
    classes = ("class0", "class1")
    description = Description(MODEL, CROP, mean, std, SCALES, classes, "a test")
    save_weights(path, network.state_dict(), description)
    return path


def posteriors(
    weights: Path, root: Path, out: Path, device: str, precision: str
) -> dict[tuple[str, int], np.ndarray]:
    """Protocol and scale -> (n, 2)."""
    overrides = (f"device={device}", f"precision={precision}", "data.num_threads=2")
    request = Request(
        str(weights),
        str(root),
        split="train",
        protocols=PROTOCOLS,
        scales=SCALES,
        out=out,
        overrides=overrides,
    )
    evaluated = evaluate(request)
    assert evaluated is not None
    loaded = [load_posteriors(path) for path in evaluated.files]
    return {(one.source.protocol, one.source.scale): one.values for one in loaded}


@pytest.fixture(scope="module")
def on_a_cpu(
    weights: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, int], np.ndarray]:
    return posteriors(weights, photos, tmp_path_factory.mktemp("cpu"), "cpu", "fp32")


@pytest.mark.parametrize("precision", TOLERANCE)
def test_posteriors_of_every_protocol_are_those_of_a_cpu(
    precision, weights, photos, on_a_cpu, device, tmp_path, figure
):
    found = posteriors(weights, photos, tmp_path, device.type, precision)
    assert found.keys() == on_a_cpu.keys()
    spread = min(expected[:, 0].std() for expected in on_a_cpu.values())
    assert spread > 0.02, "the images would all have the same posteriors"
    for (protocol, scale), values in found.items():
        difference = float(np.abs(values - on_a_cpu[protocol, scale]).max())
        figure(f"{protocol} at {scale}, largest difference", difference)
        assert difference < TOLERANCE[precision]


@pytest.mark.parametrize("layer", ["fc7", "pool5"])
def test_descriptors_are_those_of_a_cpu(layer, weights, photos, device, figure):
    found = {}
    for where in ("cpu", device.type):
        overrides = (f"device={where}", "precision=fp32", "data.num_threads=2")
        request = FeatureRequest(
            str(weights), str(photos), scales=SCALES, layer=layer, overrides=overrides
        )
        found[where] = compute_features(request)
    ours, theirs = found[device.type], found["cpu"]
    assert ours.files == theirs.files
    difference = float(np.abs(ours.descriptors - theirs.descriptors).max())
    figure("largest difference of descriptors of length 1", difference)
    assert difference < 0.02
