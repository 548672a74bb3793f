"""The training loop: step, flags, evaluation, checkpoint, stop."""

import itertools
import logging
import math
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vggdist.artifacts import checkpoint
from vggdist.artifacts.run_files import CHECKPOINTS, Best
from vggdist.artifacts.weights import Description
from vggdist.config import BatchSplit, Config
from vggdist.data.batch import Batch
from vggdist.distributed.process import Process, all_agree, from_main, sum_over_ranks
from vggdist.errors import CheckpointError, NumericError, StoppedError
from vggdist.evaluation.metrics import Errors
from vggdist.training.bad_images import KnownBad
from vggdist.training.best import BestNetwork
from vggdist.training.checkpoints import CheckpointWriter
from vggdist.training.engine import Engine
from vggdist.training.flags import DelayedFlags, SharedFlags, StepFlags, first_of
from vggdist.training.graph import build_step
from vggdist.training.metrics import MetricLog
from vggdist.training.observer import Observer
from vggdist.training.pictures import Pictures
from vggdist.training.profile import StepProfile
from vggdist.training.rhythm import Rhythm
from vggdist.training.schedule import Schedule
from vggdist.training.signals import REPEATING, SAVING, StopSignal
from vggdist.training.throughput import Waiting

logger = logging.getLogger(__name__)

Batches = AbstractContextManager[Iterator[Batch]]


class Training:
    """One rank's training, from the first step or a checkpoint to the end.

    Attributes:
        step: finished steps.
        errors: result of the latest evaluation.
        evaluated_step: the step after which it was made; -1: none yet.
        best: the best network so far.
        elapsed_seconds: from the start of the first step to the end of the last, with evaluations.
    """

    def __init__(
        self,
        config: Config,
        process: Process,
        split: BatchSplit,
        engine: Engine,
        schedule: Schedule,
        *,
        num_images: int,
        open_batches: Callable[[int], Batches],
        evaluate: Callable[[StopSignal], Errors],
        data_digests: dict[str, str],
        known_bad: KnownBad,
        log: MetricLog | None,
        run_folder: Path,
        description: Description | None = None,
        profile: StepProfile | None = None,
        pictures: Pictures | None = None,
    ) -> None:
        """Assembles the training.

        Args:
            num_images: in the training set.
            open_batches: number of finished steps -> this rank's micro batches from there on.
            evaluate: errors of `engine` on the validation set; collective. Raises a StoppedError on
                all ranks if any rank has received a signal.
            data_digests: of the manifests, saved with every checkpoint.
            known_bad: images that `open_batches` skips.
            log: curves, on the main rank.
            description: of the network, saved with every checkpoint's weights.
            profile: records some of the steps.
            pictures: for TensorBoard, on the main rank.
        """
        self.config, self.process, self.split = config, process, split
        self.engine, self.schedule, self.log = engine, schedule, log
        self.open_batches, self.evaluate = open_batches, evaluate
        self.data_digests, self.known_bad = data_digests, known_bad
        self._profile = profile
        self.checkpoint_folder = run_folder / CHECKPOINTS
        self.step = 0
        self.num_masked = 0
        self.errors: Errors | None = None
        self.evaluated_step = -1
        self.best = BestNetwork(run_folder, process)
        self._checkpoints = CheckpointWriter(
            self.checkpoint_folder, config.checkpoint.keep, process, description
        )
        self.elapsed_seconds = 0.0
        self._rhythm = Rhythm(config, num_images, split.global_batch, schedule.total_steps)
        self.observer = Observer(
            config,
            process,
            engine,
            schedule,
            self._rhythm,
            known_bad=known_bad,
            log=log,
            pictures=pictures,
        )
        self.throughput, self._meter = self.observer.throughput, self.observer.meter
        self._flags = SharedFlags(engine)
        self._train_step = build_step(engine, config, process, self._meter, profile is not None)

    @property
    def finished(self) -> bool:
        """Whether the schedule has ended."""
        return self.step >= self.schedule.total_steps or self.schedule.finished

    def train(self, stop: StopSignal) -> bool:
        """Trains to the end (True), or until a rank is asked to stop and all have saved (False).

        Args:
            stop: this rank's signals.

        Raises:
            StoppedError: on all ranks, if one was asked to stop before its first batch was there.
            NumericError: on all ranks, if a loss, a gradient or the weights are not finite.
            DataError: on all ranks, if too many images are bad.
            CheckpointError: the last checkpoint could not be written.
        """
        with self._checkpoints:
            return self._train(stop)

    def _train(self, stop: StopSignal) -> bool:
        self.throughput.resume()
        if self._evaluation_due and not self._evaluate(stop):
            return False
        self.observer.show_decreases(self.step)
        if self.finished:
            schedule = self.schedule
            logger.info("this training has ended: %s. %s", schedule.end(self.step), schedule.way_on)
            return True
        began_at = time.monotonic() - self.elapsed_seconds
        delayed = DelayedFlags(self.process.device)
        with self.open_batches(self.step) as opened, stop.answering(SAVING):
            batches = first_of(opened, stop, self.process)
            self.throughput.resume()
            while not self.finished:
                with self._profiled():
                    flags = self._take_step(batches, stop)
                    stopping = self._handle(delayed.push(flags, self.step))
                self.elapsed_seconds = time.monotonic() - began_at
                saving = self._rhythm.is_checkpoint_step(self.step)
                if saving or stopping or self._evaluation_due:
                    # Never evaluate or save a step before it is known to be good.
                    stopping |= self._handle(delayed.flush())
                self.observer.show_step(self.step, self.num_masked)
                # Save first: an evaluation takes time, and may be interrupted or fail. A run
                # resumed from this checkpoint then evaluates it.
                if saving and not stopping:
                    self._begin_save(last=self.step == self.schedule.total_steps)
                if self._evaluation_due and not stopping:
                    stopping = not self._evaluate(stop)
                if stopping or self.finished:
                    self._save_last()
                self.observer.show_decreases(self.step)
                if stopping:
                    return False
        self.observer.show_end(self.step)
        return True

    def state(self) -> dict[str, Any]:
        """The contents of a checkpoint besides tensors; collective."""
        return {
            "schedule": self.schedule.state(),
            "errors": self.errors.state() if self.errors is not None else None,
            "evaluated_step": self.evaluated_step,
            "meter": sum_over_ranks(self._meter.sums.clone()).tolist(),
            "num_masked": self.num_masked,
            "elapsed_seconds": self.elapsed_seconds,
            "step_seconds": self.throughput.seconds,
            "step_images": self.throughput.images,
            "scaler": self.engine.scaler_state(),
            "exchange": self.engine.exchange_state,
            "data": self.data_digests,
            "known_bad": self.known_bad.state(),
        }

    def load(self, saved: checkpoint.Checkpoint) -> None:
        """Continues from a checkpoint, on any number of ranks."""
        state = saved.state
        self.engine.load(saved.weights, saved.momentum, state["scaler"])
        self._flags = SharedFlags(self.engine)
        of_schedule = state["schedule"]
        # Runs with format 1 evaluated first, and their checkpoints lack the steps.
        numbers = range(1, len(of_schedule["errors"]) + 1)
        steps = [number * self._rhythm.evaluation_interval for number in numbers]
        self.schedule.load({"steps": steps, **of_schedule})
        self.known_bad.load(state["known_bad"])
        self.step, self.num_masked = saved.step, state["num_masked"]
        self.best.load()
        is_here = checkpoint.path_of(self.checkpoint_folder, self.step).exists()
        self._checkpoints.continue_from(self.step if from_main(is_here) else -1)
        self.observer.continue_from(self.step)
        self.errors = Errors.from_state(state["errors"]) if state["errors"] is not None else None
        self.evaluated_step = state.get("evaluated_step", saved.step)
        if self.process.is_main:
            self._meter.sums.copy_(self._meter.sums.new_tensor(state["meter"]))
        self.elapsed_seconds = state["elapsed_seconds"]
        self.throughput.seconds = state["step_seconds"]
        self.throughput.images = state["step_images"]

    def _profiled(self) -> AbstractContextManager[object]:
        """Around the next step."""
        if self._profile is None:
            return nullcontext()
        return self._profile.around(self.step + 1, self.throughput)

    def _take_step(self, batches: Iterator[Batch], stop: StopSignal) -> Tensor:
        self.engine.optimizer.set_learning_rate(self.schedule.learning_rate(self.step))
        self.step += 1
        self.observer.prepare_step(self.step)
        waiting = Waiting(itertools.islice(batches, self.split.accumulation_steps))
        self._flags.begin()
        self._train_step(self._received(waiting))
        flags = self._flags.end(self.engine, stop.requested, self.known_bad.has_new)
        self.throughput.add_step(self.split.global_batch, waiting.seconds)
        # Behind the flags, so that the live line has them without waiting for the device.
        return torch.cat([flags, self._meter.sums])

    def _handle(self, flags: StepFlags | None) -> bool:
        """Whether a rank was asked to stop; raises if the step failed."""
        if flags is None:
            return False
        if flags.failed:
            # The weights before this step have failed, so there is no good checkpoint of them.
            raise self._diverged(
                f"step {flags.step}: the loss or a gradient is infinite or not a number; the "
                "update was left out, and training stops.",
                good_until=flags.step - 2,
            )
        self.num_masked += flags.masked
        self.observer.renew_line(self.step, flags.sums)
        if flags.found_bad:
            self.known_bad.agree()
        return flags.stop

    def _diverged(self, what: str, good_until: int) -> NumericError:
        """The error for a network that has diverged.

        Args:
            what: the symptom and its consequence, in whole sentences.
            good_until: a step; checkpoints of later steps may be bad.
        """
        good = None
        self._checkpoints.wait()
        if self.process.is_main:
            good = checkpoint.newest_good(self.checkpoint_folder, good_until)
        path = shlex.quote(str(good))
        return NumericError(
            f"{what} Lower optimizer.learning_rate, set optimizer.gradient_clipping, or choose a "
            "precision with more range, in another run.folder; the curves show what led to it. "
            + (
                f"The newest good checkpoint is {good}; run.resume={path} continues from there."
                if good is not None
                else f"No checkpoint in {self.checkpoint_folder} is known to be good."
            )
        )

    def _evaluate(self, stop: StopSignal) -> bool:
        """Whether the evaluation was completed; False on all ranks if a signal ended it."""
        with self.throughput.paused():
            started_at = time.monotonic()
            self.engine.eval()
            try:
                with stop.answering(REPEATING):
                    errors = self.evaluate(stop)
            except StoppedError:
                return False
            finally:
                self.engine.train()
            if not math.isfinite(errors.loss):
                raise self._diverged(
                    f"step {self.step}: the validation loss is infinite or not a number, so the "
                    "network is useless, and training stops.",
                    good_until=self.evaluated_step,
                )
            self.errors, self.evaluated_step = errors, self.step
            if self._rhythm.is_evaluation_step(self.step):
                self.schedule.observe(self.step, errors.top1_error)
            lowest = min(errors.top1_error, self.best.top1_error)
            self.observer.show_evaluation(self.step, errors, lowest, time.monotonic() - started_at)
            self._keep_if_best(errors.top1_error)
            return True

    def _keep_if_best(self, top1_error: float) -> None:
        if not self.best.is_beaten(self.step, top1_error):
            return
        if self._checkpoints.begun_step != self.step:
            self._begin_save(last=False)
        best = Best(self.step, self._rhythm.epoch(self.step), top1_error)
        self.best.keep(best, self._checkpoints)

    def _begin_save(self, last: bool) -> None:
        """Begins to write a checkpoint of this step, once the one before is written; collective.

        Args:
            last: whether `_save_last` follows, and writes it again if it could not be written.
        """
        with self.throughput.paused():
            self._wait_for_checkpoint()
            if not all_agree(self.engine.is_finite(), self.process.device):
                raise self._diverged(
                    f"step {self.step}: the weights are infinite, not numbers, or so large that "
                    "the square of their norm is; no checkpoint was made of them, and training "
                    "stops.",
                    good_until=self.step - 1,
                )
            state = self.state()  # waits for the device, which the copies are given to only then
            self._checkpoints.begin(self.step, self.engine, state, last)

    def _save_last(self) -> None:
        """Makes sure that this step is on the disk; collective."""
        self._wait_for_checkpoint()
        if self._checkpoints.saved_step != self.step:
            self._begin_save(last=True)
            self._wait_for_checkpoint()
        if self._checkpoints.saved_step != self.step:  # all ranks end with the main rank
            raise CheckpointError(self._checkpoints.problem)

    def _wait_for_checkpoint(self) -> None:
        """Waits until nothing is being written; collective."""
        self._checkpoints.wait()
        self.best.agree()

    def _received(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for number, batch in enumerate(batches):
            self.known_bad.note(batch.bad)
            if number == 0:
                self.observer.show_fed(batch, self.step)
            yield batch

    @property
    def _evaluation_due(self) -> bool:
        """Whether the current network is due for evaluation."""
        wanted = self._rhythm.is_evaluation_step(self.step)
        return (wanted or self.step >= self.schedule.total_steps) and (
            self.evaluated_step != self.step
        )
