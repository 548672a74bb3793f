"""What a check found, and the checks one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from vggdist.errors import VggdistError


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    text: str
    """What is there, or what is wrong."""
    hint: str = ""
    """What to do, as a sentence; empty where there is nothing to do."""
    is_problem: bool = False
    """Whether trainings fail because of it; a finding with a hint alone is a warning."""

    @property
    def kind(self) -> Literal["good", "warning", "problem"]:
        """For the mark in front of the line."""
        return "problem" if self.is_problem else "warning" if self.hint else "good"


Check = Callable[[], Iterable[Finding]]


def run_checks(checks: Mapping[str, Check]) -> Iterator[tuple[str, Finding]]:
    """Subject and finding, as soon as each is known; a check that fails is a problem."""
    for subject, check in checks.items():
        try:
            for finding in check():
                yield subject, finding
        except VggdistError as error:
            yield subject, Finding(str(error), is_problem=True)
        except Exception as error:  # a library that is broken raises anything
            told = " ".join(str(error).split())
            hint = "Install the environment anew (`make setup`), or report this as a bug."
            yield subject, Finding(f"{type(error).__name__}: {told}", hint, is_problem=True)
