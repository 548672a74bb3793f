"""What TensorBoard and `metrics.jsonl` show of whole trainings; the oracle is a point a step."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing import plugin_event_accumulator

from tests.ranks import run_in_ranks
from tests.run_folders import records, steps
from tests.training.small_engine import GLOBAL_BATCH
from tests.training.small_training import Part, StopAfter
from vggdist.distributed.process import Process

pytestmark = pytest.mark.multi_process

LAYERS = ("conv1_1", "conv2_1", "conv2_2", "fc6", "fc7", "fc8")
NUM_STEPS = 13
CHANGES = {
    "schedule": {"name": "step", "step_epochs": 2.0, "num_steps": NUM_STEPS},
    "evaluation": {"every_epochs": 1.0},
    "exchange": "all_reduce",
}


def every_step_and_every_five(process: Process, folder: Path) -> None:
    for name, every_steps in (("one", 1), ("five", 5), ("many", 100)):
        Part(process, folder / name, log={"every_steps": every_steps}, **CHANGES).train()


def test_the_last_point_is_a_mean_of_no_fewer_steps_than_the_others(tmp_path: Path) -> None:
    run_in_ranks(every_step_and_every_five, 1, tmp_path)
    assert steps(tmp_path / "one") == list(range(1, NUM_STEPS + 1))
    assert steps(tmp_path / "five") == [1, 5, 13]  # 10 would leave three steps
    assert steps(tmp_path / "many") == [1, 13]
    losses = [record["loss"] for record in records(tmp_path / "one")]
    shown = [record["loss"] for record in records(tmp_path / "five")]
    means = [losses[0], sum(losses[1:5]) / 4, sum(losses[5:]) / 8]
    assert shown == pytest.approx(means, rel=1e-5)


def part(process: Process, folder: Path, stop_at: int | None) -> None:
    histograms = {"every_steps": 1, "histogram_every_epochs": 1.0}
    one = Part(process, folder, log=histograms, **CHANGES)
    one.train(StopAfter(one.training, stop_at) if stop_at else None)


def test_a_training_on_two_ranks_then_on_one_is_shown_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_in_ranks(part, 2, folder, 6)
    last = max(int(step) for step in steps(folder))
    run_in_ranks(part, 1, folder, None)
    path = str(folder / "tensorboard" / "run")
    events = plugin_event_accumulator.EventAccumulator(path, {"tensors": 0}).Reload()
    shown = {tag: [e.step for e in events.Tensors(tag)] for tag in events.Tags()["tensors"]}
    every_step = list(range(1, NUM_STEPS + 1))
    groups = ("gradient_norm", "weight_norm", "update_ratio")
    always = {f"{group}/{layer}" for group in groups for layer in LAYERS}
    always |= {f"train/{name}" for name in ("loss", "top1_error")}
    always |= {f"progress/{name}" for name in ("epoch", "hours_left")}
    always |= {f"optimizer/{name}" for name in ("learning_rate", "gradient_norm")}
    speeds = ("images_per_second", "images_per_second_overall", "images_per_second_without_wait")
    always |= {f"throughput/{name}" for name in (*speeds, "data_wait")}
    readings = ("host_memory_gb", "host_load", "process_memory_gb")
    reading = ("read_mb_per_second", "disk_read_mb_per_second")
    always |= {f"system/{name}" for name in (*readings, *reading)}
    evaluations = [4, 8, 12, 13]
    results = ("loss", "top1_error", "best_top1_error", "epoch")
    assert {tag: found for tag, found in shown.items() if tag in always} == dict.fromkeys(
        always, every_step
    )
    assert {tag: found for tag, found in shown.items() if tag not in always} == {
        "throughput/exchange_wait": list(range(1, last + 1)),  # on one rank there is none
        "optimizer/learning_rate_fell": [8],
        "schedule/text_summary": [8, 13],
        "config/text_summary": [0, last + 1],
        **{f"validation/{name}": evaluations for name in results},
        **{f"{kind}/{n}": evaluations for kind in ("weights", "gradients") for n in LAYERS},
        "custom_scalars__config__": [0],
        "_hparams_/experiment": [0],
        "_hparams_/session_start_info": [0],
    }
    told = {tag: events.SummaryMetadata(tag) for tag in shown}
    curves = {tag: data for tag, data in told.items() if data.plugin_data.plugin_name == "scalars"}
    assert curves.keys() > always
    assert [tag for tag, data in curves.items() if not data.summary_description] == []
    assert all(record["images_per_second"] > GLOBAL_BATCH / 60 for record in records(folder))
