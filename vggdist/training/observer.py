"""What people see of a training: curves, pictures, the live line, lines of the log."""

import logging

from vggdist.config import Config
from vggdist.data.batch import Batch
from vggdist.distributed.process import Process, sum_over_ranks
from vggdist.evaluation.metrics import TOP5, Errors
from vggdist.terminal import TrainingProgress
from vggdist.training.bad_images import KnownBad
from vggdist.training.engine import Engine
from vggdist.training.metrics import MetricLog
from vggdist.training.pictures import Pictures
from vggdist.training.rhythm import Rhythm
from vggdist.training.schedule import Schedule
from vggdist.training.step import Meter
from vggdist.training.system import SystemReadings
from vggdist.training.throughput import Throughput
from vggdist.training.utilization import Utilization

logger = logging.getLogger(__name__)


class Observer:
    """Measures a training on every rank, and shows it on the main one.

    Attributes:
        meter: loss and errors of this rank's training images since the last point of the curves.
        throughput: its clock stands still for what is no step.
        utilization: of the devices' peak.
    """

    def __init__(
        self,
        config: Config,
        process: Process,
        engine: Engine,
        schedule: Schedule,
        rhythm: Rhythm,
        *,
        known_bad: KnownBad,
        log: MetricLog | None,
        pictures: Pictures | None,
    ) -> None:
        """Watches `engine` and `schedule`.

        Args:
            known_bad: has the bad images found so far.
            log: curves, on the main rank.
            pictures: for TensorBoard, on the main rank.
        """
        self._config, self._engine = config, engine
        self._schedule, self._rhythm, self._known_bad = schedule, rhythm, known_bad
        self._log, self._pictures = log, pictures
        self.meter = Meter(process.device)
        self.throughput = Throughput(process.device)
        self.utilization = Utilization(config, process.world_size, process.device)
        self._progress = TrainingProgress(rhythm.total_steps, speaks=process.is_main)
        self._system = SystemReadings(process.device)
        self._evaluation_seconds = 0.0
        self._num_decreases_told = 0

    def continue_from(self, step: int) -> None:
        """Earlier starts have told what happened until then."""
        self._num_decreases_told = len(self._schedule.decreases(step))

    def prepare_step(self, step: int) -> None:
        """Has the engine measure what `show_step` needs."""
        self._engine.measure_norm = self._rhythm.is_log_step(step)
        wanted = self._rhythm.is_histogram_step(step)
        self._engine.measure_histograms = wanted and self._log is not None

    def show_fed(self, batch: Batch, step: int) -> None:
        """The first images of a step's first batch, at some steps."""
        if self._pictures is not None and self._rhythm.is_picture_step(step):
            with self.throughput.paused():
                self._pictures.show_fed(batch, step)

    def renew_line(self, step: int, sums: tuple[float, ...]) -> None:
        """The live line, if it is old enough.

        Args:
            sums: of `meter`, so of the main rank's images alone.
        """
        if self._progress.is_due and (images := sums[-1]):
            values = {"loss": sums[0] / images, "top1_error": sums[1] / images}
            speeds = self.throughput.so_far()
            values |= speeds | self.utilization.of(speeds.get("images_per_second", 0.0))
            self._progress.show(step, self._rhythm.epoch(step), values, self._seconds_left(step))

    def show_step(self, step: int, num_masked: int) -> None:
        """What `prepare_step` asked for; collective.

        Args:
            num_masked: updates so far that were left out.
        """
        if self._rhythm.is_log_step(step):
            self._write_log(step, num_masked)
        if self._log is not None and self._engine.measure_histograms:
            self._log.write_histograms("weights", self._engine.weight_histograms(), step)
            self._log.write_histograms("gradients", self._engine.gradient_histograms, step)

    def show_evaluation(self, step: int, errors: Errors, lowest: float, seconds: float) -> None:
        """The errors, and pictures of the worst mistakes.

        Args:
            lowest: top-1 error of all evaluations so far, this one included.
            seconds: that it took.
        """
        self._evaluation_seconds = seconds
        epoch = self._rhythm.epoch(step)
        if self._log is not None:
            values = {
                "loss": errors.loss,
                "top1_error": errors.top1_error,
                "top5_error": errors.top5_error,
                "best_top1_error": lowest,
            }
            self._log.write("validation", step, epoch, values)
            top5 = f"top-5 error {100 * errors.top5_error:.2f} %  "
            logger.info(
                "epoch %.2f  validation: top-1 error %.2f %%  %sloss %.4f",
                epoch,
                100 * errors.top1_error,
                top5 if self._config.model.fc8_width > TOP5 else "",
                errors.loss,
            )
        if self._pictures is not None:
            self._evaluation_seconds += self._pictures.show_errors(errors, step)

    def show_decreases(self, step: int) -> None:
        """Each decrease of the learning rate, once."""
        decreases = self._schedule.decreases(step)
        for decrease in decreases[self._num_decreases_told :]:
            fallen = decrease.learning_rate
            cause = self._schedule.cause
            self._tell(
                f"the learning rate falls to {fallen:g} at step {decrease.step}: {cause}.", step
            )
            if self._log is not None:
                self._log.write_mark("optimizer/learning_rate_fell", fallen, step)
        self._num_decreases_told = len(decreases)

    def show_end(self, step: int) -> None:
        """Why the training ends."""
        self._tell(f"training ends at step {step}: {self._schedule.end(step)}.", step)

    def _write_log(self, step: int, num_masked: int) -> None:
        """A point of every curve; collective."""
        values = self.throughput.close_window(self._engine.exchange_wait)
        if "images_per_second" in values:
            values |= self.utilization.of(values["images_per_second"])
        loss, top1, top5, images = sum_over_ranks(self.meter.sums.clone()).tolist()
        self.meter.sums.zero_()
        norm = self._engine.gradient_norm()
        if self._log is None or images == 0:
            return
        seconds_left = self._seconds_left(step)
        values |= {
            "loss": loss / images,
            "top1_error": top1 / images,
            "top5_error": top5 / images,
            "learning_rate": self._schedule.learning_rate(step - 1),
            "gradient_norm": norm,
            "images_per_second_overall": self.throughput.images_per_second,
            "hours_left": seconds_left / 3600,
        }
        if self._known_bad.found:
            values |= {"unusable_images": len(self._known_bad.found)}
        if self._config.resolved_precision == "fp16":
            values |= {"loss_scale": self._engine.loss_scale(), "masked_steps": num_masked}
        details = self._system.read() | self._engine.layer_norms()
        epoch = self._rhythm.epoch(step)
        self._log.write("train", step, epoch, values, details)
        self._progress.log(step, epoch, values, seconds_left)

    def _tell(self, text: str, step: int) -> None:
        """A line in the log and a mark in TensorBoard."""
        logger.info("%s", text)
        if self._log is not None:
            self._log.write_text("schedule", text, step)

    def _seconds_left(self, step: int) -> float:
        """Estimated from the speed so far, evaluations included."""
        steps = self._rhythm.total_steps - step
        per_step = self.throughput.seconds_per_image * self._rhythm.global_batch
        evaluations = steps / self._rhythm.evaluation_interval
        return steps * per_step + evaluations * self._evaluation_seconds
