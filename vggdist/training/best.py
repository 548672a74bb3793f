"""The network with the lowest validation error, which stays beside the newest checkpoints."""

import logging
import math
from pathlib import Path

from vggdist.artifacts import checkpoint
from vggdist.artifacts.run_files import CHECKPOINTS, Best, read_best
from vggdist.distributed.process import Process, from_main
from vggdist.errors import in_words
from vggdist.training.checkpoints import CheckpointWriter

logger = logging.getLogger(__name__)


class BestNetwork:
    """What is known on all ranks of the best evaluation of a run folder.

    Attributes:
        known: the best evaluation so far, if there has been one.
    """

    def __init__(self, run_folder: Path, process: Process) -> None:
        self.known: Best | None = None
        self._folder, self._process = run_folder, process

    def load(self) -> None:
        """Reads it, for a training that continues; collective."""
        self.known = from_main(read_best(self._folder) if self._process.is_main else None)

    @property
    def top1_error(self) -> float:
        """A fraction; infinite before the first evaluation."""
        return math.inf if self.known is None else self.known.top1_error

    def is_beaten(self, step: int, top1_error: float) -> bool:
        """Whether the network of a step is better than all before it."""
        if self.known is None or top1_error < self.known.top1_error:
            return True
        # It was evaluated before, by a process that was killed before it had kept the weights.
        return self.known.folder is None and self.known.step == step

    def keep(self, best: Best, checkpoints: CheckpointWriter) -> None:
        """Keeps the weights of `best.step`, of which `checkpoints` has begun the latest checkpoint;
        `agree` learns whether that was possible."""
        self.known = best
        checkpoints.follow(self._keep, best)

    def agree(self) -> None:
        """Learns whether the weights were kept, once nothing is being written; collective."""
        self.known = from_main(self.known)

    def _keep(self, best: Best) -> None:
        try:
            self.known = checkpoint.keep_best(self._folder / CHECKPOINTS, best)
        except OSError as error:
            logger.error(
                "the network of step %d, the best so far, could not be kept: %s. "
                "Training continues.",
                best.step,
                in_words(error),
            )
