"""The learning rate: plateau (the paper's), step or cosine, each after an optional warm-up."""

import itertools
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vggdist.config import ScheduleConfig


class Decrease(NamedTuple):
    """A decrease of the learning rate."""

    step: int
    """Number of finished steps before it."""
    learning_rate: float
    """The learning rate from then on."""


@dataclass
class Schedule:
    """A function of the steps done and of the validation errors seen so far.

    `plateau`, section 3.1: the learning rate is multiplied by `factor` when the validation error
    has not reached a new low for `patience` evaluations, `num_decreases` times (3 in the paper);
    the next plateau ends the training. A step masked in fp16 counts like any other: waiting for the
    device to report it would cost more than the few updates by which decreases come early.

    Attributes:
        errors: top-1 errors of the evaluations so far, as fractions.
        steps: the steps after which they were made.
    """

    config: ScheduleConfig
    base_learning_rate: float
    steps_per_epoch: float
    total_steps: int
    errors: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    def learning_rate(self, step: int) -> float:
        """The learning rate of the step after `step` finished ones."""
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
            decreases = min(len(self.plateaus), self.config.num_decreases)
        return self.base_learning_rate * self.config.factor**decreases

    def observe(self, step: int, top1_error: float) -> None:
        """Records the error of the evaluation after `step` finished steps."""
        self.steps.append(step)
        self.errors.append(top1_error)

    @property
    def plateaus(self) -> list[int]:
        """The steps at which the error had had no new low for `patience` evaluations."""
        plateaus, waited, lowest = [], 0, math.inf
        for step, error in zip(self.steps, self.errors, strict=True):
            waited = 0 if error < lowest else waited + 1
            lowest = min(lowest, error)
            if waited == self.config.patience:
                plateaus.append(step)
                waited = 0
        return plateaus

    def decreases(self, step: int) -> list[Decrease]:
        """Each decrease in `step` finished steps; cosine has none, being continuous."""
        if self.config.name == "cosine":
            return []
        if self.config.name == "plateau":
            steps = self.plateaus[: self.config.num_decreases]
        else:
            interval = self.config.step_epochs * self.steps_per_epoch
            falls = (math.ceil(number * interval - 1e-9) for number in itertools.count(1))
            steps = list(itertools.takewhile(lambda fall: fall <= step, falls))
        return [
            Decrease(fall, self.base_learning_rate * self.config.factor**number)
            for number, fall in enumerate(steps, start=1)
        ]

    @property
    def cause(self) -> str:
        """The reason for a decrease, in a few words."""
        if self.config.name == "plateau":
            return f"no new low of the top-1 error for {self.config.patience} evaluations"
        return f"it does so every {self.config.step_epochs:g} epochs"

    def end(self, step: int) -> str:
        """The reason for ending after `step` finished steps; empty if training continues."""
        if step >= self.total_steps:
            return f"all {self.total_steps} steps are taken"
        if not self.finished:
            return ""
        lowest = min(self.errors)
        return (
            f"{self.cause} (schedule.patience), and the learning rate has fallen "
            f"{self.config.num_decreases} times (schedule.num_decreases); the lowest error, "
            f"{100 * lowest:.2f} %, was that of step {self.steps[self.errors.index(lowest)]}"
        )

    @property
    def way_on(self) -> str:
        """What makes a training that has ended longer, without changing what it has done."""
        if self.config.name == "cosine":
            return (
                "With schedule.name=cosine its length cannot change; model.initialize_from=RUN in "
                "another run.folder trains on, with a schedule of its own."
            )
        if self.finished:
            return "A larger schedule.num_decreases trains on."
        length = "num_epochs" if self.config.num_steps is None else "num_steps"
        return f"A larger schedule.{length} trains on."

    @property
    def finished(self) -> bool:
        """Whether the last plateau has been reached."""
        return self.config.name == "plateau" and len(self.plateaus) > self.config.num_decreases

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {"steps": self.steps, "errors": self.errors}

    def load(self, state: dict[str, Any]) -> None:
        """Restores the state of a checkpoint."""
        self.steps = [int(step) for step in state["steps"]]
        self.errors = [float(error) for error in state["errors"]]
