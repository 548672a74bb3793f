"""Groups of settings that a file or a command line gives, and what each says besides its type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

T = TypeVar("T")


class Section(BaseModel):
    """A group of fields: frozen, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_by_name=True,
        serialize_by_alias=True,
    )


@dataclass(frozen=True)
class Knob:
    """What a key of a training says besides its type: what it means for a run that continues."""

    may_change: bool | Callable[[Any, Any], bool]
    """Whether a resumed training may change it; or a function that says so of the old and the new
    `Config`."""
    rule: str = ""
    """What that function says, for people: when it may change."""
    as_trained: bool = False
    """Whether an experiment's evaluation takes it over from its training."""

    def may_change_to(self, new: Any, old: Any) -> bool:
        """Whether a training of the `Config` `old` may be continued with the value of `new`."""
        return self.may_change if isinstance(self.may_change, bool) else self.may_change(old, new)


Fixed = Annotated[T, Knob(may_change=False)]
"""A key that says what a training computes."""
Free = Annotated[T, Knob(may_change=True)]
"""A key that says where and how a training runs."""
Inherited = Annotated[T, Knob(may_change=True, as_trained=True)]
"""A key that says where and how trainings and evaluations run."""


def section_of(field: FieldInfo | None) -> type[Section] | None:
    """The model of a field that is a section; None of any other."""
    kind = None if field is None else field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def knobs_of(model: type[Section], prefix: str = "") -> dict[str, Knob]:
    """The knobs of all keys, by `section.key`.

    Raises:
        TypeError: a key has none.
    """
    knobs: dict[str, Knob] = {}
    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        if (section := section_of(field)) is not None:
            knobs |= knobs_of(section, f"{key}.")
            continue
        knob = next((data for data in field.metadata if isinstance(data, Knob)), None)
        if knob is None:
            raise TypeError(f"{key} has no knob; annotate it as Fixed[...], Free[...] or the like.")
        knobs[key] = knob
    return knobs
