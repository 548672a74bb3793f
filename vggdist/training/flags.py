"""Flags that the ranks share in every step, in one tiny all-reduce: whether any rank was asked to
stop, whether any found a bad image, and batch statistics. In an evaluation, only the request to
stop.

Batch normalization's running statistics differ between ranks after every forward pass. They are
averaged in every step, so that evaluations and checkpoints find the same values on all ranks. After
a masked update they are restored, so that no bad values remain. Those of frozen layers never
change.
"""

import itertools
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, distributed

from vggdist.distributed.process import Process, all_agree, sum_over_ranks
from vggdist.errors import StoppedError
from vggdist.training.engine import Engine, normalizations
from vggdist.training.signals import NOTHING_SAVED, STARTING, StopSignal

T = TypeVar("T")

NUM_FLAGS = 4
"""Of a step, in the order of `StepFlags`."""


class SharedFlags:
    """The end of a step: one flat tensor holds the ranks' requests and all running statistics."""

    def __init__(self, engine: Engine) -> None:
        statistics = [
            (module, name)
            for module in normalizations(engine.module, trained=True)
            for name in ("running_mean", "running_var")
        ]
        sizes = [module.get_buffer(name).numel() for module, name in statistics]
        self._flat = torch.zeros(sum(sizes) + 2, device=engine.device)
        # First, so that with the usual widths each is as aligned as a separate tensor.
        self._statistics, self._requests = self._flat[:-2], self._flat[-2:]
        # The modules' buffers become views, so that averaging needs no copies.
        start = 0
        for (module, name), size in zip(statistics, sizes, strict=True):
            view = self._statistics[start : start + size]
            view.copy_(module.get_buffer(name))
            setattr(module, name, view)
            start += size
        self._kept = self._statistics.clone()

    def begin(self) -> None:
        """Saves the statistics before the step."""
        self._kept.copy_(self._statistics)

    def end(self, engine: Engine, stop_requested: bool, found_bad: bool = False) -> Tensor:
        """The step's flags as float (4,) on the device, the same on all ranks: those of `StepFlags`
        without the step's number.

        Args:
            engine: after its step.
            stop_requested: whether this rank was asked to stop.
            found_bad: whether this rank found a bad image.
        """
        # Not `[0] = ...`, a copy from the host, which waits for the device.
        self._requests[0:1].fill_(float(stop_requested))
        self._requests[1:2].fill_(float(found_bad))
        world_size = distributed.get_world_size()
        if world_size > 1:
            distributed.all_reduce(self._flat)
            self._statistics.div_(world_size)
        torch.where(engine.masked > 0, self._kept, self._statistics, out=self._statistics)
        return torch.cat([engine.failed, engine.masked, self._requests])


class StepFlags(NamedTuple):
    """The flags of a step, the same on all ranks."""

    step: int
    """Its number."""
    failed: bool
    """Training must stop: a loss or gradient was not finite."""
    masked: bool
    """The update was skipped."""
    stop: bool
    """A rank was asked to stop."""
    found_bad: bool
    """A rank found a bad image."""
    sums: tuple[float, ...] = ()
    """This rank's own: those of `Meter`, where they were pushed with the flags."""


def until_stopped(
    batches: Iterator[T], num_rounds: int, stop: StopSignal, device: torch.device
) -> Iterator[T]:
    """This rank's batches of an evaluation, until any rank is asked to stop; collective.

    Args:
        num_rounds: batches of the rank that has the most.

    Raises:
        StoppedError: a rank was asked to stop; raised on all ranks after the same number of
            batches: the current one, or on a GPU the next.
    """
    delayed = DelayedFlags(device)
    for number in range(num_rounds):
        yield from itertools.islice(batches, 1)
        flags = torch.zeros(NUM_FLAGS, device=device)
        # `StepFlags.stop`. Not `[2] = ...`, a copy from the host, which waits for the device.
        flags[2:3].fill_(float(stop.requested))
        _end_evaluation(delayed.push(sum_over_ranks(flags), number))
    _end_evaluation(delayed.flush())


def _end_evaluation(flags: StepFlags | None) -> None:
    if flags is not None and flags.stop:
        raise StoppedError("stopped in an evaluation; the same command continues.")


def end_if_asked(stop: StopSignal, process: Process) -> None:
    """Ends all ranks if any has received a signal before there was anything to save; collective."""
    if not all_agree(not stop.requested, process.device):
        raise StoppedError(NOTHING_SAVED)


def first_of(batches: Iterator[T], stop: StopSignal, process: Process) -> Iterator[T]:
    """The same batches once the first is there, for which a signal does not wait; collective.

    Raises:
        StoppedError: on all ranks, if any has been asked to stop until then.
    """
    first: list[T] = []
    with suppress(StoppedError), stop.answering(STARTING):
        first = stop.run(list, itertools.islice(batches, 1))
    end_if_asked(stop, process)
    return itertools.chain(first, batches)


class SentFlags:
    """A step's flags being copied to the host, which reads them a step later without waiting."""

    def __init__(self, flags: Tensor, step: int) -> None:
        self._flags, self._step = flags, step
        self._event: torch.cuda.Event | None = None
        if flags.is_cuda:
            self._flags = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
            self._flags.copy_(flags, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def read(self) -> StepFlags:
        """The flags, once the copy is done."""
        if self._event is not None:
            self._event.synchronize()
        values = self._flags.tolist()
        failed, masked, stop, found_bad = (flag > 0 for flag in values[:NUM_FLAGS])
        sums = tuple(values[NUM_FLAGS:])
        return StepFlags(self._step, failed, masked, stop, found_bad, sums)


class DelayedFlags:
    """Returns each step's flags one step later, when the host need not wait for a GPU; those of a
    CPU at once.
    """

    def __init__(self, device: torch.device) -> None:
        self._delays = device.type != "cpu"
        self._latest: SentFlags | None = None

    def push(self, flags: Tensor, step: int) -> StepFlags | None:
        """Takes the flags of this step, and its sums behind them; returns those that can be read,
        if there are any.
        """
        before, self._latest = self._latest, SentFlags(flags, step)
        if not self._delays:
            return self.flush()
        return None if before is None else before.read()

    def flush(self) -> StepFlags | None:
        """The flags of this step: waits for the device."""
        latest, self._latest = self._latest, None
        return None if latest is None else latest.read()
