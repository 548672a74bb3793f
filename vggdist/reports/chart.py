"""Errors by network and training scale as a picture: the paper's points beside ours, in SVG.

The picture follows the reader's light or dark theme and says the number under the pointer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from typing import Literal

from vggdist.artifacts.posteriors import format_train_scale
from vggdist.evaluation.fusion import ErrorRates
from vggdist.reports import paper
from vggdist.reports.report import Report

Kind = Literal["top1_error", "top5_error"]

STYLE = """\
.chart { color: #1f2733; font-family: system-ui, sans-serif; font-size: 13px; }
.chart text { fill: currentColor; }
.chart .head { font-size: 15px; font-weight: 600; }
.chart .muted { fill: #667085; }
.chart .grid { stroke: #8894a8; stroke-opacity: .3; }
.chart .paper { fill: none; stroke: #667085; stroke-width: 2; }
.chart .dense { fill: #2f6fb5; }
.chart .multi-crop { fill: #c77714; }
.chart .center-crop { fill: #1f8a8a; }
.chart .ours { fill-opacity: .85; }
@media (prefers-color-scheme: dark) {
  .chart { color: #e6e9ef; }
  .chart .muted { fill: #9aa5b8; }
  .chart .paper { stroke: #b6c0d0; }
  .chart .dense { fill: #6ea8e8; }
  .chart .multi-crop { fill: #efa44a; }
  .chart .center-crop { fill: #4cc2c2; }
}
"""
HEAD, PLOT, FOOT, LEFT, RIGHT = 34, 270, 50, 46, 12
LEGEND_LINE = 22
MIN_WIDTH, COLUMN, WIDEST = 760, 68, 140  # of the picture, a column, and the points in it
LETTER = 6.9  # width of a letter of the legend, on average


@dataclass(frozen=True)
class Mark:
    """A point: what it is, and where."""

    legend: str
    shape: str
    style: str
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
    step = max(COLUMN, (MIN_WIDTH - LEFT - RIGHT) / len(columns))
    width = LEFT + RIGHT + step * len(columns)
    legend, legend_height = _legend(marks, width)
    top = HEAD + legend_height
    low, high, tick = _axis([100 * mark.error for mark in marks])

    def place(percentage: float) -> float:
        return top + PLOT * (high - percentage) / (high - low)

    parts = [_text(0, 16, f"Top-{1 if kind == 'top1_error' else 5} error, %", "head"), *legend]
    for number in range(round((high - low) / tick) + 1):
        value = low + number * tick
        y = place(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{width - RIGHT:.1f}"/>')
        parts.append(_text(LEFT - 8, y + 4.5, f"{value:.10g}", "muted", "end"))
    middles = {name: LEFT + step * (number + 0.5) for number, name in enumerate(columns)}
    for (network, scale), x in middles.items():
        parts.append(_text(x, top + PLOT + 24, network, "", "middle"))
        parts.append(_text(x, top + PLOT + 41, scale, "muted", "middle"))
    for mark in marks:
        x = middles[mark.column] + 0.4 * min(step, WIDEST) * mark.across
        parts.append(_mark(mark.shape, mark.style, x, place(100 * mark.error), mark.title))
    height = top + PLOT + FOOT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}">\n'
        f"<style>\n{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _paper_marks(report: Report, kind: Kind) -> Iterator[Mark]:
    """Tables 3 and 4, if the files are of as many classes."""
    if report.num_classes != paper.NUM_CLASSES:
        return
    for table, shape, what in (
        (paper.TABLE_3, "circle", "one scale"),
        (paper.TABLE_4, "diamond", "several scales"),
    ):
        for row in table.rows:
            tested = row.networks[0]
            column = (tested.configuration, format_train_scale(tested.train_scale))
            error = row.top1_error if kind == "top1_error" else row.top5_error
            assert error is not None
            scales = ", ".join(map(str, tested.scales))
            title = f"paper: {' '.join(column)}, dense, Q {scales}: {100 * error:.1f} %"
            yield Mark(f"paper, {what}", shape, "paper", column, -0.6, error, title)


def _own_marks(report: Report, kind: Kind) -> Iterator[Mark]:
    """Every file, the larger Q the further right, and the means of dense over Q."""

    def value(errors: ErrorRates) -> float:
        return errors.top1_error if kind == "top1_error" else errors.top5_error

    scales = sorted({source.scale for source in report.sources})
    shapes = {"center-crop": "square", "dense": "circle", "multi-crop": "triangle"}
    for source, errors in zip(report.sources, report.errors, strict=True):
        rank = scales.index(source.scale) / max(1, len(scales) - 1)
        yield Mark(
            f"ours, {source.protocol}",
            shapes[source.protocol],
            f"ours {source.protocol}",
            _column(source.network, source.train_scale),
            -0.2 + rank,
            value(errors),
            f"{source.title}: {100 * value(errors):.2f} %",
        )
    for mean in report.averages:
        if mean.protocols == ("dense",) and mean.errors is not None:
            source, error = mean.source, value(mean.errors)
            column = _column(source.network, source.train_scale)
            at = ", ".join(map(str, mean.scales))
            title = f"{' '.join(column)}, dense, Q {at}: {100 * error:.2f} %"
            legend = "ours, dense, several scales"
            yield Mark(legend, "diamond", "ours dense", column, 0.3, error, title)


def _column(network: str, scale: tuple[int, int] | None) -> tuple[str, str]:
    return network, "" if scale is None else format_train_scale(scale)


def _axis(values: Iterable[float]) -> tuple[float, float, float]:
    """Lowest and highest tick and the distance between ticks, percentage points."""
    low, high = min(values := list(values)), max(values)
    tick = next(step for step in (0.5, 1, 2, 5, 10, 20) if high - low <= 6 * step or step == 20)
    bottom, top = math.floor(low / tick) * tick, math.ceil(high / tick) * tick
    return bottom, max(top, bottom + tick), tick


def _legend(marks: Iterable[Mark], width: float) -> tuple[list[str], float]:
    """The legend's elements, and how high it is."""
    names = {mark.legend: (mark.shape, mark.style) for mark in marks}
    parts, x, y = [], 6.0, float(HEAD + 4)
    for name, (shape, style) in names.items():
        length = 16 + LETTER * len(name) + 18
        if x > 6 and x + length > width:
            x, y = 6.0, y + LEGEND_LINE
        parts.append(_mark(shape, style, x, y, name))
        parts.append(_text(x + 12, y + 4.5, name, "muted"))
        x += length
    return parts, y + LEGEND_LINE - HEAD


def _mark(shape: str, style: str, x: float, y: float, title: str) -> str:
    match shape:
        case "circle":
            form = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5"'
        case "square":
            form = f'<path d="M{x - 4.5:.1f} {y - 4.5:.1f}h9v9h-9z"'
        case "triangle":
            form = f'<path d="M{x:.1f} {y - 5.5:.1f}l5.5 10h-11z"'
        case _:
            form = f'<path d="M{x:.1f} {y - 6.5:.1f}l6.5 6.5l-6.5 6.5l-6.5 -6.5z"'
    return f'{form} class="{style}"><title>{escape(title)}</title>{_close(form)}'


def _close(form: str) -> str:
    return "</circle>" if form.startswith("<circle") else "</path>"


def _text(x: float, y: float, words: str, style: str = "", anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">'
        f"{escape(words)}</text>"
    )
