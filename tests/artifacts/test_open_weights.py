"""Which weights a command that applies a trained network takes."""

from pathlib import Path

import pytest

from vggdist.artifacts.checkpoint import Checkpoint, save
from vggdist.artifacts.run_folder import data_of, open_weights, precision_of
from vggdist.artifacts.weights import Description
from vggdist.config import Config, DataConfig, ModelConfig
from vggdist.config_file import to_yaml
from vggdist.errors import ConfigError, WeightsError
from vggdist.model.initialization import build_initialized, build_trainable

MODEL = ModelConfig(configuration=(("3-4",), ("3-4",)), num_classes=3, fc_width=8)
DATA = DataConfig(crop_size=32, train_scale_min=32, train_scale_max=32)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with one checkpoint."""
    weights = build_initialized(MODEL, 32, seed=0).state_dict()
    checkpoint = Checkpoint(7, weights, {}, {}, Description(MODEL, 32, (0.0, 0.0, 0.0)))
    save(tmp_path / "run" / "checkpoints", checkpoint, keep=1)
    return tmp_path / "run"


def test_a_run_a_checkpoint_and_a_copy_of_its_weights_are_the_same(run: Path) -> None:
    (checkpoint,) = (run / "checkpoints").iterdir()
    copy = run / "copy.safetensors"
    copy.write_bytes((checkpoint / "weights.safetensors").read_bytes())
    found = {open_weights(str(path)).sha256 for path in (run, checkpoint, copy)}
    assert len(found) == 1


def test_a_network_tells_of_its_data_set_and_precision_wherever_it_is_in_its_run(run: Path) -> None:
    (checkpoint,) = (run / "checkpoints").iterdir()
    config = Config(precision="bf16", data=DataConfig(root="/data/photos"))
    (run / "config.yaml").write_text(to_yaml(config))
    for network in (run, checkpoint, checkpoint / "weights.safetensors"):
        assert data_of(str(network)) == "/data/photos"
        assert precision_of(str(network)) == "bf16"
    copy = run.parent / "copy.safetensors"
    copy.write_bytes((checkpoint / "weights.safetensors").read_bytes())
    assert precision_of(str(copy)) is None
    with pytest.raises(ConfigError, match=r"give the data set with --data ROOT\.$"):
        data_of(str(copy))
    with pytest.raises(ConfigError, match="runs/misspelt does not exist"):
        data_of("runs/misspelt")


def test_weights_that_are_not_those_that_the_training_wrote_are_refused(run: Path) -> None:
    (path,) = run.rglob("weights.safetensors")
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1  # one bit of one weight
    path.write_bytes(damaged)
    model = MODEL.model_copy(update={"initialize_from": str(run)})
    for opening in (
        lambda: open_weights(str(run)),
        lambda: build_trainable(Config(model=model, data=DATA), fresh=True),
    ):
        with pytest.raises(WeightsError, match="does not have the SHA-256 with which its check"):
            opening()
    (path.parent / "manifest.json").write_text("{")
    open_weights(str(run))  # what cannot be compared is taken as it is
