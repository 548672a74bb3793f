"""What posteriors files say: the paper's Tables 3 to 7 beside ours, or of other classes than
ImageNet's which classes and images fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vggdist.artifacts.contents import UNKNOWN
from vggdist.artifacts.names import printable, shortened
from vggdist.artifacts.paths import quote
from vggdist.artifacts.posteriors import (
    PosteriorsFile,
    Protocol,
    Source,
    holds_posteriors,
    open_posteriors,
    read_names,
)
from vggdist.errors import WeightsError
from vggdist.evaluation.confusion import ClassErrors, class_errors
from vggdist.evaluation.fusion import (
    ErrorRates,
    Members,
    errors_of_fusions,
    mistakes_of_mean,
)
from vggdist.reports import paper
from vggdist.reports.matching import Line, find_averages, find_lines

NUM_MISTAKES = 32
"""Worst mistakes in a report."""


class NamedMistake(NamedTuple):
    """An image that was taken for one of another class."""

    image: str
    """class/file."""
    truth: str
    prediction: str
    confidence: float


@dataclass(frozen=True)
class Report:
    """What posteriors files of the same images say."""

    paths: tuple[Path, ...]
    """The files."""
    names: tuple[str, ...]
    """The same, for people."""
    sources: tuple[Source, ...]
    classes: tuple[str, ...]
    errors: Mapping[Members, ErrorRates]
    """Of each file, of the mean of all, and of all other means below."""
    averages: tuple[Members, ...]
    """Files of one network at all its scales."""
    tables: tuple[tuple[paper.PaperTable, tuple[Line, ...]], ...]
    """None where the classes are not ImageNet's."""
    notes: tuple[str, ...]
    class_errors: ClassErrors = field(default_factory=ClassErrors)
    """Of the mean of all files, where the classes are not ImageNet's."""
    mistakes: tuple[NamedMistake, ...] = ()
    """Its worst, the surest first."""

    @property
    def num_classes(self) -> int:
        """Of the images."""
        return len(self.classes)

    @property
    def fused(self) -> ErrorRates:
        """Errors of the mean of all files."""
        return self.errors[tuple(range(len(self.names)))]

    @property
    def is_comparable(self) -> bool:
        """Whether the paper's errors are of as many classes; else its tables are left out."""
        return self.num_classes == paper.NUM_CLASSES

    def protocols(self, files: Members) -> tuple[Protocol, ...]:
        """Of some files; multi-crop before dense, as in the paper."""
        return tuple(sorted({self.sources[number].protocol for number in files}, reverse=True))

    def scales(self, files: Members) -> tuple[int, ...]:
        """Q of some files, ascending."""
        return tuple(sorted({self.sources[number].scale for number in files}))

    def to_dict(self) -> dict[str, object]:
        """All numbers, ready for JSON; errors are fractions, at the top those of the mean."""
        return {
            **self.fused.to_dict(),
            "images": self.sources[0].images,
            "num_classes": self.num_classes,
            "files": [
                {"file": name, **asdict(source), **self.errors[number,].to_dict()}
                for number, (name, source) in enumerate(zip(self.names, self.sources, strict=True))
            ],
            "averages": [self._average_to_dict(files) for files in self.averages],
            "tables": {
                str(table.number): [self._line_to_dict(line) for line in lines]
                for table, lines in self.tables
            },
            "notes": self.notes,
            **self.class_errors.to_dict(self.classes),
            "mistakes": [mistake._asdict() for mistake in self.mistakes],
        }

    def _average_to_dict(self, files: Members) -> dict[str, object]:
        source = self.sources[files[0]]
        return {
            "network": source.network,
            "train_scale": source.train_scale,
            "weights": source.weights,
            "flip": source.flip,
            "protocols": self.protocols(files),
            "scales": self.scales(files),
            "files": [self.names[number] for number in files],
            **self.errors[files].to_dict(),
        }

    def _line_to_dict(self, line: Line) -> dict[str, object]:
        row, ours = line.row, self.errors.get(line.files)
        return {
            "method": row.method,
            "networks": [asdict(tested) for tested in row.networks],
            "protocols": row.protocols,
            "paper_top1_error": row.top1_error,
            "paper_top5_error": row.top5_error,
            "paper_top5_test_error": row.top5_test_error,
            "num_images": ours and ours.num_images,
            "top1_error": ours and ours.top1_error,
            "top5_error": ours and ours.top5_error,
            "top1_difference": ours and difference(ours.top1_error, row.top1_error),
            "top5_difference": ours and difference(ours.top5_error, row.top5_error),
            "files": [self.names[number] for number in line.files],
            "run": line.run,
            "problem": line.problem,
        }


def difference(ours: float, papers: float | None) -> float | None:
    """How much larger our error is, where the paper has one."""
    return None if papers is None else ours - papers


def find_posteriors(paths: Iterable[Path]) -> list[Path]:
    """The files, and those anywhere in the folders, such as runs, each once.

    Raises:
        WeightsError: a folder has none.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        files = [path]
        if path.is_dir():
            files = [file for file in sorted(path.rglob("*.npz")) if holds_posteriors(file)]
        if not files:
            raise WeightsError(
                f"folder {quote(path)} has no posteriors file (*.npz); `vggdist evaluate` writes "
                "them."
            )
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def make_report(
    paths: Sequence[Path], advance: Callable[[int], None] = lambda num_images: None
) -> Report:
    """Computes every row that the files have.

    Args:
        paths: posteriors files.
        advance: called with the number of images whenever some more were counted.

    Raises:
        WeightsError: a file cannot be read, or two are of different images.
    """
    files = [open_posteriors(path) for path in paths]
    names, sources = _names(paths), tuple(file.source for file in files)
    distinct = {n: source for n, source in enumerate(sources) if sources.index(source) == n}
    averages = tuple(find_averages(distinct))
    classes = files[0].classes
    is_imagenet = len(classes) == paper.NUM_CLASSES
    tables = tuple(
        (table, tuple(line for row in table.rows for line in find_lines(row, distinct)))
        for table in (paper.TABLES if is_imagenet else ())
    )
    every_file = [(number,) for number in range(len(files))]
    means = {line.files for _, lines in tables for line in lines if line.files}
    means |= {*every_file, tuple(range(len(files))), *averages}
    confusion = None if is_imagenet else np.zeros((len(classes),) * 2, np.int64)
    return Report(
        paths=tuple(paths),
        names=names,
        sources=sources,
        classes=classes,
        errors=errors_of_fusions(files, means, advance, confusion),
        averages=averages,
        tables=tables,
        notes=tuple(_notes(names, sources, is_imagenet, len(files[0].labels))),
        class_errors=ClassErrors() if confusion is None else class_errors(confusion),
        mistakes=() if is_imagenet else tuple(_mistakes(files)),
    )


def _mistakes(files: Sequence[PosteriorsFile]) -> Iterator[NamedMistake]:
    images, classes = read_names(files[0]), files[0].classes
    for image, truth, prediction, confidence in mistakes_of_mean(files, NUM_MISTAKES):
        yield NamedMistake(images[image], classes[truth], classes[prediction], confidence)


def _names(paths: Sequence[Path]) -> tuple[str, ...]:
    """The files' own names if all differ, else their paths; always text that can be printed."""
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return tuple(map(printable, names))


def _notes(
    names: Sequence[str], sources: Sequence[Source], is_imagenet: bool, num_images: int
) -> Iterator[str]:
    """What a reader of the numbers has to know."""
    if is_imagenet and num_images != paper.NUM_VALIDATION_IMAGES:
        yield (
            f"The paper's errors are of {paper.NUM_VALIDATION_IMAGES:,} validation images, ours of "
            f"{num_images:,}."
        )
    unknown = [
        name for name, source in zip(names, sources, strict=True) if source.contents == UNKNOWN
    ]
    if unknown:
        yield (
            f"{shortened(unknown)}: written by a version that did not note what was in the images, "
            "so that nobody can tell whether they have changed since; `vggdist evaluate` writes "
            "such files anew."
        )
    for number, source in enumerate(sources):
        first = sources.index(source)
        if first != number:
            yield (
                f"{names[number]} repeats {names[first]} (the same weights, protocol and scale): "
                "it counts in the mean of all files and nowhere else."
            )
