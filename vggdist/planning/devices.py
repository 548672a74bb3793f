"""What the cost model knows of machines: published figures of GPUs, or a file that was measured.

`vggdist bench machine` writes such a file. What no one has published is an estimate, and its
`source` says so.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import Field

from vggdist.config import Positive, Precision
from vggdist.config_file import validate
from vggdist.distributed.peak import PEAK_TERAFLOPS
from vggdist.errors import ConfigError
from vggdist.section import Section


class Device(Section):
    """A device, GPU or a rank's share of a CPU, and the node around it."""

    name: str
    source: str = Field(description="Where the figures come from.")
    peak_teraflops: dict[Precision, Positive] = Field(
        {}, description="Published, a multiply-add being two operations."
    )
    sustained_teraflops: dict[Precision, Positive] = Field(
        min_length=1,
        description="Of a VGG network in training, everything that the layers do included; with "
        "Winograd's algorithm it may exceed the peak.",
    )
    memory_gigabytes: Positive
    memory_gigabytes_per_second: Positive = Field(description="As large copies reach it.")
    bus_gigabytes_per_second: Positive = Field(
        description="Rate at which each rank of a node sends in a ring of the node's ranks."
    )
    bus_latency_microseconds: float = Field(ge=0.0, description="Of a ring's step in a node.")
    network_latency_microseconds: float = Field(
        ge=0.0, description="Of a ring's step between nodes."
    )
    exchange_seconds_per_gigabyte: float = Field(
        0.0,
        ge=0.0,
        description="By how much the arithmetic is held up by each gigabyte that a rank sends; on "
        "a CPU the same cores do both.",
    )
    fresh_seconds_per_gigabyte: float = Field(
        0.0,
        ge=0.0,
        description="What memory that the system has just given costs, beyond its use. Our steps "
        "keep what they have; other programs on a CPU often do not.",
    )
    step_spread: float = Field(
        0.02,
        ge=0.0,
        lt=1.0,
        description="Standard deviation of a rank's time for a step, as a share of it.",
    )
    decoded_images_per_second: Positive = Field(
        900.0, description="Images that one CPU core makes ready for the network."
    )
    host_gigabytes_per_second: Positive = Field(
        12.0, description="Rate of copies from the device into pinned memory of the host."
    )
    checkpoint_gigabytes_per_second: Positive = Field(
        1.0, description="Rate at which a checkpoint is written, hashed and flushed."
    )
    num_cores: int | None = Field(None, ge=1, description="CPU cores of a node; none: not known.")
    cores_compute: bool = Field(
        False,
        description="Whether the cores that make images ready do the arithmetic too; gloo then "
        "exchanges gradients, else NCCL.",
    )

    @property
    def memory_rate(self) -> float:
        """Bytes per second."""
        return self.memory_gigabytes_per_second * 1e9

    @property
    def fastest_precision(self) -> Precision:
        """With the highest sustained rate; of equal ones bf16, which needs no loss scale."""
        rates = self.sustained_teraflops
        return max(rates, key=lambda precision: (rates[precision], precision == "bf16"))

    def teraflops(self, precision: Precision) -> tuple[float, Precision]:
        """The sustained rate, and the arithmetic that it was measured in, the nearest there is."""
        order: tuple[Precision, ...] = ("bf16", "fp16", "tf32", "fp32")
        nearest = [precision, *(order if precision in ("bf16", "fp16") else order[::-1])]
        known = next(name for name in nearest if name in self.sustained_teraflops)
        return self.sustained_teraflops[known], known


# Latencies of a ring's step: NCCL's own model of them (src/graph/tuning.cc, ring, simple
# protocol): 3.4 us over NVLink, 5.7 over PCIe, 14 over a network. Memory: 80 % of the published
# rate. Bus: 80 % of NVLink's published rate in one direction. Host: 80 % of PCIe's with 16 lanes
# (3.0, 4.0, 5.0).
_NVLINK, _PCIE, NETWORK_LATENCY_MICROSECONDS = 3.4, 5.7, 14.0

DEVICES = {
    "h100": Device(
        name="H100 SXM",
        source="data sheet; sustained rates are estimates (no rate of VGG-16 is published): 65 % "
        "of the peak for the products, 0.33 GB an image for what lies between them",
        peak_teraflops=PEAK_TERAFLOPS["H100"],
        sustained_teraflops={"bf16": 350.0, "fp16": 350.0, "tf32": 175.0, "fp32": 45.0},
        memory_gigabytes=80.0,
        memory_gigabytes_per_second=2680.0,
        bus_gigabytes_per_second=360.0,
        host_gigabytes_per_second=50.0,
        bus_latency_microseconds=_NVLINK,
        network_latency_microseconds=NETWORK_LATENCY_MICROSECONDS,
    ),
    "a100": Device(
        name="A100 SXM, 80 GB",
        source="data sheet; sustained rates are estimates (no rate of VGG-16 is published): 75 % "
        "of the peak for the products, 0.33 GB an image for what lies between them",
        peak_teraflops=PEAK_TERAFLOPS["A100"],
        sustained_teraflops={"bf16": 155.0, "fp16": 155.0, "tf32": 77.0, "fp32": 15.0},
        memory_gigabytes=80.0,
        memory_gigabytes_per_second=1630.0,
        bus_gigabytes_per_second=240.0,
        host_gigabytes_per_second=25.0,
        bus_latency_microseconds=_NVLINK,
        network_latency_microseconds=NETWORK_LATENCY_MICROSECONDS,
    ),
    "v100": Device(
        name="V100 SXM2",
        source="data sheet; sustained rates are estimates: fp32 1.4 times a P100 (Dell EMC, Deep "
        "Learning on V100, 2017), fp16 twice that",
        peak_teraflops=PEAK_TERAFLOPS["V100-SXM2"],
        sustained_teraflops={"fp16": 40.6, "fp32": 20.3},
        memory_gigabytes=16.0,
        memory_gigabytes_per_second=720.0,
        bus_gigabytes_per_second=120.0,
        bus_latency_microseconds=_NVLINK,
        network_latency_microseconds=NETWORK_LATENCY_MICROSECONDS,
    ),
    "p100": Device(
        name="P100",
        source="data sheet; 154 images/s of VGG-16 at batch 64 in fp32 (tensorflow.org, "
        "Benchmarks, May 2017); bus as PCIe 3.0",
        peak_teraflops=PEAK_TERAFLOPS["P100-SXM2"],
        sustained_teraflops={"fp32": 14.5},
        memory_gigabytes=16.0,
        memory_gigabytes_per_second=586.0,
        bus_gigabytes_per_second=10.0,
        bus_latency_microseconds=_PCIE,
        network_latency_microseconds=NETWORK_LATENCY_MICROSECONDS,
    ),
    "cpu": Device(
        name="2 CPU cores",
        source="measured on two cores of a virtual machine (AMD EPYC, Zen 4) in November 2026 with "
        "bench step, bench data and bench machine; the latter measures yours",
        peak_teraflops={},
        sustained_teraflops={"bf16": 0.32, "fp32": 0.18},
        memory_gigabytes=12.0,
        memory_gigabytes_per_second=15.0,
        bus_gigabytes_per_second=0.8,
        bus_latency_microseconds=190.0,
        network_latency_microseconds=190.0,
        exchange_seconds_per_gigabyte=0.3,
        checkpoint_gigabytes_per_second=0.2,
        cores_compute=True,
    ),
}


def load_device(name: str) -> Device:
    """A device by its name in `DEVICES`, or from a file of `vggdist bench machine`.

    Raises:
        ConfigError: neither, or a file that cannot be used; lists every problem of it.
    """
    if name in DEVICES:
        return DEVICES[name]
    path = Path(name)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"--device {name} is neither {', '.join(DEVICES)} nor a file; `vggdist bench machine "
            "--out FILE` writes one about this machine."
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"--device {name} cannot be read as JSON: {error}.") from error
    hint = "which does not describe a device; `vggdist bench machine --out FILE` writes such a file"
    return validate(Device, values, f"--device {name}, {hint}")
