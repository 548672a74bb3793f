"""Records some steps of a training, for Perfetto and TensorBoard and as a table."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from vggdist.artifacts.files import write_text
from vggdist.artifacts.paths import quote
from vggdist.distributed.process import Process
from vggdist.errors import ConfigError
from vggdist.training.ranges import STEP, recorded
from vggdist.training.step_times import measure_steps, read_trace, render_steps
from vggdist.training.throughput import Throughput

logger = logging.getLogger(__name__)

PROFILE_FOLDER = "profile"
WARM_UP_STEPS = 5
"""Left out before a number of steps: memory is taken and kernels are chosen in them."""


def choose_steps(wanted: int | range, done: int, total: int) -> range:
    """The steps to record.

    Args:
        wanted: their numbers, or how many after `WARM_UP_STEPS`.
        done: steps before this start.
        total: steps of the training.

    Raises:
        ConfigError: the training does not take them any more, or never.
    """
    if isinstance(wanted, int):
        first = done + WARM_UP_STEPS + 1
        steps, text = range(first, first + wanted), f"{wanted}"
        why = f"{WARM_UP_STEPS} steps to warm up and {wanted} more end at step {steps[-1]}"
    else:
        steps, text = wanted, f"{wanted.start}-{wanted[-1]}"
        why = "not all of these steps are to come"
    if steps.start > done and steps[-1] <= total:
        return steps
    if done >= total:
        remedy = "which is finished; profile another one, in another run.folder"
    else:
        remedy = f"which now takes steps {done + 1} to {total}; name some of these"
    raise ConfigError(f"--profile {text}: {why}, in a training of {total} steps, {remedy}.")


class StepProfile:
    """A profile of some steps on this rank.

    Every rank records, so that none is slower than the others, and writes its own trace; the main
    rank shows the table. The results of the training are the same with and without it.
    """

    def __init__(self, steps: range, run_folder: Path, process: Process) -> None:
        self._steps, self._process = steps, process
        self._folder = run_folder / PROFILE_FOLDER
        self._profiler: profile | None = None
        self._is_recording = False
        self._recorded: list[int] = []

    @contextmanager
    def around(self, step: int, clock: Throughput) -> Iterator[None]:
        """Within the block the step is taken; it is recorded if it is one of the wanted.

        Args:
            step: its number.
            clock: stands still while the profiler starts and writes.
        """
        if self._steps.start - 1 <= step < self._steps.stop:
            with clock.paused():
                self._prepare(start=step in self._steps)
        if step not in self._steps:
            yield
            return
        with recorded(), record_function(f"{STEP}{step}"):
            yield
        self._recorded.append(step)
        if step == self._steps[-1]:
            with clock.paused():
                self.close()

    def close(self) -> None:
        """Writes what was recorded, once, also if the training has ended before its last step."""
        profiler, self._profiler = self._profiler, None
        if profiler is None or not self._is_recording:
            return
        profiler.stop_trace()
        self._is_recording = False
        if self._recorded:
            try:
                self._write(profiler)
            except (OSError, ValueError, RuntimeError) as error:
                logger.error(
                    "the profile could not be written to %s: %s. Training continues without it.",
                    quote(self._folder),
                    error,
                )

    def _prepare(self, start: bool) -> None:
        """Prepares the profiler a step early, since that slows down the step that follows."""
        if self._profiler is None:
            # Kineto writes its own log to the terminal.
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")
            activities = [ProfilerActivity.CPU]
            if self._process.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            # Threads load images, and on CPUs send gradients between nodes.
            everywhere = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
            self._profiler = profile(activities=activities, experimental_config=everywhere)
            self._profiler.prepare_trace()
        if start and not self._is_recording:
            self._profiler.start_trace()
            self._is_recording = True

    def _write(self, profiler: profile) -> None:
        self._folder.mkdir(exist_ok=True)
        first, last = self._recorded[0], self._recorded[-1]
        name = f"steps-{first}-{last}"
        # TensorBoard's plugin wants this suffix.
        trace = self._folder / f"{name}.rank{self._process.rank}.pt.trace.json.gz"
        try:
            profiler.export_chrome_trace(str(trace))
        except OSError:
            trace.unlink(missing_ok=True)  # no viewer opens a part of one
            raise
        if not self._process.is_main:
            return
        table = render_steps(measure_steps(read_trace(trace)))
        text = (
            f"Profile of steps {first} to {last} on the main rank:\n{table}\n"
            f"trace for https://ui.perfetto.dev: {quote(trace)}"
        )
        write_text(self._folder / f"{name}.txt", text + "\n")
        logger.info("%s", text)
