"""The verb plan from the command line to its numbers."""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vggdist.cli import parse
from vggdist.config import Config
from vggdist.config_file import make_config
from vggdist.data.count import ImageCounts
from vggdist.errors import ConfigError, VggdistError
from vggdist.model.layer_costs import count_layers
from vggdist.model.memory import count_memory
from vggdist.planning.devices import DEVICES
from vggdist.planning.estimate import Estimate, estimate_training
from vggdist.planning.links import Cluster
from vggdist.planning.run import estimate_checkpoints

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (
    "plan --config {config} --nodes 4 --gpus-per-node 8 --micro-batch 64 --device h100 "
    "--network 400gbit"
)


def run(words: str) -> argparse.Namespace:
    arguments = parse(words.format(config=ROOT / "configs/vgg_d.yaml").split())
    arguments.run(arguments)
    return arguments


def plan(values: dict[str, Any] | None = None, **options: Any) -> Estimate:
    cluster = Cluster(
        options.pop("nodes", 2),
        options.pop("ranks", 4),
        options.pop("device", DEVICES["p100"]),
        25e9,
    )
    return estimate_training(make_config(values or {}), cluster, **options)


def test_the_verb_prints_draws_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(f"{COMMAND} --out {tmp_path}/plan.png --json {tmp_path}/plan.json model.fc_width=2048")
    text = capsys.readouterr().out
    assert "4 nodes of 8 ranks, 400 Gb/s between nodes" in text
    assert "batch: 2048 = 32 ranks x 1 micro batch x 64 images" in text
    for word in ("arithmetic", "exchange, not hidden", "memory of a rank", "GPU hours"):
        assert word in text
    with Image.open(tmp_path / "plan.png") as picture:
        assert picture.width > 800
    values = json.loads((tmp_path / "plan.json").read_text())
    assert set(values["efficiency"]) == {str(1 << power) for power in range(11)}
    assert set(values["efficiency"]["512"]) == {"all_reduce", "factors", "ours"}
    assert values["efficiency"]["1"]["ours"] == pytest.approx(1.0)
    assert values["world_size"] == 32
    assert values["global_batch"] == 2048
    step = values["step"]
    assert step["seconds"] == pytest.approx(
        step["compute_seconds"]
        + step["straggling_seconds"]
        + step["exchange_exposed_seconds"]
        + step["data_wait_seconds"]
    )


@pytest.mark.parametrize(
    ("words", "counted"),
    [
        (
            "",
            "1,281,167 for training, 50,000 for validation (ImageNet's, since no data set is "
            "named)",
        ),
        ("data.root={root}", "20 for training, 7 for validation (counted in {root})"),
        (
            "data.root={root} --images 1000 --validation-images 9",
            "1,000 for training, 9 for validation (as given)",
        ),
        (
            "data.root={root} --images 1000",
            "1,000 for training, 7 for validation (one as given by "
            "--images, the other counted in {root})",
        ),
    ],
)
def test_the_images_that_are_counted_are_told(
    words: str, counted: str, tiny_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(f"{COMMAND} {words.format(root=tiny_dataset)}")
    assert f"\nimages: {counted.format(root=tiny_dataset)}\n" in capsys.readouterr().out


def test_planning_needs_neither_torch_nor_data() -> None:
    code = (
        "import sys\nfrom vggdist.cli import parse\n"
        "words = 'plan --nodes 2 --gpus-per-node 8 --micro-batch 64 --device a100 --network "
        "100gbit data.root=/nowhere'.split()\n"
        "arguments = parse(words)\narguments.run(arguments)\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=ROOT)


def test_with_a_micro_batch_the_global_batch_follows_and_without_it_is_shared() -> None:
    weak = plan(micro_batch=32)
    assert weak.config.batch.global_ == 8 * 32
    assert weak.work.accumulation_steps == 1
    strong = plan({"batch": {"global": 1024, "micro": 32}})
    assert strong.work.micro == 32
    assert strong.work.accumulation_steps == 1024 // 8 // 32


def test_worlds_that_cannot_share_the_batch_are_left_out() -> None:
    worlds = set(plan({"batch": {"global": 96}}).efficiency)
    assert worlds == {1, 2, 4, 8, 16, 32}
    with pytest.raises(ConfigError, match="cannot be shared equally by 5 ranks"):
        plan({"batch": {"global": 96}}, nodes=1, ranks=5)


def test_a_fixed_batch_on_more_ranks_is_less_efficient_than_a_growing_one() -> None:
    weak, strong = plan(micro_batch=64), plan({"batch": {"global": 256}})
    for world_size in (8, 64, 256):
        assert strong.efficiency[world_size]["ours"] < weak.efficiency[world_size]["ours"]


def test_larger_micro_batches_hide_more_of_the_exchange_and_take_more_memory() -> None:
    tried = plan(micro_batch=48, nodes=16, device=DEVICES["h100"]).micro_batches
    assert list(tried) == [16, 32, 48, 64, 128, 256, 512]
    for what in ("efficiency", "images_per_second", "memory_bytes"):
        values = [figures[what] for figures in tried.values()]
        assert values == sorted(values)
    assert plan().micro_batches == {}


def test_hours_are_steps_by_the_time_of_a_step() -> None:
    estimated = plan(nodes=1, ranks=8).run.hours
    # 74 epochs of 1,281,167 images at 1,081 to 1,232 images/s, and evaluations.
    assert 74 * 1_281_167 / 1232 / 3600 < estimated < 74 * 1_281_167 / 1081 / 3600
    tenth = plan(nodes=1, ranks=8, images=ImageCounts(128_117, 5_000)).run.hours
    assert tenth == pytest.approx(estimated / 10, rel=0.02)


def test_the_interval_of_checkpoints_is_where_least_is_lost() -> None:
    """By going through intervals: what holds up the steps, and what a failure does again."""
    layers, step_seconds = count_layers(Config()), 0.4
    found = estimate_checkpoints(layers, DEVICES["p100"], 512, step_seconds)
    assert found.gigabytes == pytest.approx(1.107, rel=1e-3)
    assert found.seconds == pytest.approx(1.107 / 12, rel=1e-3), "over PCIe 3.0"
    behind = found.written_seconds - found.seconds
    assert behind == pytest.approx(1.107, rel=1e-3), "at 1 GB/s"
    failures = 3600 * found.hours_between_failures

    def wall(interval: float) -> float:
        """Expected time for each second of work, failures at random (Daly's equation 20)."""
        return failures * math.expm1((interval + found.seconds) / failures) / interval

    best = min(range(50, 2000), key=wall)
    assert found.every_seconds == pytest.approx(best, rel=0.02)
    assert found.every_steps == round(found.every_seconds / step_seconds)
    assert found.lost == pytest.approx(wall(best) - 1 + behind / failures, rel=0.1)


def test_the_cores_that_write_a_checkpoint_do_not_compute() -> None:
    found = estimate_checkpoints(count_layers(Config()), DEVICES["cpu"], 2, 1.0)
    assert found.seconds == found.written_seconds > found.gigabytes / 0.2


def test_a_checkpoint_is_on_the_disk_before_the_next_is_begun() -> None:
    slow = DEVICES["h100"].model_copy(update={"checkpoint_gigabytes_per_second": 0.001})
    found = estimate_checkpoints(count_layers(Config()), slow, 1024, 0.1)
    assert found.every_seconds == pytest.approx(1107, rel=1e-3)


def test_failures_are_those_of_a_published_cluster() -> None:
    """1,024 GPUs fail every 7.9 hours (arXiv:2410.21680)."""
    planned = estimate_checkpoints(count_layers(Config()), DEVICES["h100"], 1024, 0.1)
    assert planned.hours_between_failures == pytest.approx(7.9, rel=0.01)


def test_too_few_cores_make_the_network_wait() -> None:
    enough, few = plan(micro_batch=64, num_cores=64), plan(micro_batch=64, num_cores=1)
    assert enough.supply.data_wait_seconds == 0.0
    made = 4 * 64 / 900
    assert few.step_seconds == pytest.approx(max(few.step.seconds, made))
    twice = few.cluster.device.model_copy(update={"decoded_images_per_second": 100.0})
    slow = plan(micro_batch=64, num_cores=1, device=twice)
    assert slow.step_seconds == pytest.approx(4 * 64 / 100)
    assert slow.supply.images_per_second_per_node == pytest.approx(100)
    assert slow.supply.num_cores == pytest.approx(1.0)


def test_memory_is_weights_gradients_momentum_and_what_the_images_leave() -> None:
    planned = plan({"precision": "bf16"}, micro_batch=64)
    assert planned.memory["weights"] == planned.memory["momentum"] == 4 * 138_357_544
    # 13.55 M elements of convolutions' outputs, and pooled maps with their indices.
    kept = 64 * (2 * 13.55e6 + 10 * 1.53e6)
    assert planned.memory["activations"] == pytest.approx(kept, rel=0.3)
    assert planned.memory["total"] == sum(
        size for name, size in planned.memory.items() if name != "total"
    )
    alone = count_memory(planned.config, planned.work.split(1), {})
    assert alone["exchange"] == 0
    larger = plan({"precision": "bf16"}, micro_batch=128).memory["activations"]
    assert larger - planned.memory["activations"] == pytest.approx(kept, rel=0.02)


def test_memory_that_does_not_suffice_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    run(
        "plan --config {config} --nodes 1 --gpus-per-node 8 --micro-batch 512 --device p100 "
        "--network 25gbit"
    )
    assert "DOES NOT FIT; take a smaller micro batch" in capsys.readouterr().out


def test_arithmetic_without_a_figure_is_said() -> None:
    assert (
        "P100 has no figure for bf16; arithmetic counts as fp32, gradients are sent as in bf16."
        in plan({"precision": "bf16"}).notes
    )
    assert not any("no figure" in note for note in plan({"precision": "fp32"}).notes)


@pytest.mark.parametrize(
    ("device", "precision"),
    [("h100", "bf16"), ("a100", "bf16"), ("v100", "fp16"), ("p100", "fp32")],
)
def test_a_precision_that_is_not_set_is_the_devices_fastest(device: str, precision: str) -> None:
    cluster = Cluster(1, 8, DEVICES[device], 1e11)
    planned = estimate_training(Config(), cluster, micro_batch=16)
    assert planned.to_dict()["precision"] == planned.work.precision == precision


def test_stages_whose_exchange_is_deepspeeds_are_refused() -> None:
    with pytest.raises(ConfigError) as error:
        plan({"zero_stage": 2})
    assert str(error.value) == (
        "zero_stage is 2, at which DeepSpeed exchanges gradients; `vggdist plan` knows our own "
        "exchange only, so set zero_stage=0."
    )


def test_a_picture_that_cannot_be_written_is_said() -> None:
    with pytest.raises(VggdistError, match=r"--out /nowhere/plan.png cannot be written"):
        run(f"{COMMAND} --out /nowhere/plan.png")
