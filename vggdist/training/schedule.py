"""The learning rate: plateau (the paper's), step or cosine, each after an optional warm-up."""

import math
from dataclasses import dataclass, field
from typing import Any

from vggdist.config import ScheduleConfig


@dataclass
class Schedule:
    """A function of the steps done and of the validation errors seen so far.

    `plateau`, section 3.1: the learning rate is multiplied by `factor` when the validation error
    has not reached a new low for `patience` evaluations, `num_decreases` times (3 in the paper);
    the next plateau ends the training. A step that fp16 masks counts like any other: waiting for
    the device to say so would cost more than the few updates that it makes a decrease early.

    Attributes:
        errors: top-1 errors of the evaluations so far, as fractions.
    """

    config: ScheduleConfig
    base_learning_rate: float
    steps_per_epoch: float
    total_steps: int
    errors: list[float] = field(default_factory=list)

    def learning_rate(self, step: int) -> float:
        """For the step after `step` finished ones."""
        warmup_steps = self.config.warmup_epochs * self.steps_per_epoch
        if step < warmup_steps:
            return self.base_learning_rate * (step + 1) / math.ceil(warmup_steps)
        if self.config.name == "cosine":
            span = max(1.0, self.total_steps - warmup_steps)
            done = (step - warmup_steps) / span
            return self.base_learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        if self.config.name == "step":
            decreases = int(step / (self.config.step_epochs * self.steps_per_epoch) + 1e-9)
        else:
            decreases = min(self.num_plateaus, self.config.num_decreases)
        return self.base_learning_rate * self.config.factor**decreases

    def observe(self, top1_error: float) -> None:
        """Takes in the error of an evaluation."""
        self.errors.append(top1_error)

    @property
    def num_plateaus(self) -> int:
        """How often the error has stayed without a new low for `patience` evaluations."""
        plateaus, waited, lowest = 0, 0, math.inf
        for error in self.errors:
            waited = 0 if error < lowest else waited + 1
            lowest = min(lowest, error)
            if waited == self.config.patience:
                plateaus, waited = plateaus + 1, 0
        return plateaus

    @property
    def finished(self) -> bool:
        """Whether the last plateau has been reached."""
        return self.config.name == "plateau" and self.num_plateaus > self.config.num_decreases

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"errors": self.errors}

    def load(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.errors = [float(error) for error in state["errors"]]
