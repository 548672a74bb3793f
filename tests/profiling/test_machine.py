"""`vggdist bench machine`: what it writes is what a plan reads, and a step of it takes as long."""

from pathlib import Path

import pytest

from tests.profiling.tiny import TINY
from tests.ranks import leave_world, run_in_ranks
from vggdist.cli import parse
from vggdist.config import split_batch
from vggdist.config_file import make_config
from vggdist.distributed.process import Process
from vggdist.errors import ConfigError
from vggdist.model.layer_costs import count_layers
from vggdist.planning.devices import DEVICES, load_device
from vggdist.planning.links import Cluster
from vggdist.planning.messages import Work
from vggdist.planning.step import compute_seconds
from vggdist.profiling import commands, machine
from vggdist.profiling.machine import require_writable, sustained_teraflops


def bench_machine(_process: Process, *words: str) -> None:
    """The command in a rank of its own, with small measurements."""
    leave_world()
    machine._LARGE, machine._CHECKPOINT_ELEMENTS = 1 << 20, 1 << 21
    machine._FRESH_MATRIX, machine._NUM_IMAGES = (512, 512), 4
    arguments = parse(["bench", "machine", *words])
    arguments.run(arguments)


@pytest.mark.multi_process
@pytest.mark.slow
def test_two_ranks_are_measured_at_once_and_a_plan_takes_the_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "machine.json"
    run_in_ranks(bench_machine, 2, "--rounds", "3", "--out", str(out), *TINY, "batch.global=8")
    assert capfd.readouterr().out.count("arithmetic of a rank, fp32") == 1
    device = load_device(str(out))
    assert set(device.sustained_teraflops) == {"fp32"}
    assert device.cores_compute
    assert "2 ranks of" in device.source
    # Orders of magnitude that every machine of today is within.
    assert 1e-5 < device.sustained_teraflops["fp32"] < 1e3
    assert 0.02 < device.bus_gigabytes_per_second < 1e3
    assert 10 < device.decoded_images_per_second < 1e5
    assert 0.01 < device.checkpoint_gigabytes_per_second < 1e2
    assert 0.0 < device.exchange_seconds_per_gigabyte < 100
    assert sorted(path.name for path in tmp_path.iterdir()) == ["machine.json"]


def test_several_ranks_are_started_by_the_command_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    monkeypatch.setattr(commands, "start_ranks", lambda count: started.append(count) or 3)
    arguments = parse(["bench", "machine", "--ranks", "2"])
    assert arguments.run(arguments) == 3
    assert started == [2]


@pytest.mark.parametrize("accumulation", [1, 4])
def test_an_estimated_step_takes_as_long_as_the_measured_one(accumulation: int) -> None:
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
