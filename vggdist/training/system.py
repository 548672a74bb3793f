"""What the main rank's device and host are doing: memory, utilization, power, clock, reading."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

_GB = 1e9
_PROC = Path("/proc")


class SystemReadings:
    """Readings of this process, its host and its device; what cannot be read is left out.

    NVIDIA's management library (NVML) knows the GPU's utilization, power and clock; torch calls it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sources: list[Callable[[], dict[str, float]]] = [
            self._host_memory,
            self._host_load,
            self._process_memory,
            self._reading,
        ]
        if device.type == "cuda":
            self._sources += [
                self._device_memory,
                self._gpu_utilization,
                self._gpu_power,
                self._gpu_clock,
            ]
        self._read_at, self._bytes_read = time.monotonic(), self._bytes()

    def read(self) -> dict[str, float]:
        """Readings by tag, `system/...`."""
        readings: dict[str, float] = {}
        for source in tuple(self._sources):
            try:
                readings |= source()
            # NVML is missing, does not know this GPU or slice of one, or has no permission; /proc
            # may be hidden. Each has errors of its own, and a training needs none of it.
            except Exception as error:
                self._sources.remove(source)
                logger.debug("%s cannot be read: %s", source.__name__, error)
        return {f"system/{name}": value for name, value in readings.items()}

    def _host_memory(self) -> dict[str, float]:
        lines = (_PROC / "meminfo").read_text(encoding="ascii").splitlines()
        kb = {line.partition(":")[0]: int(line.split()[1]) for line in lines}
        return {"host_memory_gb": (kb["MemTotal"] - kb["MemAvailable"]) * 1024 / _GB}

    def _host_load(self) -> dict[str, float]:
        return {"host_load": os.getloadavg()[0] / (os.cpu_count() or 1)}

    def _process_memory(self) -> dict[str, float]:
        pages = int((_PROC / "self/statm").read_text(encoding="ascii").split()[1])
        return {"process_memory_gb": pages * os.sysconf("SC_PAGE_SIZE") / _GB}

    def _reading(self) -> dict[str, float]:
        before, now = self._bytes_read, self._bytes()
        began_at, self._read_at = self._read_at, time.monotonic()
        self._bytes_read = now
        seconds = max(self._read_at - began_at, 1e-9)
        return {
            "read_mb_per_second": (now["rchar"] - before["rchar"]) / seconds / 1e6,
            "disk_read_mb_per_second": (now["read_bytes"] - before["read_bytes"]) / seconds / 1e6,
        }

    def _bytes(self) -> dict[str, int]:
        try:
            lines = (_PROC / "self/io").read_text(encoding="ascii").splitlines()
        except OSError:
            return {}
        return {name: int(count) for name, _, count in (line.partition(": ") for line in lines)}

    def _device_memory(self) -> dict[str, float]:
        return {"device_memory_gb": torch.cuda.memory_reserved(self._device) / _GB}

    def _gpu_utilization(self) -> dict[str, float]:
        return {"gpu_utilization": float(torch.cuda.utilization(self._device))}

    def _gpu_power(self) -> dict[str, float]:
        return {"gpu_power_watts": torch.cuda.power_draw(self._device) / 1000}

    def _gpu_clock(self) -> dict[str, float]:
        return {"gpu_clock_mhz": float(torch.cuda.clock_rate(self._device))}
