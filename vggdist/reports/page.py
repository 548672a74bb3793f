"""A report as files: `report.html`, complete in itself, and `report.md` with its pictures."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

from jinja2 import Environment, PackageLoader
from PIL import Image

from vggdist.artifacts.paths import quote
from vggdist.errors import VggdistError
from vggdist.evaluation.metrics import TOP5
from vggdist.reports.chart import Kind, draw_error_chart
from vggdist.reports.pictures import draw_pictures
from vggdist.reports.report import Report
from vggdist.reports.tables import TextTable, cell_kind, heading, percent, report_tables

CHARTS: tuple[Kind, ...] = ("top1_error", "top5_error")


def write_report(report: Report, folder: Path, root: str | None = None) -> Path:
    """Writes the files; `report.html`'s path is returned.

    Args:
        root: the data set whose images are shown; None: the one of the run, if it can be found.

    Raises:
        VggdistError: they cannot be written, or the images are not those of `root`.
    """
    kinds = CHARTS[: 1 + (report.num_classes > TOP5)]
    charts = {f"{kind}.svg": draw_error_chart(report, kind) for kind in kinds}
    pictures = {f"{n}.png": _png(p) for n, p in draw_pictures(report, root).items()}
    tables = report_tables(report)
    page = folder / "report.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, chart in charts.items():
            (folder / name).write_text(chart, encoding="utf-8")
        for name, picture in pictures.items():
            (folder / name).write_bytes(picture)
        page.write_text(_html(report, tables, list(charts.values()), pictures), encoding="utf-8")
        names = [*charts, *pictures]
        page.with_suffix(".md").write_text(_markdown(report, tables, names), encoding="utf-8")
    except OSError as error:
        raise VggdistError(f"the report cannot be written to {quote(folder)}: {error}.") from error
    return page


def title(report: Report) -> str:
    """What the report is about."""
    return "The paper's errors and ours" if report.is_comparable else "Errors by class and image"


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "png")
    return file.getvalue()


def _html(
    report: Report, tables: list[TextTable], charts: list[str], pictures: dict[str, bytes]
) -> str:
    """One page with everything in it."""
    templates = Environment(
        loader=PackageLoader("vggdist.reports", "."), autoescape=True, keep_trailing_newline=True
    )
    return templates.get_template("page.html.jinja").render(
        title=title(report),
        heading=heading(report),
        mean="the file" if len(report.names) == 1 else "the mean of all files",
        results=(
            (f"{percent(report.fused.top1_error)} %", "top-1 error"),
            *(
                [(f"{percent(report.fused.top5_error)} %", "top-5 error")]
                if report.num_classes > TOP5
                else []
            ),
            (f"{report.fused.num_images:,}", "images"),
        ),
        notes=report.notes,
        charts=charts,
        pictures={
            name.partition(".")[0]: base64.b64encode(picture).decode()
            for name, picture in pictures.items()
        },
        tables=tables,
        cell_kind=cell_kind,
        zip=zip,
    )


def _markdown(report: Report, tables: list[TextTable], pictures: list[str]) -> str:
    """The tables for a README or an issue; it shows the pictures that lie beside it."""
    parts = [f"# {title(report)}", f"{_escaped(heading(report))}.", *map(_escaped, report.notes)]
    parts += [f"![{name.partition('.')[0].replace('_', ' ')}]({name})" for name in pictures]
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
