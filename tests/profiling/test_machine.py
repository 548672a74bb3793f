"""`vggdist bench machine`: what it writes is what a plan reads, and the plan takes as long."""

import subprocess
import sys
from pathlib import Path

import pytest

from vggdist.config import split_batch
from vggdist.config_file import make_config
from vggdist.errors import ConfigError
from vggdist.planning.devices import DEVICES, load_device
from vggdist.planning.layers import count_layers
from vggdist.planning.links import Cluster
from vggdist.planning.messages import Work
from vggdist.planning.step import compute_seconds
from vggdist.profiling.machine import require_writable, sustained_teraflops

ROOT = Path(__file__).parents[2]
TINY = [
    "model.configuration=[[3-8],[3-16]]",
    "model.fc_width=32",
    "data.crop_size=32",
    "data.train_scale_min=32",
    "data.train_scale_max=32",
    "precision=fp32",
    "device=cpu",
]


@pytest.mark.slow
@pytest.mark.multi_process
def test_two_ranks_are_measured_at_once_and_a_plan_takes_the_file(tmp_path: Path) -> None:
    out = tmp_path / "machine.json"
    command = [sys.executable, "-m", "vggdist.cli", "bench", "machine", "--ranks", "2"]
    ended = subprocess.run(
        [*command, "--rounds", "3", "--out", str(out), *TINY],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "arithmetic of a rank, fp32" in ended.stdout
    device = load_device(str(out))
    assert set(device.sustained_teraflops) == {"fp32"}
    assert device.cores_compute
    assert "2 ranks of" in device.source
    # Orders of magnitude that every machine of today is within.
    assert 1e-5 < device.sustained_teraflops["fp32"] < 1e3
    assert 0.05 < device.bus_gigabytes_per_second < 1e3
    assert 10 < device.decoded_images_per_second < 1e5
    assert 0.01 < device.checkpoint_gigabytes_per_second < 1e2
    assert 0.0 < device.exchange_seconds_per_gigabyte < 100
    assert sorted(path.name for path in tmp_path.iterdir()) == ["machine.json"]


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_plan_takes_as_long_for_a_step_as_was_measured(accumulation: int) -> None:
    config = make_config({"batch": {"global": 16 * accumulation, "micro": 16}, "precision": "bf16"})
    split = split_batch(config.batch, 1)
    rate = sustained_teraflops(config, split, DEVICES["p100"], 0.9)
    device = DEVICES["p100"].model_copy(update={"sustained_teraflops": {"bf16": rate}})
    work = Work(count_layers(config), "bf16", "bf16", "bf16", 16, accumulation)
    assert compute_seconds(work, Cluster(1, 1, device, 1e9)) == pytest.approx(0.9)


def test_a_file_of_others_is_left_as_it_is(tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    with pytest.raises(ConfigError) as error:
        require_writable(other)
    assert str(error.value) == (
        f"--out {other} exists and was not written by `vggdist bench machine`; it is left as it "
        "is. Give another file."
    )
    other.write_text(DEVICES["v100"].model_dump_json())
    require_writable(other)
    with pytest.raises(ConfigError, match="is no folder; make it first"):
        require_writable(tmp_path / "nowhere" / "machine.json")
