"""A step never waits for the device: nothing is read back to the host between log steps."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ranks import run_in_ranks
from tests.training.small_engine import CROP_SIZE, small_engine
from vggdist.data.batch import Batch
from vggdist.distributed.process import Process
from vggdist.training.agreement import Agreement
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


def reads_of_a_step(process: Process, precision: str) -> tuple[list[str], list[str]]:
    engine = small_engine(process, micro=2, batch_norm=True, precision=precision)
    agreement, meter = Agreement(engine), Meter(process.device)
    labels = torch.arange(2)
    pixels = torch.randint(256, (2, 3, CROP_SIZE, CROP_SIZE), dtype=torch.uint8)
    batch = Batch(pixels, torch.full((2, 3), 120.0), labels, labels, labels.numpy())

    def step() -> None:
        agreement.begin()
        train_step(engine, [batch] * (4 // process.world_size), meter)
        agreement.end(engine, stop_requested=False)

    step()
    with HostReads() as control:
        meter.sums.sum().item()
    with HostReads() as reads:
        step()
    return control.found, reads.found


@pytest.mark.multi_process
@pytest.mark.parametrize(("world_size", "precision"), [(1, "fp16"), (2, "bf16")])
def test_nothing_is_read_back_to_the_host_in_a_step(world_size, precision):
    for control, reads in run_in_ranks(reads_of_a_step, world_size, precision):
        assert control, "the test would not have noticed a read"
        assert reads == []
