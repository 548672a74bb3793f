"""The names are those that drivers give; the figures are NVIDIA's data sheets'."""

import pytest

from vggdist.config import Precision
from vggdist.distributed.peak import peak_teraflops


@pytest.mark.parametrize(
    ("name", "precision", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H100 NVL", "tf32", 417),
        ("NVIDIA H200", "fp32", 67),
        ("NVIDIA GH200 480GB", "bf16", 989),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100 80GB PCIe", "fp32", 19.5),
        ("NVIDIA A100-PCIE-40GB", "tf32", 156),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA L4", "fp16", 121),
        ("NVIDIA A10", "bf16", 125),
        ("Tesla T4", "fp16", 65),
        ("Tesla V100-SXM2-32GB", "fp16", 125),
        ("Tesla V100-PCIE-16GB", "fp32", 14),
        ("Tesla P100-PCIE-16GB", "fp32", 9.3),
    ],
)
def test_gpus_are_known_by_the_names_of_their_drivers(
    name: str, precision: Precision, teraflops: float
) -> None:
    assert peak_teraflops(name, precision) == teraflops


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16"),  # a seventh of it
        ("Tesla V100-SXM2-32GB", "bf16"),  # emulated
        ("NVIDIA GeForce RTX 3090", "bf16"),
        ("NVIDIA A100X", "bf16"),
        ("a pretended GPU", "fp32"),
    ],
)
def test_of_what_is_not_in_the_table_nothing_is_said(name: str, precision: Precision) -> None:
    assert peak_teraflops(name, precision) is None
