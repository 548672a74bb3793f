"""The oracle on a CPU is psutil; of a GPU, what torch is made to say of one."""

import os
from pathlib import Path

import psutil
import pytest
import torch

from vggdist.training import system
from vggdist.training.system import SystemReadings

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
HOST = {
    "system/host_memory_gb",
    "system/host_load",
    "system/process_memory_gb",
    "system/read_mb_per_second",
    "system/disk_read_mb_per_second",
}


def test_a_host_without_a_gpu_tells_memory_load_and_reading(tmp_path: Path) -> None:
    readings = SystemReadings(CPU)
    (tmp_path / "file").write_bytes(bytes(8_000_000))
    (tmp_path / "file").read_bytes()
    found = readings.read()
    assert found.keys() == HOST
    memory = psutil.virtual_memory()
    assert found["system/host_memory_gb"] == pytest.approx(
        (memory.total - memory.available) / 1e9, rel=0.2
    )
    own = psutil.Process().memory_info().rss
    assert found["system/process_memory_gb"] == pytest.approx(own / 1e9, rel=0.1)
    assert 0.0 <= found["system/host_load"] < 1000.0
    assert found["system/read_mb_per_second"] > 0.0
    again = readings.read()
    assert again["system/read_mb_per_second"] < found["system/read_mb_per_second"]


def test_a_gpu_tells_what_torch_reads_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 3 * 10**9)
    monkeypatch.setattr(torch.cuda, "utilization", lambda _: 97)
    monkeypatch.setattr(torch.cuda, "power_draw", lambda _: 650_000)
    monkeypatch.setattr(torch.cuda, "clock_rate", lambda _: 1980)
    found = SystemReadings(GPU).read()
    assert {name: found[name] for name in found.keys() - HOST} == {
        "system/device_memory_gb": 3.0,
        "system/gpu_utilization": 97.0,
        "system/gpu_power_watts": 650.0,
        "system/gpu_clock_mhz": 1980.0,
    }


def test_what_cannot_be_read_is_asked_once_and_left_out_in_silence(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def missing(_: torch.device) -> int:
        asked.append("utilization")
        raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")

    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 3 * 10**9)
    for name in ("utilization", "power_draw", "clock_rate"):
        monkeypatch.setattr(torch.cuda, name, missing)
    monkeypatch.setattr(system, "_PROC", Path("/nowhere"))
    monkeypatch.setattr(os, "getloadavg", lambda: (1.0, 1.0, 1.0))
    readings = SystemReadings(GPU)
    for _ in range(2):
        assert readings.read().keys() == {"system/host_load", "system/device_memory_gb"}
    assert len(asked) == 3
    assert capfd.readouterr() == ("", "")
