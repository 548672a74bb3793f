"""A report as files: `report.html`, complete in itself, and `report.md` with its pictures."""

from __future__ import annotations

import re
from pathlib import Path

from jinja2 import Environment, PackageLoader

from vggdist.artifacts.paths import quote
from vggdist.errors import VggdistError
from vggdist.reports.chart import Kind, draw_error_chart
from vggdist.reports.report import Report
from vggdist.reports.tables import TextTable, cell_kind, heading, percent, report_tables

TITLE = "The paper's errors and ours"
CHARTS: dict[Kind, str] = {"top1_error": "top1_error.svg", "top5_error": "top5_error.svg"}


def write_report(report: Report, folder: Path) -> Path:
    """Writes the files; `report.html`'s path is returned.

    Raises:
        VggdistError: they cannot be written.
    """
    charts = {name: draw_error_chart(report, kind) for kind, name in CHARTS.items()}
    tables = report_tables(report)
    page = folder / "report.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, chart in charts.items():
            (folder / name).write_text(chart, encoding="utf-8")
        page.write_text(_html(report, tables, list(charts.values())), encoding="utf-8")
        page.with_suffix(".md").write_text(_markdown(report, tables), encoding="utf-8")
    except OSError as error:
        raise VggdistError(f"the report cannot be written to {quote(folder)}: {error}.") from error
    return page


def _html(report: Report, tables: list[TextTable], charts: list[str]) -> str:
    """One page with everything in it."""
    templates = Environment(
        loader=PackageLoader("vggdist.reports", "."), autoescape=True, keep_trailing_newline=True
    )
    return templates.get_template("page.html.jinja").render(
        title=TITLE,
        heading=heading(report),
        mean="the file" if len(report.names) == 1 else "the mean of all files",
        results=(
            (f"{percent(report.fused.top1_error)} %", "top-1 error"),
            (f"{percent(report.fused.top5_error)} %", "top-5 error"),
            (f"{report.fused.num_images:,}", "images"),
        ),
        notes=report.notes,
        charts=charts,
        tables=tables,
        cell_kind=cell_kind,
        zip=zip,
    )


def _markdown(report: Report, tables: list[TextTable]) -> str:
    """The tables for a README or an issue; it shows the pictures that lie beside it."""
    parts = [f"# {TITLE}", f"{_escaped(heading(report))}.", *map(_escaped, report.notes)]
    parts += [f"![{name.partition('_')[0]} errors]({name})" for name in CHARTS.values()]
    for table in tables:
        columns = table.columns
        names = [f"{column.group}: {column.name}".removeprefix(": ") for column in columns]
        rules = ["---" if column.kind == "text" else "---:" for column in columns]
        head, *rows = ([_escaped(cell) for cell in row] for row in (names, *table.rows))
        lines = [f"| {' | '.join(cells)} |" for cells in (head, rules, *rows)]
        parts += [f"## {_escaped(table.title)}", "\n".join(lines), *map(_escaped, table.notes)]
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    """Text without any mark-up of Markdown or HTML in it."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", " ".join(text.splitlines()))
