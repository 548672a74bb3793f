"""The verbs runs and compare: trainings at a glance, and side by side."""

import argparse
import sys
from pathlib import Path
from typing import Any

from vggdist.commands.arguments import add_input, add_json, add_output, positive, show, write_json

RUNS = """\
Lists the trainings in a folder and below it, those with the newest points first: where each is, its
top-1 errors, its speed, the time left, and how old its last point is. Nothing is written, and any
machine that sees the folder may ask.

  running   a process trains there now
  stopped   none does; the command that began the training continues it
  finished  its result.json is there
"""
COMPARE = """\
Prints the results of trainings side by side, and every setting in which they differ. --out draws
their curves by epoch (errors, loss, learning rate, speed): as .png, or as .html with the table.
"""


def add_verbs(verbs: Any) -> None:
    """Adds these verbs to the command line."""
    runs = verbs.add_parser(
        "runs",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=RUNS,
        epilog="examples: vggdist runs\n          vggdist runs /data/runs --watch 5",
    )
    add_input(
        runs,
        "folder",
        nargs="?",
        default=Path("runs"),
        metavar="DIR",
        help="where to look (default: runs)",
    )
    runs.add_argument(
        "--watch",
        type=positive,
        metavar="SECONDS",
        help="renew the table so often, until Ctrl-C",
    )
    add_json(runs)
    runs.set_defaults(run=_runs)

    compare = verbs.add_parser(
        "compare",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=COMPARE,
        epilog="example: vggdist compare runs/a runs/b --out comparison.html",
    )
    add_input(compare, "folders", nargs="+", metavar="RUN", help="run folders")
    add_output(
        compare,
        "--out",
        suffixes=(".png", ".html"),
        metavar="FILE",
        help="also draw the curves, as PNG, or with the table as HTML",
    )
    add_json(compare)
    compare.set_defaults(run=_compare)


def _runs(arguments: argparse.Namespace) -> None:
    from vggdist.artifacts.paths import quote
    from vggdist.monitoring.folders import find_runs
    from vggdist.monitoring.table import render_runs
    from vggdist.terminal import watch

    def table() -> str:
        runs = find_runs(arguments.folder)
        if arguments.json is not None:
            write_json({"runs": [run.to_dict() for run in runs]}, arguments.json)
        return render_runs(runs) if runs else f"no trainings below {quote(arguments.folder)} yet."

    if arguments.watch is None:
        sys.stdout.write(table() + "\n")
    else:
        watch(table, arguments.watch)


def _compare(arguments: argparse.Namespace) -> None:
    from vggdist.artifacts.paths import quote
    from vggdist.monitoring.comparison import compare, write_comparison
    from vggdist.monitoring.folders import open_runs

    comparison = compare(open_runs(arguments.folders))
    text = comparison.render()
    if arguments.out is not None:
        write_comparison(comparison, arguments.out)
        text += f"\n\nWritten to {quote(arguments.out)}"
    show(text, comparison.to_dict(), arguments.json)
