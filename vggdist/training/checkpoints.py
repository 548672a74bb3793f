"""Checkpoints behind the steps: a step waits for copies in memory, a thread does what is slow."""

import copy
import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, Self

import torch
from torch import Tensor

from vggdist.artifacts import checkpoint
from vggdist.artifacts.paths import quote
from vggdist.artifacts.weights import Description
from vggdist.distributed.process import Process, from_main
from vggdist.errors import CheckpointError, in_words
from vggdist.training.engine import Engine

logger = logging.getLogger(__name__)

P = ParamSpec("P")


class CheckpointWriter:
    """Writes the checkpoints of a training, one at a time, in a thread of the main rank.

    The thread works within `with`, which ends when nothing is being written any more.

    Attributes:
        begun_step: of the latest checkpoint that was begun; -1: there is none.
        saved_step: of the latest one that all ranks know to be on the disk.
        problem: on the main rank, why the latest could not be written, where that was not told.
    """

    def __init__(
        self, folder: Path, keep: int, process: Process, description: Description | None = None
    ) -> None:
        """Writes nothing yet.

        Args:
            folder: of the checkpoints.
            keep: how many of the newest stay.
            description: of the network, saved with its weights.
        """
        self._folder, self._keep, self._description = folder, keep, description
        self._process = process
        self._weights, self._momentum = _HostCopies(), _HostCopies()
        self._jobs: list[Future[None]] = []
        self._written_step = -1
        self.begun_step = self.saved_step = -1
        self.problem = ""

    def __enter__(self) -> Self:
        device = self._process.device
        turn = partial(torch.cuda.set_device, device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, "vggdist-checkpoints", turn)  # begins on GPU 0
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if self.problem and kind is not CheckpointError:
            logger.error("%s", self.problem)
        self._finish()

    def continue_from(self, step: int) -> None:
        """The latest checkpoint is one that was written before; -1: it is not in the folder."""
        self.begun_step = self.saved_step = self._written_step = step

    def begin(self, step: int, engine: Engine, state: Mapping[str, Any], last: bool) -> None:
        """Copies the tensors of `engine`, and begins to write them; collective. Call `wait` before.

        Args:
            step: finished steps.
            state: what is saved besides tensors; may change afterwards.
            last: whether no failure is told, but left in `problem`.
        """
        self.begun_step, self.problem = step, ""
        if not self._process.is_main:
            for _ in engine.momentum():  # under ZeRO the ranks gather it
                pass
            return
        weights = self._weights.take(engine.weights())
        momentum = self._momentum.take(engine.momentum())
        copied = None
        if self._process.device.type == "cuda":
            copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            copied.record()
        state = copy.deepcopy(dict(state))

        def write() -> None:
            if copied is not None:
                copied.synchronize()
            saved = checkpoint.Checkpoint(
                step, _contiguous(weights), _contiguous(momentum), state, self._description
            )
            self._write(saved, last)

        self._jobs.append(self._thread.submit(write))

    def follow(self, action: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Runs an action in the thread of the main rank when the latest checkpoint is on the disk;
        not at all if it could not be written."""

        def act() -> None:
            if self._written_step == self.begun_step:
                action(*args, **kwargs)

        if self._process.is_main:
            self._jobs.append(self._thread.submit(act))

    def wait(self) -> None:
        """Waits until nothing is being written, and learns whether it was; collective."""
        self._finish()
        self.saved_step = from_main(self._written_step)

    def _finish(self) -> None:
        """Waits on this rank; raises what is no problem of the disk."""
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            job.result()

    def _write(self, saved: checkpoint.Checkpoint, last: bool) -> None:
        try:
            checkpoint.save(self._folder, saved, self._keep)
        except OSError as error:
            problem = self._not_written(saved.step, error)
            if last:
                self.problem = problem
            else:
                logger.error("%s Training continues.", problem)
        else:
            self._written_step = saved.step

    def _not_written(self, step: int, error: OSError) -> str:
        committed = checkpoint.committed(self._folder)
        kept = (
            f"The one before it, {quote(committed[0])}, is kept."
            if committed
            else "There is none before it."
        )
        return (
            f"the checkpoint of step {step} could not be written: {in_words(error)}. Free "
            f"space or fix the permissions of {quote(self._folder)}. {kept}"
        )


class _HostCopies:
    """Memory of the host for copies of an engine's tensors, which every checkpoint uses again.

    Fresh memory would take several times as long as the copy. A GPU writes into pinned memory while
    the host goes on; in the layout of the device each copy is one piece.
    """

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def take(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """The copies by name. They are whole once the device has done what it was given so far."""
        for name, tensor in tensors:
            if name not in self._memory:
                self._memory[name] = torch.empty_like(
                    tensor, device="cpu", pin_memory=tensor.is_cuda
                )
            self._memory[name].copy_(tensor, non_blocking=True)
        return self._memory


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}
