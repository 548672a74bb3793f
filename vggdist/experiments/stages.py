"""The stages of an experiment: what is trained, evaluated and reported, and in which order.

`vggdist/experiments/schema.py` reads them from a file. How they are run, and what became of
them, is left to others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vggdist.artifacts.posteriors import Protocol
from vggdist.config import Config
from vggdist.config_file import dump_yaml

EXPERIMENT_FILE = "experiment.yaml"
"""In an experiment's folder: what it was started with, so that the folder alone says it all."""
JOB_FOLDER = "jobs"
"""In an experiment's folder: what its jobs are told, and what they say."""


@dataclass(frozen=True)
class Training:
    """A training that is completely described."""

    name: str
    """`d_256`; of a sweep `rates/optimizer.learning_rate=0.01`."""
    config: Config = field(repr=False)
    start: str | None = None
    sweep: str = ""
    """The stage of the file, where that is a sweep."""
    overrides: str = ""
    """What sets this training of a sweep apart."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The stages that must be done before."""
        return () if self.start is None else (self.start,)


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of one network."""

    name: str
    network: str
    """The training."""
    protocols: tuple[Protocol, ...]
    scales: tuple[int, ...]
    settings: tuple[str, ...]
    """`section.key=value`: its own, and how its training was done."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The stages that must be done before."""
        return (self.network,)


@dataclass(frozen=True)
class Report:
    """A report on several evaluations."""

    name: str
    evaluations: tuple[str, ...]

    @property
    def needs(self) -> tuple[str, ...]:
        """The stages that must be done before."""
        return self.evaluations


Stage = Training | Evaluation | Report


def definition(stage: Evaluation | Report) -> dict[str, Any]:
    """What a result is of, ready for JSON: another definition makes it anew."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(stage).items()
    }


@dataclass(frozen=True)
class Experiment:
    """A graph of stages."""

    name: str
    folder: Path
    stages: Mapping[str, Stage]
    """By name; a stage stands behind those that it needs."""
    source: Mapping[str, Any] = field(repr=False)
    """The file with all overrides, its paths absolute; `load_experiment` reads it back."""

    def folder_of(self, stage: str) -> Path:
        """Where a stage leaves what it makes; a training's run folder."""
        return self.folder / stage

    @property
    def trainings(self) -> list[Training]:
        """The stages that are trainings."""
        return [stage for stage in self.stages.values() if isinstance(stage, Training)]

    def training(self, name: str) -> Training:
        """A stage that is known to be a training."""
        stage = self.stages[name]
        assert isinstance(stage, Training)
        return stage

    def to_yaml(self) -> str:
        """What stands in the experiment's folder."""
        return dump_yaml(self.source)
