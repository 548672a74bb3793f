"""What TensorBoard is told besides texts and pictures: curves, charts, histograms, settings.

Each function makes a summary, which `training/metrics.py` writes at a step.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.summary_pb2 import (
    DATA_CLASS_SCALAR,
    DATA_CLASS_TENSOR,
    HistogramProto,
    Summary,
    SummaryMetadata,
)
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from torch.utils.tensorboard.summary import custom_scalars

from vggdist.config import KNOBS, Config
from vggdist.config_file import flatten
from vggdist.evaluation.metrics import TOP5
from vggdist.training import curves
from vggdist.training.layer_values import Histogram

TENSORBOARD_FOLDER = "tensorboard"
EVENT_FILES = "events.out.tfevents.*"

SHOWN = {
    "model.configuration",
    "batch.global",
    "optimizer.learning_rate",
    "schedule.name",
    "precision",
}
"""Settings that the table of trainings shows before others are chosen, which can be five."""

_PLUGINS = {DATA_CLASS_SCALAR: "scalars", DATA_CLASS_TENSOR: "histograms"}
_METRICS = {
    "validation/top1_error": "top-1 error",
    "validation/best_top1_error": "best top-1 error",
    "validation/top5_error": "top-5 error",
    "throughput/images_per_second_overall": "images/s",
}
"""Curves whose last points are the results of a training in the table of trainings."""


def event_folder(run_folder: Path) -> Path:
    """The folder of the events of a run, under the name that TensorBoard calls the run by.

    Event files that stand elsewhere are moved there: earlier versions wrote them one folder above,
    and the run folder may have another name now.

    Raises:
        OSError: they cannot be moved.
    """
    above = run_folder / TENSORBOARD_FOLDER
    folder = above / (run_folder.resolve().name or "run")
    folder.mkdir(parents=True, exist_ok=True)
    for file in (*above.glob(EVENT_FILES), *above.glob(f"*/{EVENT_FILES}")):
        if file.parent != folder:
            file.rename(folder / file.name)
    return folder


def scalars(values: Mapping[str, float], described: bool) -> Summary:
    """A point of several curves, by tag; TensorBoard wants descriptions with the first one."""
    summary = Summary()
    for tag, value in values.items():
        point = summary.value.add(tag=tag, simple_value=value)
        if described:
            point.metadata.CopyFrom(_described(DATA_CLASS_SCALAR, tag, curves.description_of(tag)))
    return summary


def histograms(group: str, layers: Mapping[str, Histogram]) -> Summary:
    """The histograms of `weights` or `gradients` of layers, by their names."""
    summary = Summary()
    for layer, histogram in layers.items():
        values = HistogramProto(
            min=histogram.lowest,
            max=histogram.highest,
            num=sum(histogram.counts),
            # An empty bin, since bins are told by their upper ends.
            bucket_limit=[histogram.lowest, *histogram.edges()],
            bucket=[0, *histogram.counts],
        )
        told = _described(DATA_CLASS_TENSOR, layer, curves.HISTOGRAMS[group])
        summary.value.add(tag=f"{group}/{layer}", histo=values, metadata=told)
    return summary


def charts(config: Config, device: str) -> Summary:
    """The layout of the page Custom Scalars: several curves in one chart.

    Args:
        config: of the training, which has no curves for some charts.
        device: `cpu` or `cuda`.
    """
    left_out = {
        "Top-5 error": config.model.fc8_width <= TOP5,
        "Loss scale": config.resolved_precision != "fp16",
        "GPU utilization (%)": device == "cpu",
        "GPU power (W) and clock (MHz)": device == "cpu",
    }
    layout = {
        category: {title: ["Multiline", [tags]] for title, tags in titles}
        for category, titles in curves.charts(left_out)
    }
    return custom_scalars(layout)  # type: ignore[no-untyped-call]


def settings_of(config: Config) -> dict[str, bool | float | str]:
    """The settings that say what a training computes, as the page HParams takes them."""
    values = json.loads(config.model_dump_json(by_alias=True))
    return {
        key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for key, value in flatten(values).items()
        if KNOBS[key].may_change is not True
    }


def experiment(config: Config) -> Summary:
    """The columns of the page HParams, which TensorBoard takes from any of several runs."""
    told = api_pb2.Experiment()
    for key in settings_of(config):
        told.hparam_infos.add(name=key, differs=key in SHOWN)
    for tag, title in _METRICS.items():
        if tag != "validation/top5_error" or config.model.fc8_width > TOP5:
            told.metric_infos.add(
                name=api_pb2.MetricName(tag=tag),
                display_name=title,
                description=curves.description_of(tag),
            )
    return _hparams(metadata.EXPERIMENT_TAG, experiment=told)


def start(config: Config) -> Summary:
    """A row of the page HParams: this training's settings."""
    told = plugin_data_pb2.SessionStartInfo(
        group_name=config.run_folder, start_time_secs=time.time()
    )
    for key, value in settings_of(config).items():
        kind = {bool: "bool_value", str: "string_value"}.get(type(value), "number_value")
        setattr(told.hparams[key], kind, value)
    return _hparams(metadata.SESSION_START_INFO_TAG, session_start_info=told)


def end() -> Summary:
    """The end of a training on the page HParams."""
    told = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
    return _hparams(metadata.SESSION_END_INFO_TAG, session_end_info=told)


def _hparams(tag: str, **told: object) -> Summary:
    data = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**told))
    return Summary(value=[Summary.Value(tag=tag, metadata=data, tensor=metadata.NULL_TENSOR)])


def _described(data_class: int, tag: str, description: str) -> SummaryMetadata:
    """The title and description of a curve or histogram; without a class they are not shown."""
    name = tag.rpartition("/")[2].replace("_", " ")
    return SummaryMetadata(
        display_name=name.replace("top1", "top-1").replace("top5", "top-5"),
        summary_description=description,
        data_class=data_class,
        plugin_data=SummaryMetadata.PluginData(plugin_name=_PLUGINS[data_class]),
    )
