"""Which posteriors files make which row of the paper's tables.

A row is a mean of posteriors: of the networks, protocols and scales that it names. It is ours where
the files hold all of them, with flips. Weights are never mixed within a row: where several
trainings fit, each has a line of its own, and a fusion of networks waits until one of each is left.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from vggdist.artifacts.posteriors import PROTOCOLS, Protocol, Source, format_train_scale
from vggdist.evaluation.fusion import ErrorRates, Members
from vggdist.reports import paper


@dataclass(frozen=True)
class Line:
    """A row of the paper and what is ours of it."""

    row: paper.Row
    files: Members = ()
    """Whose mean it is; none: it cannot be computed."""
    run: str = ""
    """Which of several that fit; empty where only one does."""
    problem: str = ""
    """Why it cannot be computed, where some of its files are there."""
    errors: ErrorRates | None = None


@dataclass(frozen=True)
class Choice:
    """Files of one network that make its share of a row."""

    weights: str
    variants: tuple[str, ...]
    """How each protocol was computed, where that can differ."""
    files: Members


class Matcher:
    """Finds rows in files.

    Args:
        sources: what the files hold, of the same images.
        numbers: those that may stand in a row of the paper.
    """

    def __init__(self, sources: Sequence[Source], numbers: Iterable[int]) -> None:
        self._sources = sources
        self._numbers = [number for number in numbers if sources[number].flip]

    def lines(self, row: paper.Row) -> list[Line]:
        """One line for each choice of files that fits; one without files where none does."""
        choices = [self._choices(tested, row.protocols) for tested in row.networks]
        if len(choices) == 1 and choices[0]:
            names = _names(choices[0])
            return [
                Line(row, choice.files, name)
                for choice, name in zip(choices[0], names, strict=True)
            ]
        problems = [
            self._problem(tested, row.protocols, found)
            for tested, found in zip(row.networks, choices, strict=True)
            if len(found) != 1
        ]
        if problems or not choices:
            # Nothing at all is no problem to speak of: the cell says that there is no run.
            nothing = all(not self._of(tested, row.protocols) for tested in row.networks)
            return [Line(row, problem="" if nothing else "; ".join(problems))]
        files = tuple(sorted(number for (choice,) in choices for number in choice.files))
        return [Line(row, files)]

    def _of(self, tested: paper.TestedNetwork, protocols: Sequence[Protocol]) -> list[int]:
        """Files that could take part, in any weights' share."""
        return [
            number
            for number in self._numbers
            if (source := self._sources[number]).network == tested.configuration
            and source.train_scale == tested.train_scale
            and source.protocol in protocols
            and source.scale in tested.scales
        ]

    def _choices(self, tested: paper.TestedNetwork, protocols: Sequence[Protocol]) -> list[Choice]:
        """Files of one weights file at all scales of all protocols, each protocol in one way."""
        by_weights: dict[str, list[int]] = defaultdict(list)
        for number in self._of(tested, protocols):
            by_weights[self._sources[number].weights].append(number)
        choices = []
        for weights, numbers in by_weights.items():
            ways = [_variants(self._sources, numbers, protocol).items() for protocol in protocols]
            for shares in product(*ways):
                variants = tuple(variant for variant, _ in shares)
                files = tuple(sorted(number for _, share in shares for number in share))
                if len(files) == len(protocols) * len(tested.scales):
                    choices.append(Choice(weights, variants, files))
        return choices

    def _problem(
        self,
        tested: paper.TestedNetwork,
        protocols: Sequence[Protocol],
        choices: Sequence[Choice],
    ) -> str:
        """Why there is not one choice."""
        name = f"{tested.configuration} {format_train_scale(tested.train_scale)}"
        if choices:
            return f"{name}: several runs fit ({', '.join(_names(choices))}); give one of them"
        sources = [self._sources[number] for number in self._of(tested, protocols)]
        there = {(source.protocol, source.scale) for source in sources}
        missing = [
            f"{protocol} at Q {scale}"
            for protocol, scale in product(protocols, tested.scales)
            if (protocol, scale) not in there
        ]
        if missing and there:
            return f"{name}: no run of {', '.join(missing)}"
        return f"{name}: {'no run' if missing else 'its files do not belong together'}"


@dataclass(frozen=True)
class Average:
    """One network at all scales of one protocol, or of dense and multi-crop together."""

    source: Source
    """Of the first file."""
    protocols: tuple[Protocol, ...]
    scales: tuple[int, ...]
    files: Members
    errors: ErrorRates | None = None


def averages(sources: Sequence[Source], numbers: Iterable[int]) -> Iterator[Average]:
    """What can be averaged of each network, in the paper's tables or not."""
    networks: dict[tuple[str, bool], list[int]] = defaultdict(list)
    for number in numbers:
        networks[sources[number].weights, sources[number].flip].append(number)
    for members in networks.values():
        found = {protocol: _variants(sources, members, protocol) for protocol in PROTOCOLS}
        for protocol, variants in found.items():
            for files in variants.values():
                if len(files) > 1:
                    yield _average(sources, (protocol,), files)
        for both in product(*(found[protocol].values() for protocol in paper.BOTH)):
            # At the scales that both have, so that neither counts more.
            shared = set.intersection(*({sources[n].scale for n in files} for files in both))
            files = tuple(n for n in sorted(sum(both, ())) if sources[n].scale in shared)
            if files:
                yield _average(sources, paper.BOTH, files)


def _average(sources: Sequence[Source], protocols: tuple[Protocol, ...], files: Members) -> Average:
    scales = tuple(sorted({sources[number].scale for number in files}))
    return Average(sources[files[0]], protocols, scales, files)


def _variants(
    sources: Sequence[Source], numbers: Iterable[int], protocol: Protocol
) -> dict[str, Members]:
    """Files of a protocol that were computed in the same way, which may be averaged over Q."""
    found: dict[str, Members] = defaultdict(tuple)
    for number in numbers:
        source = sources[number]
        if source.protocol == protocol:
            averaged = f", {source.spatial_average} averaged" if source.spatial_average else ""
            variant = f"{protocol} in {source.precision}{averaged}"
            found[variant] = (*found[variant], number)
    return found


def _names(choices: Sequence[Choice]) -> list[str]:
    """Short names that differ: the weights, and how they were applied where that differs too."""
    if len(choices) == 1:
        return [""]
    weights = [choice.weights for choice in choices]
    return [
        choice.weights[:8]
        + (f" ({', '.join(choice.variants)})" if weights.count(choice.weights) > 1 else "")
        for choice in choices
    ]
