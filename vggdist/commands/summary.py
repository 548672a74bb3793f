"""The verb summary."""

import argparse
from typing import Any

from vggdist.commands.arguments import add_config, add_configuration, add_json, configured, show


def add_verbs(verbs: Any) -> None:
    """Adds it to the command line."""
    parser = verbs.add_parser(
        "summary",
        epilog="example: vggdist summary --configuration E data.crop_size=320",
    )
    add_configuration(parser)
    add_config(parser)
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from vggdist.model.summary import render_summary, summarize

    config = configured(arguments)
    summary = summarize(config.model, config.data.crop_size)
    show(render_summary(summary), summary.to_dict(), arguments.json)
