"""A report as tables of text, which a terminal, Markdown and HTML show alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from vggdist.artifacts.posteriors import Source, format_train_scale
from vggdist.evaluation.fusion import ErrorRates
from vggdist.reports import paper
from vggdist.reports.matching import Average, Line
from vggdist.reports.report import Report, difference

NO_RUN = "no run"


@dataclass(frozen=True)
class Column:
    """A column's head; columns of one group stand beside each other under its name."""

    name: str
    group: str = ""
    is_number: bool = True
    is_difference: bool = False
    is_judged: bool = False
    """A difference of which less is better; not where the paper's images have other classes."""
    wraps: bool = False
    """Whether its cells may take several lines."""


@dataclass(frozen=True)
class TextTable:
    """A table whose cells are text that still has to be escaped."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def report_tables(report: Report) -> list[TextTable]:
    """The paper's tables, then what there is beyond them."""
    tables = [_paper_table(table, lines, report.is_comparable) for table, lines in report.tables]
    if report.averages:
        tables.append(_averages_table(report.averages))
    return [*tables, _files_table(report), _fused_table(report)]


def heading(report: Report) -> str:
    """What the numbers are of, in a line."""
    files = (
        "1 posteriors file" if len(report.names) == 1 else f"{len(report.names)} posteriors files"
    )
    return (
        f"{files} of {report.fused.num_images:,} images in {report.num_classes:,} classes "
        f"(manifest {report.sources[0].images[:8]})"
    )


def percent(fraction: float | None, digits: int = 2) -> str:
    """`0.2961` -> `29.61`; a dash where there is nothing."""
    return "–" if fraction is None else f"{100 * fraction:.{digits}f}"


def signed_percent(fraction: float | None) -> str:
    """`0.0011` -> `+0.11`; a difference that rounds to nothing is `0.00`."""
    if fraction is None:
        return "–"
    text = f"{100 * fraction:+.2f}"
    return "0.00" if float(text) == 0 else text


_OWN_ERRORS = (Column("top-1 %"), Column("top-5 %"))


def _paper_table(
    table: paper.PaperTable, lines: tuple[Line, ...], is_comparable: bool
) -> TextTable:
    """A table in the paper's form, with ours in it; `run` tells several trainings apart."""
    columns, cells = _row_heads(table)
    errors = tuple(
        column
        for group in ("top-1", "top-5")
        for column in (
            Column("paper", group),
            Column("ours", group),
            Column("difference", group, is_difference=True, is_judged=is_comparable),
        )
    )
    has_test = any(line.row.top5_test_error is not None for line in lines)
    has_runs = any(line.run for line in lines)
    test = (Column("paper", "top-5, test"),) if has_test else ()
    run = (Column("run", is_number=False, wraps=True),) if has_runs else ()
    return TextTable(
        f"Table {table.number}: {table.caption} (errors in %)",
        (*columns, *errors, *test, *run),
        tuple(
            (
                *(*cells(line.row), *_errors(line)),
                *((percent(line.row.top5_test_error, 1),) if has_test else ()),
                *((line.run,) if has_runs else ()),
            )
            for line in lines
        ),
        tuple(dict.fromkeys(line.problem for line in lines if line.problem)),
    )


def _row_heads(
    table: paper.PaperTable,
) -> tuple[tuple[Column, ...], Callable[[paper.Row], tuple[str, ...]]]:
    """The columns left of the errors, and their cells."""
    network, scale = Column("network", is_number=False), Column("S", is_number=False)
    tests = Column("Q", is_number=False)
    if table.number in (6, 7):
        return (Column("method", is_number=False, wraps=True),), lambda row: (row.method,)
    if table.number == 5:
        return (
            (network, Column("method", is_number=False)),
            lambda row: (row.networks[0].configuration, " & ".join(row.protocols)),
        )
    return (network, scale, tests), lambda row: _tested(row.networks[0])


def _tested(tested: paper.TestedNetwork) -> tuple[str, ...]:
    scales = ",".join(map(str, tested.scales))
    return tested.configuration, format_train_scale(tested.train_scale), scales


def _errors(line: Line) -> tuple[str, ...]:
    """Paper, ours, difference; twice."""
    row, ours = line.row, line.errors
    top1, top5 = percent(row.top1_error, 1), percent(row.top5_error, 1)
    if not row.networks:
        return top1, "", "", top5, "", ""
    if ours is None:
        # Where some of the files are there, a note says which are not.
        absent = "–" if line.problem else NO_RUN
        return top1, absent, "", top5, absent, ""
    return (
        *(top1, percent(ours.top1_error)),
        signed_percent(difference(ours.top1_error, row.top1_error)),
        *(top5, percent(ours.top5_error)),
        signed_percent(difference(ours.top5_error, row.top5_error)),
    )


def _own(errors: ErrorRates | None) -> tuple[str, str]:
    assert errors is not None
    return percent(errors.top1_error), percent(errors.top5_error)


_TRAINED = (
    Column("network", is_number=False),
    Column("S", is_number=False),
    Column("weights", is_number=False),
)


def _trained(source: Source) -> tuple[str, ...]:
    scale = "–" if source.train_scale is None else format_train_scale(source.train_scale)
    return source.network, scale, source.weights[:8]


def _averages_table(averages: tuple[Average, ...]) -> TextTable:
    return TextTable(
        "Every network at all its scales",
        (
            *_TRAINED,
            Column("protocol", is_number=False, wraps=True),
            Column("Q", is_number=False, wraps=True),
            Column("flip", is_number=False),
            *_OWN_ERRORS,
        ),
        tuple(
            (
                *_trained(one.source),
                " & ".join(one.protocols),
                ",".join(map(str, one.scales)),
                "yes" if one.source.flip else "no",
                *_own(one.errors),
            )
            for one in averages
        ),
        ("Means of the posteriors of one network over Q; multi-crop & dense at the Q of both.",),
    )


def _files_table(report: Report) -> TextTable:
    return TextTable(
        "All files",
        (
            *_TRAINED,
            Column("protocol", is_number=False),
            Column("Q"),
            Column("flip", is_number=False),
            *_OWN_ERRORS,
            Column("file", is_number=False, wraps=True),
        ),
        tuple(
            (
                *_trained(source),
                source.protocol,
                str(source.scale),
                "yes" if source.flip else "no",
                *_own(errors),
                name,
            )
            for name, source, errors in zip(
                report.names, report.sources, report.errors, strict=True
            )
        ),
    )


def _fused_table(report: Report) -> TextTable:
    count = len(report.names)
    what = "the file as it is" if count == 1 else f"mean of all {count} files"
    return TextTable(
        "Fused", (Column("", is_number=False), *_OWN_ERRORS), ((what, *_own(report.fused)),)
    )


def render_report(report: Report) -> str:
    """The tables for a terminal."""
    console = Console(width=None if Console().is_terminal else 1000)
    with console.capture() as captured:
        console.print(Text(heading(report), style="bold"))
        for note in report.notes:
            console.print(Text(note))
        console.print()
        for table in report_tables(report):
            console.print(_rich(table))
    # Not padded to the width of a log file.
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _rich(table: TextTable) -> RenderableType:
    """Narrow enough for 80 columns in most tables."""
    shown = Table(
        title=Text(table.title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    before = ""
    for column in table.columns:
        # Said once, above the first of its columns: all of them would be as wide as its name.
        group = f"{'' if column.group == before else column.group}\n" if column.group else ""
        before = column.group
        shown.add_column(
            Text(group + ("diff." if column.is_difference else column.name)),
            justify="right" if column.is_number else "left",
            no_wrap=not column.wraps,
            overflow="fold",
        )
    for row in table.rows:
        cells = zip(table.columns, row, strict=True)
        shown.add_row(*(Text(cell, _COLORS.get(cell_kind(one, cell), "")) for one, cell in cells))
    notes = [Text(note) for note in table.notes]
    return Group(shown, *notes, Text()) if notes else shown


_COLORS = {"less": "green", "more": "red", "muted": "dim"}


def cell_kind(column: Column, cell: str) -> str:
    """Which cells are set off from the others: `less` and `more` than the paper, `muted`."""
    if cell == NO_RUN or (column.is_difference and not column.is_judged):
        return "muted"
    return {"+": "more", "-": "less"}.get(cell[:1], "") if column.is_judged else ""
