"""Compiled convolutions; the oracle is the network as it is."""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch._dynamo.utils import counters

from tests.ranks import run_in_ranks
from tests.training.graphed_steps import on_device
from tests.training.small_engine import (
    engine_step,
    equal,
    momentum_of,
    small_engine,
    weights_of,
    whole_difference,
)
from tests.training.small_training import GLOBAL_BATCH, batch_of, part_of
from vggdist.distributed.process import Process
from vggdist.training.step import Meter, train_step

pytestmark = [pytest.mark.slow, pytest.mark.multi_process]

NUM_STEPS, NUM_MICRO = 4, 2


def compiled_and_not(process: Process, precision: str, backend: str) -> dict[str, Any]:
    """A training without and with `compile`, and how many graphs the compiler has made of it."""
    torch.compile = partial(torch.compile, backend=backend)
    changes = {"precision": precision, "batch_norm": True, "dropout": 0.5}
    micro = GLOBAL_BATCH // process.world_size // NUM_MICRO
    found: dict[str, Any] = {}
    for compiled in (False, True):
        engine = small_engine(process, compile=compiled, micro=micro, **changes)
        assert engine.compiled == compiled
        at_start, meter = counters["stats"]["unique_graphs"], Meter(process.device)
        own: dict[str, Any] = {"before": weights_of(engine)}
        for step in range(NUM_STEPS):
            batch, first = batch_of(step, GLOBAL_BATCH), process.rank * NUM_MICRO * micro
            parts = [
                part_of(batch, start, start + micro)
                for start in range(first, first + NUM_MICRO * micro, micro)
            ]
            train_step(
                engine, [on_device(part, process.device, precision) for part in parts], meter
            )
        own |= {"losses": meter.sums[0].item(), "weights": weights_of(engine)}
        own["momentum"] = momentum_of(engine)
        engine.eval()
        for side in (32, 48, 64):
            engine.module.maps(torch.zeros(1, 3, side, side, device=process.device))
        own["graphs"] = counters["stats"]["unique_graphs"] - at_start
        found["compiled" if compiled else "plain"] = own
    return found


# In bf16 without the compiler's back end, which takes half a minute more.
@pytest.mark.parametrize(
    ("world_size", "precision", "backend", "tolerance"),
    [(2, "fp32", "inductor", 1e-4), (1, "bf16", "aot_eager", 0.05)],
)
def test_compiled_convolutions_train_alike_up_to_rounding(
    world_size: int, precision: str, backend: str, tolerance: float
) -> None:
    ranks = run_in_ranks(compiled_and_not, world_size, precision, backend)
    for found in ranks:
        plain, compiled = found["plain"], found["compiled"]
        assert equal(compiled["before"], plain["before"]), "trying them leaves nothing behind"
        assert compiled["losses"] == pytest.approx(plain["losses"], rel=tolerance)
        difference = whole_difference(compiled["weights"], plain["weights"], plain["before"])
        assert difference < tolerance
        assert compiled["graphs"] == 0, "all is compiled at the start, and no evaluation is"
        assert equal(compiled["momentum"], ranks[0]["compiled"]["momentum"])


class Said(logging.Handler):
    """Warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        logging.getLogger("vggdist").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def without_a_compiler(process: Process, broken: str, cache: Path) -> dict[str, Any]:
    """Rank 1 has no C++ compiler, or one that fails; the other has one."""
    if process.rank == 1:
        os.environ |= {"CXX": broken, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
        torch._inductor.config.cpp.cxx = (broken,)  # it has read the variable
    else:
        torch.compile = partial(torch.compile, backend="eager")
    said, plain = Said(), small_engine(process)
    engine = small_engine(process, compile=True)
    for step in range(2):
        engine_step(engine, process, step)
        engine_step(plain, process, step)
    same = equal(weights_of(engine), weights_of(plain))
    return {"compiled": engine.compiled, "said": said.lines, "same": same}


@pytest.mark.parametrize("broken", ["no-such-compiler", "false"])
def test_where_one_rank_cannot_compile_none_does_and_a_sentence_says_why(
    tmp_path: Path, broken: str
) -> None:
    lines = []
    for found in run_in_ranks(without_a_compiler, 2, broken, tmp_path):
        assert not found["compiled"]
        assert found["same"], "not a bit is changed"
        (line,) = found["said"]
        assert line.startswith("compile: true has no effect here: ")
        assert line.endswith(". The convolutions run as they are.")
        lines.append(line)
    assert lines[0] == lines[1], "the main rank alone speaks, whichever has the problem"
