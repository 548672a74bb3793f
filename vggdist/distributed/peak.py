"""The arithmetic that GPUs can do at most, by their data sheets. No torch."""

import re

from vggdist.config import Precision

PEAK_TERAFLOPS: dict[str, dict[Precision, float]] = {
    "B200": {"bf16": 2250.0, "fp16": 2250.0, "tf32": 1125.0},
    "H200 NVL": {"bf16": 835.0, "fp16": 835.0, "tf32": 417.0, "fp32": 60.0},
    "H100 NVL": {"bf16": 835.0, "fp16": 835.0, "tf32": 417.0, "fp32": 60.0},
    "H100 PCIe": {"bf16": 756.0, "fp16": 756.0, "tf32": 378.0, "fp32": 51.0},
    "H100": {"bf16": 989.0, "fp16": 989.0, "tf32": 494.0, "fp32": 67.0},
    "H200": {"bf16": 989.0, "fp16": 989.0, "tf32": 494.0, "fp32": 67.0},
    "GH200": {"bf16": 989.0, "fp16": 989.0, "tf32": 494.0, "fp32": 67.0},
    "A100": {"bf16": 312.0, "fp16": 312.0, "tf32": 156.0, "fp32": 19.5},
    "L40S": {"bf16": 362.0, "fp16": 362.0, "tf32": 183.0, "fp32": 91.6},
    "L4": {"bf16": 121.0, "fp16": 121.0, "tf32": 60.0, "fp32": 30.3},
    "A10": {"bf16": 125.0, "fp16": 125.0, "tf32": 62.5, "fp32": 31.2},
    "T4": {"fp16": 65.0, "fp32": 8.1},
    "V100-SXM2": {"fp16": 125.0, "fp32": 15.7},
    "V100-PCIE": {"fp16": 112.0, "fp32": 14.0},
    "P100-SXM2": {"fp16": 21.2, "fp32": 10.6},
    "P100-PCIE": {"fp16": 18.7, "fp32": 9.3},
}
"""What is in the name of a GPU -> TFLOPS with dense matrices, a multiply-add being two operations;
the first that fits."""


def peak_teraflops(name: str, precision: Precision) -> float | None:
    """Of a GPU, by the name that its driver gives, such as NVIDIA A100-SXM4-80GB.

    None if it is not known: of other GPUs, of precisions that a GPU emulates, and of parts of a
    GPU (MIG).
    """
    if re.search(r"\bMIG\b", name):
        return None
    for key, rates in PEAK_TERAFLOPS.items():
        if re.search(rf"\b{key}\b", name):
            return rates.get(precision)
    return None
