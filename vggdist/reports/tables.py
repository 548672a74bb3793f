"""A report as tables of text, which a terminal, Markdown and HTML show alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Literal

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vggdist.artifacts.names import printable
from vggdist.artifacts.posteriors import format_train_scale
from vggdist.evaluation.fusion import ErrorRates, Members
from vggdist.evaluation.metrics import TOP5
from vggdist.reports import paper
from vggdist.reports.matching import Line
from vggdist.reports.report import Report, difference
from vggdist.terminal import render

NO_RUN = "no run"
MOST_ROWS = 20


@dataclass(frozen=True)
class Column:
    """A column's head; columns of one group stand beside each other under its name."""

    name: str
    group: str = ""
    kind: Literal["text", "number", "difference", "judged"] = "number"
    """judged: a difference of which less is better; not where the paper's images have other
    classes."""
    wraps: bool = False
    """Whether its cells may take several lines."""


@dataclass(frozen=True)
class TextTable:
    """A table whose cells are text that still has to be escaped."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    is_long: bool = False
    """Whether a terminal shows the first `MOST_ROWS` rows only."""

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Name, empty for columns of none, and number of columns, from left to right."""
        groups = groupby(self.columns, key=lambda column: column.group)
        return [(name, len(list(columns))) for name, columns in groups]


def report_tables(report: Report) -> list[TextTable]:
    """The paper's tables, or which classes and images fail; then what there is beyond them."""
    tables = [_paper_table(table, lines, report) for table, lines in report.tables]
    if report.averages:
        tables.append(_averages_table(report))
    tables += [_files_table(report), _fused_table(report)]
    if report.class_errors.num_images:
        tables += [_classes_table(report), _pairs_table(report), _mistakes_table(report)]
    return [table for table in tables if table.rows]


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


_text_column = partial(Column, kind="text")
_TRAINED = (_text_column("network"), _text_column("S"), _text_column("weights"))


def _paper_table(table: paper.PaperTable, lines: Sequence[Line], report: Report) -> TextTable:
    """A table in the paper's form, with ours in it; `run` tells several trainings apart."""
    heads = [_row_heads(table.number, line.row) for line in lines]
    columns = tuple(_text_column(name, wraps=table.number in (6, 7)) for name in heads[0])
    for group in ("top-1", "top-5"):
        judged = Column("difference", group, "judged" if report.is_comparable else "difference")
        columns += (Column("paper", group), Column("ours", group), judged)
    has_test = any(line.row.top5_test_error is not None for line in lines)
    if has_test:
        columns += (Column("paper", "top-5, test"),)
    has_runs = any(line.run for line in lines)
    if has_runs:
        columns += (_text_column("run", wraps=True),)
    return TextTable(
        f"Table {table.number}: {table.caption} (errors in %)",
        columns,
        tuple(
            (
                *(*head.values(), *_errors(line, report.errors.get(line.files))),
                *((percent(line.row.top5_test_error, 1),) if has_test else ()),
                *((line.run,) if has_runs else ()),
            )
            for line, head in zip(lines, heads, strict=True)
        ),
        tuple(dict.fromkeys(line.problem for line in lines if line.problem)),
    )


def _row_heads(number: int, row: paper.Row) -> dict[str, str]:
    """The columns left of the errors, and a row's cells there."""
    if number in (6, 7):
        return {"method": row.method}
    network = row.networks[0]
    if number == 5:
        return {"network": network.configuration, "method": " & ".join(row.protocols)}
    return {
        "network": network.configuration,
        "S": format_train_scale(network.train_scale),
        "Q": ",".join(map(str, network.scales)),
    }


def _errors(line: Line, ours: ErrorRates | None) -> tuple[str, ...]:
    """Paper, ours, difference; twice."""
    row = line.row
    cells: tuple[str, ...] = ()
    for name in ("top1_error", "top5_error"):
        papers: float | None = getattr(row, name)
        if ours is not None:
            error = getattr(ours, name)
            own = percent(error), signed_percent(difference(error, papers))
        elif row.networks:
            # Where some of the files are there, a note says which are not.
            own = "–" if line.problem else NO_RUN, ""
        else:
            own = "", ""
        cells += (percent(papers, 1), *own)
    return cells


def _error_columns(report: Report) -> tuple[Column, ...]:
    """Of few classes the top-5 error says nothing."""
    return (Column("top-1 %"), Column("top-5 %"))[: 1 + (report.num_classes > TOP5)]


def _error_cells(report: Report, errors: ErrorRates) -> tuple[str, ...]:
    cells = percent(errors.top1_error), percent(errors.top5_error)
    return cells[: len(_error_columns(report))]


def _own_cells(report: Report, files: Members) -> tuple[str, ...]:
    """From the network's name to the errors."""
    source, errors = report.sources[files[0]], report.errors[files]
    return (
        source.network,
        "–" if source.train_scale is None else format_train_scale(source.train_scale),
        source.weights[:8],
        " & ".join(report.protocols(files)),
        ",".join(map(str, report.scales(files))),
        "yes" if source.flip else "no",
        *_error_cells(report, errors),
    )


def _averages_table(report: Report) -> TextTable:
    tested = _text_column("protocol", wraps=True), _text_column("Q", wraps=True)
    return TextTable(
        "Every network at all its scales",
        (*_TRAINED, *tested, _text_column("flip"), *_error_columns(report)),
        tuple(_own_cells(report, files) for files in report.averages),
        ("Means of the posteriors of one network over Q; multi-crop & dense at the Q of both.",),
    )


def _files_table(report: Report) -> TextTable:
    tested, file = (_text_column("protocol"), Column("Q")), _text_column("file", wraps=True)
    return TextTable(
        "All files",
        (*_TRAINED, *tested, _text_column("flip"), *_error_columns(report), file),
        tuple((*_own_cells(report, (n,)), name) for n, name in enumerate(report.names)),
    )


def _fused_table(report: Report) -> TextTable:
    count = len(report.names)
    what = "the file as it is" if count == 1 else f"mean of all {count} files"
    errors = _error_cells(report, report.fused)
    return TextTable("Fused", (_text_column(""), *_error_columns(report)), ((what, *errors),))


def _classes_table(report: Report) -> TextTable:
    """Every class, the largest error first, and for what its images are taken most often."""
    errors = report.class_errors
    taken = {pair.truth: pair for pair in reversed(errors.pairs)}
    shown = [label for label, number in enumerate(errors.num_images) if number]
    rows = []
    for label in sorted(shown, key=lambda label: -errors.error(label)):
        pair = taken.get(label)
        most = "" if pair is None else f"{_name(report, pair.prediction)} ({pair.num_images:,})"
        counts = f"{errors.num_images[label]:,}", f"{errors.num_wrong[label]:,}"
        rows.append((_name(report, label), *counts, percent(errors.error(label)), most))
    numbers = Column("images"), Column("wrong"), Column("top-1 %")
    columns = (_text_column("class"), *numbers, _text_column("most often taken for", wraps=True))
    return TextTable("Errors by class, of all files together", columns, tuple(rows), is_long=True)


def _pairs_table(report: Report) -> TextTable:
    columns = _text_column("is"), _text_column("taken for"), Column("images")
    rows = tuple(
        (_name(report, pair.truth), _name(report, pair.prediction), f"{pair.num_images:,}")
        for pair in report.class_errors.pairs[:MOST_ROWS]
    )
    return TextTable("Most often taken for another", columns, rows)


def _mistakes_table(report: Report) -> TextTable:
    texts = _text_column("image", wraps=True), _text_column("is"), _text_column("taken for")
    rows = tuple(
        (
            *map(printable, (found.image, found.truth, found.prediction)),
            percent(found.confidence, 1),
        )
        for found in report.mistakes
    )
    title = "Worst mistakes, the surest first"
    return TextTable(title, (*texts, Column("confidence %")), rows, is_long=True)


def _name(report: Report, label: int) -> str:
    return printable(report.classes[label])


def render_report(report: Report) -> str:
    """The tables for a terminal."""
    notes = map(Text, report.notes)
    tables = map(_rich, report_tables(report))
    return render(Text(heading(report), style="bold"), *notes, Text(), *tables, width=1000)


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
            Text(group + column.name.replace("difference", "diff.")),
            justify="left" if column.kind == "text" else "right",
            no_wrap=not column.wraps,
            overflow="fold",
        )
    rows = table.rows[:MOST_ROWS] if table.is_long else table.rows
    for row in rows:
        shown.add_row(
            *(
                Text(cell, _COLORS.get(cell_kind(column, cell), ""))
                for column, cell in zip(table.columns, row, strict=True)
            )
        )
    notes = [Text(note) for note in table.notes]
    if num_left := len(table.rows) - len(rows):
        notes.append(Text(f"{num_left:,} more are in the files that --out writes."))
    return Group(shown, *notes, Text()) if notes else shown


_COLORS = {"less": "green", "more": "red", "muted": "dim"}


def cell_kind(column: Column, cell: str) -> str:
    """Which cells are set off from the others: `less` and `more` than the paper, `muted`."""
    if cell == NO_RUN or column.kind == "difference":
        return "muted"
    return {"+": "more", "-": "less"}.get(cell[:1], "") if column.kind == "judged" else ""
