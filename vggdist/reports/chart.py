"""Errors by network and training scale as a picture: the paper's points beside ours, in SVG.

The picture follows the reader's light or dark theme and says the number under the pointer.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Literal, NamedTuple
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

from vggdist.artifacts.names import printable
from vggdist.artifacts.posteriors import Source, format_train_scale
from vggdist.reports import paper
from vggdist.reports.report import Report

Kind = Literal["top1_error", "top5_error"]

_SVG = "http://www.w3.org/2000/svg"
_DARK = (
    "@media (prefers-color-scheme: dark) {\n  .chart { filter: invert(1) hue-rotate(180deg); }\n}\n"
)
_MUTED = "#667085"
_SHAPES = {"center-crop": "s", "dense": "o", "multi-crop": "^"}
_COLORS = {"center-crop": "#1f8a8a", "dense": "#2f6fb5", "multi-crop": "#c77714"}


class Mark(NamedTuple):
    """A point: what it is, and where."""

    legend: str
    shape: str
    """Of matplotlib's markers."""
    color: str
    """Of a filled point; empty: a grey outline."""
    column: tuple[str, str]
    """Network and S."""
    across: float
    """-1 to 1, within the column."""
    error: float
    title: str


def draw_error_chart(report: Report, kind: Kind) -> str:
    """An SVG picture with a point for every file, every mean over Q, and the paper's."""
    marks = [*_paper_marks(report, kind), *_own_marks(report, kind)]
    columns = list(dict.fromkeys(mark.column for mark in marks))
    figure = Figure(figsize=(max(9.0, 0.7 * len(columns)), 4.4), layout="constrained")
    axes = figure.add_subplot()
    for number, mark in enumerate(marks):
        axes.plot(
            columns.index(mark.column) + 0.4 * mark.across,
            100 * mark.error,
            mark.shape,
            color=mark.color or _MUTED,
            fillstyle="full" if mark.color else "none",
            label=mark.legend,
            clip_on=False,
            gid=f"mark-{number}",
        )
    axes.set_xticks(
        range(len(columns)), ["\n".join(column) for column in columns], parse_math=False
    )
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylabel(f"top-{1 if kind == 'top1_error' else 5} error, %")
    axes.grid(axis="y", color=_MUTED, alpha=0.3)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    handles = {mark.legend: line for mark, line in zip(marks, axes.lines, strict=True)}
    figure.legend(handles=[*handles.values()], loc="outside upper left", ncols=3, frameon=False)
    picture = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": kind}):
        figure.savefig(picture, format="svg", transparent=True, metadata=no_metadata)
    return _with_titles(picture.getvalue(), [mark.title for mark in marks])


def _with_titles(picture: str, titles: list[str]) -> str:
    """The picture with what a pointer over a point shows, which matplotlib cannot write."""
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(picture)
    root.set("class", "chart")
    ElementTree.SubElement(root, f"{{{_SVG}}}style").text = _DARK
    points = {group.get("id"): group for group in root.iter(f"{{{_SVG}}}g")}
    for number, title in enumerate(titles):
        ElementTree.SubElement(points[f"mark-{number}"], f"{{{_SVG}}}title").text = title
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _paper_marks(report: Report, kind: Kind) -> Iterator[Mark]:
    """Tables 3 and 4, if the files are of as many classes."""
    if not report.is_comparable:
        return
    for table, shape, what in (
        (paper.TABLE_3, "o", "one scale"),
        (paper.TABLE_4, "D", "several scales"),
    ):
        for row in table.rows:
            (tested,) = row.networks
            error: float = getattr(row, kind)
            column = tested.configuration, format_train_scale(tested.train_scale)
            scales = ", ".join(map(str, tested.scales))
            title = f"paper: {' '.join(column)}, dense, Q {scales}: {100 * error:.1f} %"
            yield Mark(f"paper, {what}", shape, "", column, -0.6, error, title)


def _own_marks(report: Report, kind: Kind) -> Iterator[Mark]:
    """Every file, the larger Q the further right, and the means of dense over Q."""
    all_scales = report.scales(tuple(range(len(report.sources))))
    for number, source in enumerate(report.sources):
        rank = all_scales.index(source.scale) / max(1, len(all_scales) - 1)
        error: float = getattr(report.errors[number,], kind)
        yield Mark(
            f"ours, {source.protocol}",
            _SHAPES[source.protocol],
            _COLORS[source.protocol],
            _column(source),
            -0.2 + rank,
            error,
            f"{source.title}: {100 * error:.2f} %",
        )
    for files in report.averages:
        if report.protocols(files) == ("dense",):
            error, column = getattr(report.errors[files], kind), _column(report.sources[files[0]])
            scales = ", ".join(map(str, report.scales(files)))
            title = f"{' '.join(column)}, dense, Q {scales}: {100 * error:.2f} %"
            legend, color = "ours, dense, several scales", _COLORS["dense"]
            yield Mark(legend, "D", color, column, 0.3, error, title)


def _column(source: Source) -> tuple[str, str]:
    scale = source.train_scale
    return printable(source.network), "" if scale is None else format_train_scale(scale)
