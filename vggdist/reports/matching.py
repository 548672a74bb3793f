"""Which posteriors files make which row of the paper's tables.

A row is a mean of posteriors: of the networks, protocols and scales that it names. It is ours where
the files hold all of them, with flips. Weights are never mixed within a row: where several
trainings fit, each has a line of its own, and a fusion of networks waits until one of each is left.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from vggdist.artifacts.posteriors import PROTOCOLS, Protocol, Source, format_train_scale
from vggdist.evaluation.fusion import Members
from vggdist.reports import paper

Files = Mapping[int, Source]
"""Number of a file -> what it holds; all of the same images."""


@dataclass(frozen=True)
class Line:
    """A row of the paper and which files are ours of it."""

    row: paper.Row
    files: Members = ()
    """Whose mean it is; none: it cannot be computed."""
    run: str = ""
    """Which of several that fit; empty where only one does."""
    problem: str = ""
    """Why it cannot be computed, where some of its files are there."""


def find_lines(row: paper.Row, files: Files) -> list[Line]:
    """One line for each choice of files that fits; one without files where none does."""
    shares = [_share(tested, row.protocols, files) for tested in row.networks]
    choices = [
        _choices(share, len(row.protocols) * len(tested.scales), row.protocols)
        for tested, share in zip(row.networks, shares, strict=True)
    ]
    if len(choices) == 1 and choices[0]:
        return [Line(row, members, name) for name, members in choices[0]]
    problems = [
        _problem(tested, row.protocols, share, [name for name, _ in found])
        for tested, share, found in zip(row.networks, shares, choices, strict=True)
        if len(found) != 1
    ]
    if problems or not choices:
        # Nothing at all is no problem to speak of: the cell says that there is no run.
        return [Line(row, problem="; ".join(problems) if any(shares) else "")]
    return [Line(row, tuple(sorted(number for ((_, members),) in choices for number in members)))]


def _share(tested: paper.TestedNetwork, protocols: Sequence[Protocol], files: Files) -> Files:
    """Files that could take part, of any weights."""
    return {
        number: source
        for number, source in files.items()
        if source.flip
        and source.network == tested.configuration
        and source.train_scale == tested.train_scale
        and source.protocol in protocols
        and source.scale in tested.scales
    }


def _choices(
    share: Files, num_files: int, protocols: Sequence[Protocol]
) -> list[tuple[str, Members]]:
    """Files of one weights file at all scales of all protocols, each protocol in one way.

    Their names are short and differ: the weights, and how they were applied where that differs too;
    an only choice has none.
    """
    by_weights: dict[str, dict[int, Source]] = defaultdict(dict)
    for number, source in share.items():
        by_weights[source.weights][number] = source
    found = []
    for weights, sources in by_weights.items():
        for ways in product(*(_variants(sources, protocol).items() for protocol in protocols)):
            members = tuple(sorted(number for _, numbers in ways for number in numbers))
            if len(members) == num_files:
                found.append((weights, ", ".join(variant for variant, _ in ways), members))
    if len(found) == 1:
        return [("", found[0][2])]
    num_ways = Counter(weights for weights, *_ in found)
    return [
        (weights[:8] + (f" ({variants})" if num_ways[weights] > 1 else ""), members)
        for weights, variants, members in found
    ]


def _problem(
    tested: paper.TestedNetwork, protocols: Sequence[Protocol], share: Files, fitting: list[str]
) -> str:
    """Why there is not one choice."""
    name = f"{tested.configuration} {format_train_scale(tested.train_scale)}"
    if fitting:
        return f"{name}: several runs fit ({', '.join(fitting)}); give one of them"
    there = {(source.protocol, source.scale) for source in share.values()}
    missing = [
        f"{protocol} at Q {scale}"
        for protocol, scale in product(protocols, tested.scales)
        if (protocol, scale) not in there
    ]
    if missing and there:
        return f"{name}: no run of {', '.join(missing)}"
    return f"{name}: {'no run' if missing else 'its files do not belong together'}"


def find_averages(files: Files) -> Iterator[Members]:
    """Each network at all scales of one protocol, then of dense and multi-crop together."""
    networks: dict[tuple[str, bool], dict[int, Source]] = defaultdict(dict)
    for number, source in files.items():
        networks[source.weights, source.flip][number] = source
    for sources in networks.values():
        found = {protocol: _variants(sources, protocol).values() for protocol in PROTOCOLS}
        for variants in found.values():
            yield from (members for members in variants if len(members) > 1)
        for both in product(*(found[protocol] for protocol in paper.BOTH)):
            # At the scales that both have, so that neither counts more.
            shared = set.intersection(*({sources[n].scale for n in members} for members in both))
            if shared:
                yield tuple(n for n in sorted(sum(both, ())) if sources[n].scale in shared)


def _variants(sources: Files, protocol: Protocol) -> dict[str, Members]:
    """Files of a protocol that were computed in the same way, which may be averaged over Q."""
    found: dict[str, Members] = defaultdict(tuple)
    for number, source in sources.items():
        if source.protocol == protocol:
            averaged = f", {source.spatial_average} averaged" if source.spatial_average else ""
            found[f"{protocol} in {source.precision}{averaged}"] += (number,)
    return found
