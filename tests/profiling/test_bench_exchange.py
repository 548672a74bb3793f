"""The oracle of the traffic is arithmetic; that of the losses is that all ways train alike."""

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vggdist.distributed import traffic
from vggdist.errors import ConfigError, VggdistError
from vggdist.profiling.exchange import NAMES, measure_exchange, render_exchange
from vggdist.profiling.hosts import Hosts, bits_per_second

SMALL = [
    "model.configuration=[[3-8],[3-16]]",
    "model.fc_width=256",
    "model.num_classes=10",
    "data.crop_size=32",
    "batch.global=8",
    "optimizer.learning_rate=1e-5",
]
FULLY_CONNECTED = ((16 * 49, 256), (256, 256), (256, 10))
CONVOLUTIONS = (3 * 9 * 8 + 8) + (8 * 9 * 16 + 16)


def test_rates_are_those_of_tc() -> None:
    assert bits_per_second("1gbit") == 1e9
    assert bits_per_second("2.5mbit") == 2.5e6
    assert bits_per_second("none") is None
    for wrong in ("fast", "1", "0gbit", "1 gbit", "-1gbit"):
        with pytest.raises(VggdistError, match=r"give a number above 0 with kbit, mbit or gbit"):
            bits_per_second(wrong)


def test_without_root_a_sentence_says_why_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(VggdistError, match=r"network namespaces, which only root can make; run"):
        Hosts("1gbit")


def test_an_unknown_way_is_named_with_those_that_there_are() -> None:
    with pytest.raises(VggdistError, match=r"--only names zero_3; there are ours, ddp_fp32"):
        measure_exchange("none", 1, ["ours", "zero_3"], [])


def test_accumulation_is_refused_since_it_is_not_compared() -> None:
    with pytest.raises(ConfigError, match=r"set batch.global to at most 4"):
        measure_exchange("none", 1, ["ours"], ["batch.global=8", "batch.micro=2"])


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if os.geteuid() != 0 or shutil.which("tc") is None:
        reason = "network namespaces need root and iproute2"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    file = tmp_path_factory.mktemp("bench") / "exchange.json"
    command = [sys.executable, "-m", "vggdist.cli", "bench", "exchange", "--rate", "200mbit"]
    subprocess.run(
        [*command, "--steps", "3", "--json", str(file), *SMALL],
        check=True,
        timeout=280,
        cwd=Path(__file__).resolve().parents[2],
    )
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return result


@pytest.mark.netns
@pytest.mark.slow
def test_every_way_is_measured_and_all_train_alike(measured: dict[str, Any]) -> None:
    assert set(measured) == {"setting", *NAMES}
    for name in NAMES:
        assert set(measured[name]) == {
            "megabytes_per_step", "seconds_per_step", "seconds_of_rounds", "exposed_seconds",
            "loss", "peak_memory_megabytes",
        }  # fmt: skip
        assert measured[name]["seconds_per_step"] > 0
        # ZeRO's bf16 weights lose part of each small update.
        tolerance = 0.1 if name.endswith("_bf16") and "zero" in name else 0.02
        assert measured[name]["loss"] == pytest.approx(measured["ddp_fp32"]["loss"], rel=tolerance)


@pytest.mark.netns
@pytest.mark.slow
def test_the_cable_carries_what_is_computed(measured: dict[str, Any]) -> None:
    matrices = sum((rows + 1) * columns for rows, columns in FULLY_CONNECTED)
    factors = sum(traffic.factor_bytes(*shape, 4, 2, 2) for shape in FULLY_CONNECTED)
    whole = CONVOLUTIONS + matrices
    expected = {
        "ours": factors + traffic.all_reduce_bytes(CONVOLUTIONS, 2, 2),
        "ddp_fp32": traffic.all_reduce_bytes(whole, 2, 4),
        "ddp_bf16": traffic.all_reduce_bytes(whole, 2, 2),
        "deepspeed_0": traffic.all_reduce_bytes(whole, 2, 2),
    }
    for name, number in expected.items():
        megabytes = measured[name]["megabytes_per_step"]
        # Headers and small messages: some kB in each step.
        assert number / 1e6 < megabytes < 1.05 * number / 1e6 + 0.02, name


@pytest.mark.netns
@pytest.mark.slow
def test_nothing_is_left_of_the_hosts(measured: dict[str, Any]) -> None:
    listed = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True)
    assert f"vggdist-{os.getpid()}" not in listed.stdout
    assert measured


SETTING = {
    "configuration": "D", "crop_size": 64, "images_per_rank": 16, "precision": "bf16",
    "rate": "1gbit", "steps": 5, "rounds": 1, "exchange": "auto",
}  # fmt: skip


def _measurement(seconds: list[float]) -> dict[str, Any]:
    return {
        "megabytes_per_step": 30.9, "loss": 6.1, "peak_memory_megabytes": 2800.0,
        "seconds_per_step": statistics.median(seconds), "seconds_of_rounds": seconds,
        "exposed_seconds": 0.25,
    }  # fmt: skip


def test_the_table_shows_each_way_beside_ours() -> None:
    result = {"setting": SETTING, "ours": _measurement([1.5]), "zero_1": _measurement([9.0])}
    lines = render_exchange(result).splitlines()
    assert lines[0] == (
        "configuration D, 16 images of 64 px per rank, bf16, 2 ranks, cable 1gbit, median of 5 "
        "steps"
    )
    assert lines[2].split() == ["vggdist", "30.90", "1.500", "0.250", "1.00", "6.1000", "2800"]
    assert lines[3].split()[-5:] == ["9.000", "0.250", "6.00", "6.1000", "2800"]


def test_rounds_are_compared_one_by_one() -> None:
    result = {
        "setting": SETTING | {"rounds": 3},
        "ours": _measurement([1.0, 2.0, 1.0]),
        "ddp_bf16": _measurement([3.0, 4.0, 2.5]),
    }
    lines = render_exchange(result).splitlines()
    assert lines[0].endswith("median of 5 steps in each of 3 rounds")
    assert " ".join(lines[3].split()).endswith("3.000 0.250 2.50 6.1000 2800 2.00 to 3.00 x ours")
