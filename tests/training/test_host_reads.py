"""A step never waits for the device: between log steps nothing is read back to the host, nothing is
copied from it, and DeepSpeed does not synchronize."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ranks import run_in_ranks
from tests.training.small_engine import CROP_SIZE, small_engine
from vggdist.data.batch import Batch
from vggdist.distributed.process import Process
from vggdist.training.flags import SharedFlags
from vggdist.training.step import Meter, train_step

READS = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::item", "aten::equal"}


class HostReads(TorchDispatchMode):
    """Notes every operator by which the host would wait for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.name().split(".")[0] in READS:
            self.found.append(func.name())
        return func(*args, **(kwargs or {}))


def reads_of_a_step(
    process: Process, precision: str, changes: dict[str, Any]
) -> tuple[list[str], list[str]]:
    engine = small_engine(process, micro=2, batch_norm=True, precision=precision, **changes)
    forbid_synchronization()
    flags, meter = SharedFlags(engine), Meter(process.device)
    labels = torch.arange(2)
    pixels = torch.randint(256, (2, 3, CROP_SIZE, CROP_SIZE), dtype=torch.uint8)
    batch = Batch(
        pixels, torch.full((2, 3), 120.0), labels, labels, labels.numpy(), std=(58.4, 57.1, 57.4)
    )

    def step() -> None:
        flags.begin()
        train_step(engine, [batch] * (4 // process.world_size), meter)
        flags.end(engine, stop_requested=False)

    for _ in range(4):  # DeepSpeed's throughput timer would begin with the third
        step()
    with HostReads() as control:
        meter.sums.sum().item()
    with HostReads() as reads:
        step()
    return control.found, reads.found


def forbid_synchronization() -> None:
    from deepspeed.accelerator import get_accelerator

    def synchronize(*_: object) -> None:
        raise AssertionError("DeepSpeed waits for the device")

    get_accelerator().synchronize = synchronize


@pytest.mark.multi_process
@pytest.mark.parametrize(
    ("world_size", "precision", "changes"),
    [
        (1, "fp16", {"clip": 0.05}),
        (2, "fp32", {"clip": 0.05, "exchange": "factors"}),
    ],
)
def test_nothing_is_read_back_to_the_host_in_a_step(world_size, precision, changes):
    for control, reads in run_in_ranks(reads_of_a_step, world_size, precision, changes):
        assert control, "the test would not have noticed a read"
        assert reads == []


PACKAGE = Path(__file__).parents[2] / "vggdist"
OF_A_STEP = (
    *(PACKAGE / "layers").glob("*.py"),
    *(
        PACKAGE / "training" / f"{name}.py"
        for name in ("step", "flags", "gradients", "factors", "product", "optimizer")
    ),
    PACKAGE / "data" / "batch.py",
    PACKAGE / "model" / "vgg.py",
)


def copies_from_the_host(source: str) -> Iterator[str]:
    """Lines that make a tensor of Python's numbers, each a copy that a GPU's host waits for."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            is_made = node.func.attr == "new_tensor" or (
                node.func.attr in ("tensor", "as_tensor")
                and any(keyword.arg == "device" for keyword in node.keywords)
            )
        elif isinstance(node, ast.Assign):
            targets = [
                part
                for target in node.targets
                for part in (target.elts if isinstance(target, ast.Tuple) else [target])
            ]
            is_made = any(
                isinstance(target, ast.Subscript)
                and isinstance(target.slice, ast.Constant | ast.UnaryOp | ast.Slice | ast.Tuple)
                and not isinstance(getattr(target.slice, "value", None), str)
                for target in targets
            )
        else:
            continue
        if is_made:
            yield f"line {node.lineno}: {ast.unparse(node)}"


def test_the_rule_knows_a_copy_from_the_host_when_it_sees_one():
    bad = ("flat[0] = 1.0", "flat[0], flat[1] = a, b", "x.new_tensor(v)", "f[:2] = 0")
    good = ("group['lr'] = 1.0", "state[name] = v", "flat[0:1].fill_(1.0)", "torch.tensor(v)")
    assert [len(list(copies_from_the_host(line))) for line in bad] == [1] * len(bad)
    assert [len(list(copies_from_the_host(line))) for line in good] == [0] * len(good)


@pytest.mark.parametrize("file", OF_A_STEP, ids=lambda file: file.stem)
def test_no_number_is_copied_from_the_host_in_a_step(file):
    assert list(copies_from_the_host(file.read_text(encoding="utf-8"))) == []
