"""The training loop: steps, evaluations, checkpoints, log, stop."""

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
from vggdist.artifacts.paths import quote
from vggdist.artifacts.run_files import CHECKPOINTS, Best
from vggdist.artifacts.weights import Description
from vggdist.config import BatchSplit, Config, steps_of_epochs
from vggdist.data.batch import Batch
from vggdist.distributed.process import Process, all_agree, from_main, sum_over_ranks
from vggdist.errors import CheckpointError, NumericError, StoppedError, in_words
from vggdist.evaluation.metrics import TOP5, Errors
from vggdist.terminal import TrainingProgress
from vggdist.training.bad_images import KnownBad
from vggdist.training.best import BestNetwork
from vggdist.training.engine import Engine
from vggdist.training.flags import DelayedFlags, SharedFlags, StepFlags, first_of
from vggdist.training.metrics import MetricLog
from vggdist.training.pictures import Pictures
from vggdist.training.profile import StepProfile
from vggdist.training.schedule import Schedule
from vggdist.training.signals import SAVING, StopSignal
from vggdist.training.step import Meter, train_step
from vggdist.training.system import SystemReadings
from vggdist.training.throughput import Throughput, Waiting
from vggdist.training.utilization import Utilization

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
        self.num_images = num_images
        self.open_batches, self.evaluate = open_batches, evaluate
        self.data_digests, self.known_bad = data_digests, known_bad
        self.description, self.pictures, self._profile = description, pictures, profile
        self.checkpoint_folder = run_folder / CHECKPOINTS
        self.step = 0
        self.num_masked = 0
        self.errors: Errors | None = None
        self.evaluated_step = -1
        self.best = BestNetwork(run_folder, process)
        self.elapsed_seconds = 0.0
        self.meter = Meter(process.device)
        self.throughput = Throughput(process.device)
        self.utilization = Utilization(config, process.world_size, process.device)
        self.progress = TrainingProgress(schedule.total_steps, speaks=process.is_main)
        self.system = SystemReadings(process.device)
        self._evaluation_interval = self._steps(config.evaluation.every_epochs)
        self._checkpoint_interval = config.checkpoint.every_steps or self._steps(
            config.checkpoint.every_epochs
        )
        self._pictures_interval = self._steps(config.log.images_every_epochs)
        self._flags = SharedFlags(engine)
        self._latest_save = (-1, False)  # the step, and whether it was written
        self._evaluation_seconds = 0.0
        self._num_decreases_told = 0

    @property
    def epoch(self) -> float:
        """Passes over the training set so far."""
        return self.step * self.split.global_batch / self.num_images

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
        self.throughput.resume()
        if self._evaluation_due and not self._evaluate(stop):
            return False
        self._log_decreases()
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
                ended = self.step == self.schedule.total_steps
                saving = ended or self._is_due(self._checkpoint_interval)
                if saving or stopping or self._evaluation_due:
                    # Never evaluate or save a step before it is known to be good.
                    stopping |= self._handle(delayed.flush())
                if self._log_due:
                    self._write_log()
                if self.engine.measure_histograms:
                    self._write_histograms()
                # Save first: an evaluation takes time, and may be interrupted or fail. A run
                # resumed from this checkpoint then evaluates it.
                if saving or stopping:
                    self._save(last=ended or stopping)
                if self._evaluation_due and not stopping:
                    stopping = not self._evaluate(stop)
                    if not self._is_saved and (stopping or self.finished):
                        self._save(last=True)
                self._log_decreases()
                if stopping:
                    return False
        self._log_event(f"training ends at step {self.step}: {self.schedule.end(self.step)}.")
        return True

    def state(self) -> dict[str, Any]:
        """The contents of a checkpoint besides tensors; collective."""
        return {
            "schedule": self.schedule.state(),
            "errors": self.errors.state() if self.errors is not None else None,
            "evaluated_step": self.evaluated_step,
            "meter": sum_over_ranks(self.meter.sums.clone()).tolist(),
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
        rhythm = range(1, len(of_schedule["errors"]) + 1)
        steps = [number * self._evaluation_interval for number in rhythm]
        self.schedule.load({"steps": steps, **of_schedule})
        self.known_bad.load(state["known_bad"])
        self.step, self.num_masked = saved.step, state["num_masked"]
        self.best.load()
        is_here = checkpoint.path_of(self.checkpoint_folder, self.step).exists()
        self._latest_save = (self.step if from_main(is_here) else -1, True)
        self._num_decreases_told = len(self.schedule.decreases(self.step))
        self.errors = Errors.from_state(state["errors"]) if state["errors"] is not None else None
        self.evaluated_step = state.get("evaluated_step", saved.step)
        if self.process.is_main:
            self.meter.sums.copy_(self.meter.sums.new_tensor(state["meter"]))
        self.elapsed_seconds = state["elapsed_seconds"]
        self.throughput = Throughput(
            self.process.device, state["step_seconds"], state["step_images"]
        )

    def _profiled(self) -> AbstractContextManager[object]:
        """Around the next step."""
        if self._profile is None:
            return nullcontext()
        return self._profile.around(self.step + 1, self.throughput, self.progress)

    def _take_step(self, batches: Iterator[Batch], stop: StopSignal) -> Tensor:
        self.engine.optimizer.set_learning_rate(self.schedule.learning_rate(self.step))
        self.step += 1
        self.engine.measure_norm = self._log_due
        self.engine.measure_histograms = self.log is not None and self._histograms_due
        waiting = Waiting(itertools.islice(batches, self.split.accumulation_steps))
        self._flags.begin()
        train_step(self.engine, self._shown(waiting), self.meter)
        flags = self._flags.end(self.engine, stop.requested, self.known_bad.has_new)
        self.throughput.add_step(self.split.global_batch, waiting.seconds)
        # Behind the flags, so that the live line has them without waiting for the device.
        return torch.cat([flags, self.meter.sums])

    def _handle(self, flags: StepFlags | None) -> bool:
        """Whether a rank was asked to stop; raises if the step failed."""
        if flags is None:
            return False
        if flags.failed:
            self.progress.clear()
            # The weights before this step have failed, so there is no good checkpoint of them.
            raise self._diverged(
                f"step {flags.step}: the loss or a gradient is infinite or not a number; the "
                "update was left out, and training stops.",
                good_until=flags.step - 2,
            )
        self.num_masked += flags.masked
        self._renew_line(flags.sums)
        if flags.found_bad:
            self.progress.clear()
            self.known_bad.agree()
        return flags.stop

    def _renew_line(self, sums: tuple[float, ...]) -> None:
        """The live line: loss and error are of the main rank's images since the last log step."""
        if self.progress.is_due and (images := sums[-1]):
            values = {"loss": sums[0] / images, "top1_error": sums[1] / images}
            speeds = self.throughput.so_far()
            values |= speeds | self.utilization.of(speeds.get("images_per_second", 0.0))
            self.progress.show(self.step, self.epoch, values, self._seconds_left())

    def _diverged(self, what: str, good_until: int) -> NumericError:
        """The error for a network that has diverged.

        Args:
            what: the symptom and its consequence, in whole sentences.
            good_until: a step; checkpoints of later steps may be bad.
        """
        good = None
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

    def _write_log(self) -> None:
        values = self.throughput.close_window(self.engine.exchange_wait)
        if "images_per_second" in values:
            values |= self.utilization.of(values["images_per_second"])
        loss, top1, top5, images = sum_over_ranks(self.meter.sums.clone()).tolist()
        self.meter.sums.zero_()
        norm = self.engine.gradient_norm()
        if self.log is None or images == 0:
            return
        values |= {
            "loss": loss / images,
            "top1_error": top1 / images,
            "top5_error": top5 / images,
            "learning_rate": self.schedule.learning_rate(self.step - 1),
            "gradient_norm": norm,
            "images_per_second_overall": self.throughput.images_per_second,
            "hours_left": self._seconds_left() / 3600,
        }
        if self.known_bad.found:
            values |= {"unusable_images": len(self.known_bad.found)}
        if self.config.resolved_precision == "fp16":
            values |= {"loss_scale": self.engine.loss_scale(), "masked_steps": self.num_masked}
        details = self.system.read() | self.engine.layer_norms()
        self.log.write("train", self.step, self.epoch, values, details)
        self.progress.log(self.step, self.epoch, values, self._seconds_left())

    def _write_histograms(self) -> None:
        assert self.log is not None
        self.log.write_histograms("weights", self.engine.weight_histograms(), self.step)
        self.log.write_histograms("gradients", self.engine.gradient_histograms, self.step)

    def _evaluate(self, stop: StopSignal) -> bool:
        """Whether the evaluation was completed; False on all ranks if a signal ended it."""
        self.throughput.pause()
        started_at = time.monotonic()
        self.engine.eval()
        try:
            with stop.answering("stopping after these images; the evaluation is repeated later"):
                errors = self.evaluate(stop)
        except StoppedError:
            return False
        finally:
            self.engine.train()
            self.throughput.resume()
        if not math.isfinite(errors.loss):
            self.progress.clear()
            raise self._diverged(
                f"step {self.step}: the validation loss is infinite or not a number, so the "
                "network is useless, and training stops.",
                good_until=self.evaluated_step,
            )
        self.errors, self.evaluated_step = errors, self.step
        # An extra evaluation, at the end of a part, must not count for the patience: the training
        # would differ from one that is not done in parts.
        if self._is_due(self._evaluation_interval):
            self.schedule.observe(self.step, self.errors.top1_error)
        self._evaluation_seconds = time.monotonic() - started_at
        if self.log is not None:
            values = {
                "loss": self.errors.loss,
                "top1_error": self.errors.top1_error,
                "top5_error": self.errors.top5_error,
                "best_top1_error": min([*self.schedule.errors, self.errors.top1_error]),
            }
            self.log.write("validation", self.step, self.epoch, values)
            self.progress.clear()
            top5 = f"top-5 error {100 * self.errors.top5_error:.2f} %  "
            logger.info(
                "epoch %.2f  validation: top-1 error %.2f %%  %sloss %.4f",
                self.epoch,
                100 * self.errors.top1_error,
                top5 if self.config.model.fc8_width > TOP5 else "",
                self.errors.loss,
            )
        if self.pictures is not None:
            self.throughput.pause()
            self._evaluation_seconds += self.pictures.show_errors(self.errors, self.step)
            self.throughput.resume()
        self._keep_if_best(self.errors.top1_error)
        return True

    def _keep_if_best(self, top1_error: float) -> None:
        if not self.best.is_beaten(self.step, top1_error):
            return
        if self._latest_save[0] != self.step:
            self._save(last=False)
        self.best.keep(Best(self.step, self.epoch, top1_error), self._is_saved)

    def _log_decreases(self) -> None:
        """Reports each decrease of the learning rate once."""
        decreases = self.schedule.decreases(self.step)
        for decrease in decreases[self._num_decreases_told :]:
            self._log_event(
                f"the learning rate falls to {decrease.learning_rate:g} at step {decrease.step}: "
                f"{self.schedule.cause}."
            )
            if self.log is not None:
                fallen = decrease.learning_rate
                self.log.write_mark("optimizer/learning_rate_fell", fallen, self.step)
        self._num_decreases_told = len(decreases)

    def _log_event(self, text: str) -> None:
        """A line in the log and a mark in TensorBoard."""
        self.progress.clear()
        logger.info("%s", text)
        if self.log is not None:
            self.log.write_text("schedule", text, self.step)

    def _save(self, last: bool) -> None:
        self.throughput.pause()
        if not all_agree(self.engine.is_finite(), self.process.device):
            self.progress.clear()
            raise self._diverged(
                f"step {self.step}: the weights are infinite, not numbers, or so large that the "
                "square of their norm is; no checkpoint was made of them, and training stops.",
                good_until=self.step - 1,
            )
        weights, momentum, state = self.engine.weights(), self.engine.momentum(), self.state()
        problem = ""
        if self.process.is_main:
            saved = checkpoint.Checkpoint(self.step, weights, momentum, state, self.description)
            try:
                checkpoint.save(self.checkpoint_folder, saved, self.config.checkpoint.keep)
            except OSError as error:
                problem = self._not_saved(error)
        self._latest_save = (self.step, all_agree(not problem, self.process.device))
        if last and not self._is_saved:  # all ranks end with the main rank
            raise CheckpointError(problem)
        if problem:
            self.progress.clear()
            logger.error("%s Training continues.", problem)
        self.throughput.resume()

    def _not_saved(self, error: OSError) -> str:
        committed = checkpoint.committed(self.checkpoint_folder)
        kept = (
            f"The one before it, {quote(committed[0])}, is kept."
            if committed
            else "There is none before it."
        )
        return (
            f"the checkpoint of step {self.step} could not be written: {in_words(error)}. Free "
            f"space or fix the permissions of {quote(self.checkpoint_folder)}. {kept}"
        )

    def _shown(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Passes on batches; some steps' first images are shown in TensorBoard."""
        due = (self.step - 1) % self._pictures_interval == 0
        for number, batch in enumerate(batches):
            self.known_bad.note(batch.bad)
            if due and number == 0 and self.pictures is not None:
                self.throughput.pause()
                self.pictures.show_fed(batch, self.step)
                self.throughput.resume()
            yield batch

    @property
    def _is_saved(self) -> bool:
        return self._latest_save == (self.step, True)

    @property
    def _log_due(self) -> bool:
        if self.step in (1, self.schedule.total_steps):
            return True
        # Fewer steps would remain for the last point: they are added to this one's.
        interval = self.config.log.every_steps
        return self._is_due(interval) and self.step + interval <= self.schedule.total_steps

    @property
    def _histograms_due(self) -> bool:
        if not self.config.log.histogram_every_epochs:
            return False
        interval = self._steps(self.config.log.histogram_every_epochs)
        return self._is_due(interval) or self.step == self.schedule.total_steps

    @property
    def _evaluation_due(self) -> bool:
        """Whether the current network is due for evaluation."""
        wanted = self.step and self._is_due(self._evaluation_interval)
        return (wanted or self.step >= self.schedule.total_steps) and (
            self.evaluated_step != self.step
        )

    def _steps(self, num_epochs: float) -> int:
        return steps_of_epochs(num_epochs, self.num_images, self.split.global_batch)

    def _is_due(self, interval: int) -> bool:
        return self.step % interval == 0

    def _seconds_left(self) -> float:
        """Estimated from the speed so far, evaluations included."""
        steps = self.schedule.total_steps - self.step
        per_step = self.throughput.seconds_per_image * self.split.global_batch
        evaluations = steps / self._evaluation_interval
        return steps * per_step + evaluations * self._evaluation_seconds
