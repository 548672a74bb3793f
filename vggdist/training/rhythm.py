"""After which steps a training logs, shows pictures, evaluates and saves."""

from vggdist.config import Config, steps_of_epochs


class Rhythm:
    """Of a training; its steps are numbered from 1.

    Attributes:
        total_steps: of the whole training.
        global_batch: images of a step.
        evaluation_interval: steps from one evaluation to the next.
    """

    def __init__(
        self, config: Config, num_images: int, global_batch: int, total_steps: int
    ) -> None:
        def steps(num_epochs: float) -> int:
            return steps_of_epochs(num_epochs, num_images, global_batch)

        self.total_steps, self.global_batch = total_steps, global_batch
        self._num_images = num_images
        self.evaluation_interval = steps(config.evaluation.every_epochs)
        self._checkpoint_interval = config.checkpoint.every_steps or steps(
            config.checkpoint.every_epochs
        )
        self._log_interval = config.log.every_steps
        self._pictures_interval = steps(config.log.images_every_epochs)
        histogram_epochs = config.log.histogram_every_epochs
        self._histogram_interval = steps(histogram_epochs) if histogram_epochs else 0

    def epoch(self, step: int) -> float:
        """Passes over the training set after `step` steps."""
        return step * self.global_batch / self._num_images

    def is_log_step(self, step: int) -> bool:
        """Whether the curves have a point there."""
        if step in (1, self.total_steps):
            return True
        # Fewer steps would remain for the last point: they are added to this one's.
        return step % self._log_interval == 0 and step + self._log_interval <= self.total_steps

    def is_histogram_step(self, step: int) -> bool:
        """Whether histograms of weights and gradients are due."""
        if not self._histogram_interval:
            return False
        return step % self._histogram_interval == 0 or step == self.total_steps

    def is_picture_step(self, step: int) -> bool:
        """Whether images of the step's batch are shown."""
        return (step - 1) % self._pictures_interval == 0

    def is_evaluation_step(self, step: int) -> bool:
        """Whether the evaluation after it counts for the schedule; an extra one at the end does
        not, since a training in parts would differ from one that is not."""
        return step > 0 and step % self.evaluation_interval == 0

    def is_checkpoint_step(self, step: int) -> bool:
        """Whether a checkpoint is due, which the last step always has."""
        return step % self._checkpoint_interval == 0 or step == self.total_steps
