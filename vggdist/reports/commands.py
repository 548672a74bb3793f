"""The verb report: the paper's tables beside ours, from posteriors files."""

import argparse
from typing import Any

from vggdist.artifacts.paths import quote
from vggdist.commands.arguments import add_input, add_json, add_output, show

DESCRIPTION = """\
Fuses posteriors files, which `vggdist evaluate` writes, and prints Tables 3 to 7 of the paper: its
error, ours and the difference for every row. A row whose files are not given says "no run". Behind
them stand the errors of every network at all its scales, of every file, and of the mean of all
files. Files of one table are of the same images; of several trainings of the same network, each
gets a line of its own.
"""


def add_verbs(verbs: Any) -> None:
    """Adds this verb to the command line."""
    report = verbs.add_parser(
        "report",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=DESCRIPTION,
        epilog="examples: vggdist report runs/vgg_d runs/vgg_e --out report\n"
        "          vggdist report runs/vgg_d/posteriors/*.npz --json report.json",
    )
    add_input(
        report,
        "files",
        nargs="+",
        metavar="FILE",
        help="posteriors files, or folders that hold some, such as run folders",
    )
    add_output(
        report,
        "--out",
        metavar="DIR",
        help="also write report.html (one file, pictures included), report.md and its pictures",
    )
    add_json(report)
    report.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> None:
    from vggdist.artifacts.posteriors import open_posteriors
    from vggdist.reports.page import write_report
    from vggdist.reports.report import find_posteriors, make_report
    from vggdist.reports.tables import render_report
    from vggdist.terminal import Progress

    paths = find_posteriors(arguments.files)
    progress = Progress(len(open_posteriors(paths[0]).labels), is_usual=False)
    report = make_report(paths, progress.advance)
    progress.close()
    text = render_report(report)
    if arguments.out is not None:
        page = write_report(report, arguments.out)
        text += f"\n\nWritten to {quote(page)} and {quote(page.with_suffix('.md'))}"
    show(text, report.to_dict(), arguments.json)
