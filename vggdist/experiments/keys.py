"""What an experiment's file may say: its keys, typed.

`vggdist/experiments/schema.py` reads it.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from vggdist.artifacts.posteriors import Protocol
from vggdist.config import UserPath, WeightsPath
from vggdist.section import Section

_from_list = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)


def _some(protocols: tuple[Protocol, ...]) -> tuple[Protocol, ...]:
    if not protocols:
        raise ValueError("[] names no protocol; leave it out for dense.")
    return protocols


class ExperimentFile(Section):
    """The file's own keys."""

    folder: WeightsPath = Field(
        description="Folder of the experiment: a run folder for every training, and all else.",
    )
    data: UserPath | None = Field(
        None, description="The data set of all stages; null: data.root of each configuration."
    )
    glorot: bool = Field(
        False,
        description="Begin at random what would start from a network of another configuration: "
        "the paper's later advice (section 3.1).",
    )
    set: dict[str, Any] = Field(
        {}, description="Sections of a configuration that all trainings change."
    )
    stages: dict[str, dict[str, Any]] = Field(
        min_length=1, description="Name of each stage, and what it is."
    )


class TrainingStage(Section):
    """A training, or several that differ in some settings."""

    config: UserPath = Field(description="Configuration file, seen from the experiment's file.")
    start: str | None = Field(
        None, description="Training from whose network this one starts (model.initialize_from)."
    )
    set: dict[str, Any] = Field(
        {}, description="Sections of a configuration that this training changes."
    )
    sweep: Annotated[tuple[str, ...], _from_list] = Field(
        (),
        description="Trainings in place of one, each with its own section.key=value (several are "
        "joined by a space).",
    )


class EvaluationStage(Section):
    """One job that applies a trained network by several protocols at several scales."""

    evaluate: str = Field(description="Training whose network is evaluated.")
    protocols: Annotated[tuple[Protocol, ...], _from_list, AfterValidator(_some)] = Field(
        ("dense",), description="Some of center-crop, dense and multi-crop."
    )
    scales: Annotated[tuple[int, ...], _from_list] = Field(
        (),
        description="Rescaled shorter sides Q, pixels; none: the middle of the training scales.",
    )
    set: dict[str, Any] = Field(
        {}, description="Sections of a configuration; the rest is as in the training."
    )


class ReportStage(Section):
    """The paper's tables beside those of some evaluations."""

    report: Annotated[tuple[str, ...], _from_list] = Field(
        min_length=1, description="Evaluations that stand in it."
    )


StageSection = TrainingStage | EvaluationStage | ReportStage

KINDS: dict[str, type[StageSection]] = {
    "config": TrainingStage,
    "evaluate": EvaluationStage,
    "report": ReportStage,
}
"""The key that only a stage of this kind has -> the kind."""
