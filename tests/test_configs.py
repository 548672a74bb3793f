"""The shipped configurations: each loads, is what its comment says, and lives in a folder of its
own."""

import re
from collections import Counter
from pathlib import Path

import pytest

from vggdist.config import Config, scaled_learning_rate
from vggdist.config_file import load_config
from vggdist.model.configurations import TABLE_1

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "configs").glob("*.yaml"))
TABLE_3 = {  # the paper's Table 3, rows with S = 256: top-1 and top-5 error, %
    "A": (29.6, 10.4),
    "A-LRN": (29.7, 10.5),
    "B": (28.7, 9.9),
    "C": (28.1, 9.4),
    "D": (27.0, 8.8),
    "E": (27.3, 9.0),
}
each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
each_column = pytest.mark.parametrize("name", TABLE_1)


def _comment(file: Path) -> str:
    """The comment at the head of a file."""
    lines = file.read_text(encoding="utf-8").splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#").strip() for line in lines[:end])


def _of_the_paper(name: str) -> Path:
    return ROOT / "configs" / f"vgg_{name.lower().replace('-', '_')}.yaml"


@each_file
def test_a_shipped_configuration_loads(file: Path) -> None:
    assert isinstance(load_config(file), Config)


@each_file
def test_a_shipped_configuration_begins_with_the_command_that_runs_it(file: Path) -> None:
    command = rf"^(vggdist train|torchrun)\b.* --config configs/{file.name}\b"
    assert re.search(command, _comment(file), re.MULTILINE)


@each_file
def test_a_shipped_configuration_is_short_enough_to_read_at_a_glance(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 50


def test_no_two_shipped_configurations_share_a_run_folder() -> None:
    folders = Counter(load_config(file).run_folder for file in FILES)
    assert [folder for folder, count in folders.items() if count > 1] == []


@pytest.mark.parametrize(("batch", "accuracy"), [(2048, 74.2), (4096, 73.1), (8192, 71.7)])
def test_large_batches_name_the_published_accuracy_that_they_are_to_beat(
    batch: int, accuracy: float
) -> None:
    """Deep Gradient Compression's table for VGG16-BN (arXiv:1712.01887, its repository)."""
    file = ROOT / "configs" / f"vgg_d_bn_{batch}.yaml"
    config = load_config(file)
    assert (config.model.configuration, config.model.batch_norm) == ("D", True)
    assert (config.batch.global_, config.schedule.num_epochs) == (batch, 90)
    assert config.schedule.warmup_epochs == 5
    assert f"{accuracy} % top-1 accuracy" in _comment(file)
    if batch == 2048:
        assert config.optimizer.name == "sgd"
        assert scaled_learning_rate(config) == pytest.approx(0.0125 * 2048 / 32)
    else:
        assert config.optimizer.name == "lars"
        assert scaled_learning_rate(config) == pytest.approx(10 * batch / 8192)


@each_column
def test_a_column_of_table_1_has_the_paper_s_training_at_scale_256(name: str) -> None:
    config = load_config(_of_the_paper(name))
    assert config.model.configuration == name
    assert config.model.initialization == "glorot"
    assert config.data.train_scale_min == config.data.train_scale_max == 256
    assert config.data.evaluation_scale == 256
    # Everything else is the paper's: only names and folders may differ from the defaults.
    changes = {
        "model": Config().model.model_copy(update={"configuration": name}),
        "run": config.run,
    }
    assert config == Config().model_copy(update=changes)


@each_column
def test_a_column_of_table_1_names_the_errors_of_its_row_of_table_3(name: str) -> None:
    comment = _comment(_of_the_paper(name))
    assert comment.startswith(f"Configuration {name} on ImageNet at training scale S = 256.")
    top1, top5 = TABLE_3[name]
    assert f"Table 3, row {name}, S = 256: top-1 error {top1} %, top-5 error {top5} %." in comment
