"""What TensorBoard is told of a training's charts and settings, read as its own pages read it."""

import re

import pytest
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata

from vggdist.config import Config
from vggdist.training import board
from vggdist.training.curves import DESCRIPTIONS, description_of

CONFIG = Config(precision="fp16")
LAYERS = ("conv1_1", "fc8")


def tags_of_charts(config: Config, device: str) -> dict[str, set[str]]:
    """Title of each chart -> the tags that it shows, of all that a training can write."""
    (value,) = board.charts(config, device).value
    layout = layout_pb2.Layout.FromString(value.tensor.string_val[0])
    groups = ("gradient_norm", "weight_norm", "update_ratio")
    written = [*DESCRIPTIONS, *(f"{group}/{layer}" for group in groups for layer in LAYERS)]
    return {
        chart.title: {t for t in written if any(re.match(r, t) for r in chart.multiline.tag)}
        for category in layout.category
        for chart in category.chart
    }


def test_training_and_validation_stand_in_one_chart() -> None:
    shown = tags_of_charts(CONFIG, "cuda")
    assert shown["Loss"] == {"train/loss", "validation/loss"}
    assert shown["Top-5 error"] == {"train/top5_error", "validation/top5_error"}
    best = "validation/best_top1_error"
    assert shown["Top-1 error"] == {"train/top1_error", "validation/top1_error", best}
    assert shown["Update ratios"] == {"update_ratio/conv1_1", "update_ratio/fc8"}
    assert all(shown.values()), "a chart shows nothing"


def test_charts_without_curves_are_left_out() -> None:
    few = Config.model_validate({"precision": "fp32", "model": {"num_classes": 5}})
    missing = tags_of_charts(CONFIG, "cuda").keys() - tags_of_charts(few, "cpu").keys()
    gpu = {"GPU utilization (%)", "GPU power (W) and clock (MHz)"}
    assert missing == {"Top-5 error", "Loss scale", *gpu}


def test_the_table_of_trainings_has_all_that_says_what_they_compute() -> None:
    (columns,) = board.experiment(CONFIG).value
    (row,) = board.start(CONFIG).value
    told = metadata.parse_experiment_plugin_data(columns.metadata.plugin_data.content)
    started = metadata.parse_session_start_info_plugin_data(row.metadata.plugin_data.content)
    assert started.group_name == CONFIG.run_folder
    assert {info.name for info in told.hparam_infos} == set(started.hparams)
    assert {info.name for info in told.hparam_infos if info.differs} == board.SHOWN
    assert "run.folder" not in started.hparams
    assert started.hparams["optimizer.learning_rate"].number_value == 0.01
    assert started.hparams["model.batch_norm"].WhichOneof("kind") == "bool_value"
    assert started.hparams["data.mean"].string_value == "[123.68, 116.779, 103.939]"
    assert started.hparams["batch.micro"].string_value == "null"
    assert [info.name.tag for info in told.metric_infos] == [
        "validation/top1_error",
        "validation/best_top1_error",
        "validation/top5_error",
        "throughput/images_per_second_overall",
    ]


@pytest.mark.parametrize("tag", ["train/loss", "update_ratio/conv1_1", "system/host_load"])
def test_a_curve_is_described(tag: str) -> None:
    assert description_of(tag).endswith(".")


def test_a_curve_of_which_nothing_is_known_has_no_description() -> None:
    assert description_of("train/another") == ""
