"""In a step the host never waits for the GPU: with any precision, network, optimizer, exchange."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed

from tests.training.small_engine import (
    CROP_SIZE,
    State,
    given_gradients,
    relative_difference,
    small_config,
    small_network,
)
from vggdist.config import split_batch
from vggdist.data.batch import Batch
from vggdist.distributed.collectives import Collectives, Wait
from vggdist.distributed.precision import DTYPES
from vggdist.distributed.process import Process
from vggdist.training import engine as engine_module
from vggdist.training.engine import Engine
from vggdist.training.flags import SentFlags, SharedFlags
from vggdist.training.graph import WARM_UP_STEPS, build_step
from vggdist.training.step import Meter
from vggdist.training.zero import build_engine

pytestmark = pytest.mark.gpu

PRECISIONS = ("fp32", "bf16", "fp16")
MICRO, ACCUMULATION, STEPS_BEFORE = 2, 4, WARM_UP_STEPS + 1
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch normalization": {"batch_norm": True, "dropout": 0.5},
    "gradient clipping": {"clip": 0.05},
    "LARS": {"optimizer": {"name": "lars", "learning_rate": 0.1}},
    "CUDA graph": {"cuda_graph": True},
}


@contextmanager
def waiting_forbidden(device: torch.device) -> Iterator[None]:
    """Whatever makes the host wait for the GPU raises an error."""
    synchronize = torch.cuda.synchronize

    def refuse(*_: object) -> None:
        raise AssertionError("the host waits for the whole GPU")

    torch.cuda.synchronize = refuse
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.synchronize = synchronize
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def build(process: Process, world_size: int = 1, **changes: Any) -> Engine:
    """An engine that takes `ACCUMULATION` micro batches a step, as one of `world_size` ranks."""
    config = small_config(micro=MICRO, **changes)
    split = replace(split_batch(config.batch, 1), world_size=world_size)
    return build_engine(small_network(config), config, split, process)


def take_steps(
    process: Process,
    engine: Engine,
    num_steps: int,
    before_the_last: Callable[[], None] = lambda: None,
) -> SentFlags:
    """Some steps in which the host may wait, then `num_steps` in which it may not."""
    device = process.device
    flags, meter = SharedFlags(engine), Meter(device)
    take = build_step(engine, engine.config, process, meter)
    shape = (ACCUMULATION, MICRO, CROP_SIZE, CROP_SIZE, 3)
    pixels = torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).byte()
    labels = torch.arange(MICRO).to(device)
    batches = [
        Batch(
            images.to(device).permute(0, 3, 1, 2),
            torch.full((MICRO, 3), 120.0, device=device),
            labels,
            labels,
            np.arange(MICRO),
            DTYPES[engine.config.resolved_precision],
            std=(58.4, 57.1, 57.4),
        )
        for images in pixels
    ]

    def step(number: int) -> SentFlags:
        engine.optimizer.set_learning_rate(1e-6)  # the weights stay, and with them the gradients
        flags.begin()
        # New ones, because a batch keeps the images that it has made.
        take(replace(batch) for batch in batches)
        return SentFlags(flags.end(engine, stop_requested=False), number)

    for number in range(STEPS_BEFORE):
        step(number).read()
    with waiting_forbidden(device):
        for number in range(num_steps):
            if number == num_steps - 1:
                before_the_last()
            sent = step(number)
    return sent


class TwoAlike(Collectives):
    """What two ranks with the same images would get from each other, of which one is there."""

    def __init__(self, device: torch.device) -> None:
        self.world_size = 2

    def all_reduce(self, flat: Tensor) -> Wait:
        flat.mul_(2)
        work = distributed.all_reduce(flat, async_op=True)
        assert work is not None
        return work.wait

    def all_gather(self, own: Tensor) -> tuple[Tensor, Wait]:
        return torch.cat([own, own]), lambda: None


def gradients_of_exchanges(process: Process, precision: str, num_steps: int) -> dict[str, State]:
    """Way -> the gradients in the last step, for one rank and for each exchange of two alike."""
    gradients: dict[str, State] = {}
    for way in ("alone", "all_reduce", "factors"):
        alone = way == "alone"
        engine_module.Collectives = Collectives if alone else TwoAlike  # type: ignore[misc]
        exchange = "auto" if alone else way
        engine = build(process, 1 if alone else 2, precision=precision, exchange=exchange)
        noted: State = {}

        def note(engine: Engine = engine, noted: State = noted) -> None:
            engine.optimizer.register_step_pre_hook(
                lambda *_: noted.update(given_gradients(engine))
            )

        assert not take_steps(process, engine, num_steps, before_the_last=note).read().failed
        gradients[way] = {name: one.cpu() for name, one in noted.items()}
    return gradients


@dataclass
class Seen:
    """What one process has seen, which takes seconds to start."""

    control: bool = False
    """Whether waiting is an error."""
    problems: dict[tuple[str, str], str] = field(default_factory=dict)
    """Precision and variant -> what went wrong; empty: nothing."""
    gradients: dict[str, dict[str, State]] = field(default_factory=dict)
    """Precision -> way -> gradients."""


def see_all(process: Process, num_steps: int) -> Seen:
    seen = Seen()
    try:
        with waiting_forbidden(process.device):
            torch.ones(1, device=process.device).item()
    except RuntimeError:
        seen.control = True
    for precision in PRECISIONS:  # fp32 first: DeepSpeed remembers a precision
        for name, changes in VARIANTS.items():
            seen.problems[precision, name] = ""
            try:
                engine = build(process, precision=precision, **changes)
                flags = take_steps(process, engine, num_steps).read()
                if flags.failed or flags.stop:
                    seen.problems[precision, name] = str(flags)
            except Exception:
                seen.problems[precision, name] = traceback.format_exc()
        if precision != "fp16":
            seen.gradients[precision] = gradients_of_exchanges(process, precision, num_steps)
    return seen


@pytest.fixture(scope="module")
def seen(in_ranks: Callable[..., list[Any]], rehearsal: bool) -> Seen:
    (found,) = in_ranks(see_all, 1, 1 if rehearsal else 6)
    assert isinstance(found, Seen)
    return found


def test_a_wait_would_be_seen(seen, device):
    assert seen.control == (device.type == "cuda")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_step_waits_for_the_gpu(precision, variant, seen):
    assert not seen.problems[precision, variant], seen.problems[precision, variant]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_exchange_waits_and_two_ranks_alike_get_the_gradients_of_one(precision, seen, figure):
    gradients = seen.gradients[precision]
    # bf16: matrices are rounded to 8 bits on their way; of factors, the products of one are.
    tolerance = 1e-4 if precision == "fp32" else 2.0**-6
    for way in ("all_reduce", "factors"):
        difference = relative_difference(gradients[way], gradients["alone"])
        figure(f"largest relative difference, {way}", difference)
        assert difference < tolerance
