"""A report as files: `report.html`, complete in itself, and `report.md` with its pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from vggdist.artifacts.paths import quote
from vggdist.errors import VggdistError
from vggdist.reports.chart import Kind, draw_error_chart
from vggdist.reports.report import Report
from vggdist.reports.tables import (
    Column,
    TextTable,
    cell_kind,
    heading,
    percent,
    report_tables,
)

TITLE = "The paper's errors and ours"
CHARTS: dict[Kind, str] = {"top1_error": "top1_error.svg", "top5_error": "top5_error.svg"}

STYLE = """\
:root { color-scheme: light dark; --ink: #1f2733; --muted: #667085; --line: #d5dae3;
  --paper: #ffffff; --band: #f6f7fa; --good: #2e7d42; --bad: #b8434e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ef; --muted: #9aa5b8; --line: #3a4352; --paper: #14181f; --band: #1c222c;
    --good: #6fc485; --bad: #ef8b94; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 4rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .5rem; }
p { margin: .4rem 0; }
.muted { color: var(--muted); }
.results { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.results div { flex: 1 1 6rem; padding: .7rem .9rem; border-radius: .6rem;
  background: var(--band); }
.results b { display: block; font-size: 1.5rem; line-height: 1.2; white-space: nowrap; }
.results span { color: var(--muted); font-size: .85rem; }
.wide { overflow-x: auto; }
.wide svg { display: block; margin: 1.4rem 0; width: 100%; min-width: 44rem; height: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: left; white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; color: var(--muted); }
thead { border-bottom: 1px solid var(--line); }
thead th[colspan] { text-align: center; border-bottom: 1px solid var(--line); }
.note { color: var(--muted); font-size: .85rem; }
tbody tr:nth-child(even) { background: var(--band); }
.number { text-align: right; }
.less { color: var(--good); }
.more { color: var(--bad); }
td:last-child:not(.number) { white-space: normal; min-width: 12rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  th, td { padding: .25rem .4rem; }
  table { font-size: .8rem; }
  td:first-child { white-space: normal; }
}
"""


def write_report(report: Report, folder: Path) -> Path:
    """Writes the files; `report.html`'s path is returned.

    Raises:
        VggdistError: they cannot be written.
    """
    charts = {name: draw_error_chart(report, kind) for kind, name in CHARTS.items()}
    page = folder / "report.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, chart in charts.items():
            (folder / name).write_text(chart, encoding="utf-8")
        page.write_text(render_html(report, tuple(charts.values())), encoding="utf-8")
        page.with_suffix(".md").write_text(render_markdown(report), encoding="utf-8")
    except OSError as error:
        raise VggdistError(f"the report cannot be written to {quote(folder)}: {error}.") from error
    return page


def render_html(report: Report, charts: Sequence[str]) -> str:
    """One page with everything in it; `charts` are SVG pictures."""
    fused = report.fused
    results = (
        (f"{percent(fused.top1_error)} %", "top-1 error"),
        (f"{percent(fused.top5_error)} %", "top-5 error"),
        (f"{fused.num_images:,}", "images"),
    )
    mean = "the file" if len(report.names) == 1 else "the mean of all files"
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(TITLE)}</title>",
        f"<style>\n{STYLE}</style></head><body>",
        f"<h1>{escape(TITLE)}</h1>",
        f'<p class="muted">{escape(heading(report))}. Errors of {mean}:</p>',
        '<div class="results">',
        *(f"<div><b>{value}</b><span>{name}</span></div>" for value, name in results),
        "</div>",
        *(f"<p>{escape(note)}</p>" for note in report.notes),
        *(f'<div class="wide">{chart}</div>' for chart in charts),
        *(_html_table(table) for table in report_tables(report)),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _html_table(table: TextTable) -> str:
    grouped = any(column.group for column in table.columns)
    above, below = [], []
    for group, columns in groupby(table.columns, key=lambda column: column.group):
        found = list(columns)
        if group:
            above.append(f'<th colspan="{len(found)}">{escape(group)}</th>')
        else:
            above += ["<th></th>"] * len(found)
        below += [_html_cell("th", column, column.name) for column in found]
    lines = [f"<tr>{''.join(row)}</tr>" for row in ([above, below] if grouped else [below])]
    head = "\n".join(lines)
    body = "\n".join(
        "<tr>"
        + "".join(
            _html_cell("td", column, cell, cell_kind(column, cell))
            for column, cell in zip(table.columns, row, strict=True)
        )
        + "</tr>"
        for row in table.rows
    )
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    return (
        f"<h2>{escape(table.title)}</h2>\n"
        f'<div class="wide"><table><thead>\n{head}\n</thead><tbody>\n{body}\n</tbody></table></div>'
        f"\n{notes}"
    )


def _html_cell(tag: str, column: Column, cell: str, kind: str = "") -> str:
    classes = " ".join(filter(None, ("number" if column.is_number else "", kind)))
    attribute = f' class="{classes}"' if classes else ""
    return f"<{tag}{attribute}>{escape(cell)}</{tag}>"


def render_markdown(report: Report) -> str:
    """The tables for a README or an issue; it shows the pictures that lie beside it."""
    parts = [f"# {TITLE}", f"{_markdown(heading(report))}."]
    parts += [_markdown(note) for note in report.notes]
    parts += [f"![{name.partition('_')[0]} errors]({name})" for name in CHARTS.values()]
    for table in report_tables(report):
        parts.append(f"## {_markdown(table.title)}")
        parts.append(_markdown_table(table))
        parts += [_markdown(note) for note in table.notes]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: TextTable) -> str:
    names = [
        f"{column.group}: {column.name}" if column.group else column.name
        for column in table.columns
    ]
    rules = ["---:" if column.is_number else "---" for column in table.columns]
    rows = [[_markdown(cell) for cell in row] for row in (names, *table.rows)]
    lines = [rows[0], rules, *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown(text: str) -> str:
    """Text without any mark-up of Markdown or HTML in it."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", " ".join(text.splitlines()))
