"""A training step as one CUDA graph, which the host launches at once.

A step is hundreds of kernels, and a fast GPU may be done with one before the host has launched the
next. A graph repeats what it has captured: the same kernels, on the same memory. So batches are
copied to where the graph reads them, the learning rate is a number on the device, and what differs
from step to step stays outside: flags, logs, evaluations.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from vggdist.config import Config
from vggdist.data.batch import Batch
from vggdist.distributed import process as world
from vggdist.distributed.process import Process
from vggdist.errors import first_line
from vggdist.training.engine import Engine
from vggdist.training.step import Meter, train_step

logger = logging.getLogger(__name__)

WARM_UP_STEPS = 3
"""Before the capture: the first steps make momentum, time convolutions and connect the ranks."""
_READ = ("pixels", "mean", "labels", "dropout_keys")
"""What a step reads of a batch."""

TakeStep = Callable[[Iterable[Batch]], None]


def build_step(
    engine: Engine, config: Config, process: Process, meter: Meter, profiled: bool = False
) -> TakeStep:
    """`train_step` as the configuration wants it: kernel by kernel, or as a graph.

    Args:
        profiled: whether steps are recorded; a profile knows a kernel by what launches it.
    """
    if config.cuda_graph and process.device.type == "cuda" and not profiled:
        return GraphedStep(engine, process, meter, Graphs(process.device))
    if config.cuda_graph:
        why = "while steps are profiled" if profiled else "on a CPU"
        logger.warning("cuda_graph: true has no effect %s.", why)
    return partial(train_step, engine, meter=meter)


class GraphedStep:
    """`train_step`, captured after some steps, and replayed from then on."""

    def __init__(self, engine: Engine, process: Process, meter: Meter, graphs: Graphs) -> None:
        """Prepares the engine.

        Args:
            meter: as for `train_step`.
            graphs: capture, on this rank's GPU.
        """
        self._engine, self._process, self._meter, self._graphs = engine, process, meter, graphs
        self._batches: list[Batch] = []
        self._num_taken = 0
        self._replays: Mapping[bool, Callable[[], None]] = {}
        engine.optimizer.keep_learning_rate_on(process.device)

    def __call__(self, micro_batches: Iterable[Batch]) -> None:
        """Takes one step."""
        self._load(micro_batches)
        if self._num_taken == WARM_UP_STEPS:
            self._capture()
        self._num_taken += 1
        with self._graphs.stream():
            if self._replays:
                self._replays[self._engine.measure_norm]()
            else:
                self._take()

    def _load(self, micro_batches: Iterable[Batch]) -> None:
        """Copies the batches to where each step reads them."""
        if not self._batches:
            self._batches = [
                replace(batch, **{name: getattr(batch, name).clone() for name in _READ})
                for batch in micro_batches
            ]
            return
        for place, batch in zip(self._batches, micro_batches, strict=True):
            for name in _READ:
                getattr(place, name).copy_(getattr(batch, name))

    def _take(self) -> None:
        # Copies of the batches: each has to compute its images anew.
        train_step(self._engine, [replace(batch) for batch in self._batches], self._meter)

    def _capture(self) -> None:
        """Captures the step without and with the gradients' norms; collective.

        There are no histograms of gradients from then on: the host makes them during a step.
        """
        engine, replays, problem = self._engine, {}, ""
        before = engine.measure_norm, engine.measure_histograms
        engine.measure_histograms = False
        try:
            for measures_norm in (False, True):
                engine.measure_norm = measures_norm
                replays[measures_norm] = self._graphs.capture(self._take)
        except Exception as error:  # what a driver says has no type of its own
            problem = first_line(error)
            engine.forget_step()
        engine.measure_norm, engine.measure_histograms = before
        if problem := max(world.gather(problem)):  # of any rank
            logger.warning(
                "cuda_graph: true has no effect here: %s The host launches kernel by kernel.",
                problem,
            )
            return
        self._replays, engine.gradient_histograms = replays, {}
        logger.info("the step is captured as a CUDA graph")


class Graphs:
    """Captures work on a stream of its own, since the default one cannot be captured.

    All other work on the same tensors runs there, too: autograd computes a gradient on the stream
    of its forward pass.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool: Any = None

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Within the block, work is queued on the stream, after what was queued before the block;
        what is queued afterwards waits for it.
        """
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """What repeats the work, which is only captured now; graphs share their memory."""
        graph = torch.cuda.CUDAGraph()
        # Other threads load images meanwhile, and may ask the driver for memory.
        with (
            self.stream(),
            torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"),
        ):
            work()
        self._pool = graph.pool()
        replay: Callable[[], None] = graph.replay
        return replay
