"""What the ranks tell each other in every step, in one tiny all-reduce: whether one wants to stop,
whether one found a bad image, and batch statistics.

Batch normalization's running statistics differ between ranks after every forward pass. Averaged in
every step, they are the same everywhere, whenever an evaluation or a checkpoint wants them; and
where the update was masked they go back to what they were, so that nothing bad stays in them. Those
of frozen layers never change.
"""

from typing import NamedTuple

import torch
from torch import Tensor, distributed

from vggdist.training.engine import Engine, normalizations


class Agreement:
    """The end of a step: one flat tensor holds the ranks' requests and all running statistics."""

    def __init__(self, engine: Engine) -> None:
        statistics = [
            (module, name)
            for module in normalizations(engine.module, trained=True)
            for name in ("running_mean", "running_var")
        ]
        sizes = [module.get_buffer(name).numel() for module, name in statistics]
        self._flat = torch.zeros(sum(sizes) + 2, device=engine.device)
        # First, so that with the usual widths each lies as aligned as a tensor of its own.
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
        """Keeps the statistics as they are before the step."""
        self._kept.copy_(self._statistics)

    def end(self, engine: Engine, stop_requested: bool, found_bad: bool = False) -> Tensor:
        """The step's `Flags` as float (4,) on the device, the same on all ranks.

        Args:
            engine: after its step.
            stop_requested: whether this rank wants to stop.
            found_bad: whether this rank met an image that it could not use.
        """
        # Not `[0] = ...`: that is a copy from the host, which waits for the device.
        self._requests[0:1].fill_(float(stop_requested))
        self._requests[1:2].fill_(float(found_bad))
        world_size = distributed.get_world_size()
        if world_size > 1:
            distributed.all_reduce(self._flat)
            self._statistics.div_(world_size)
        torch.where(engine.masked > 0, self._kept, self._statistics, out=self._statistics)
        return torch.cat([engine.failed, engine.masked, self._requests])


class Flags(NamedTuple):
    """What all ranks know of a step."""

    failed: bool
    """Training must stop: a loss or gradient was not finite."""
    masked: bool
    """The update was left out."""
    stop: bool
    """A rank wants to stop."""
    found_bad: bool
    """A rank met an image that it could not use."""


class Verdict:
    """A step's agreed flags on their way to the host, which reads them a step later, unwaiting."""

    def __init__(self, flags: Tensor, step: int) -> None:
        self.step = step
        self._event: torch.cuda.Event | None = None
        if flags.is_cuda:
            self._flags = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
            self._flags.copy_(flags, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()
        else:
            self._flags = flags

    def read(self) -> Flags:
        """The flags, once the device has come to them."""
        if self._event is not None:
            self._event.synchronize()
        return Flags(*(value > 0 for value in self._flags.tolist()))
