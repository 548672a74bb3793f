"""The `vggdist` command: mounts the verbs of the core and of each room."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from vggdist.distributed import entry  # before all else: until `entry.run`, Ctrl-C leaves a trace

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

VERBS = (
    "vggdist.commands.summary",
    "vggdist.convert.commands",
    "vggdist.commands.prediction",
    "vggdist.prepare.commands",
    "vggdist.slurm.commands",
    "vggdist.experiments.commands",
    "vggdist.commands.evaluation",
    "vggdist.reports.commands",
    "vggdist.transfer.commands",
    "vggdist.planning.commands",
    "vggdist.profiling.commands",
)
"""Modules that add verbs to the command line, in the order of its help. A room may go together with
its line."""

DESCRIPTION = """\
Look at networks, prepare images, submit trainings to a cluster, evaluate, and measure speed. On one
machine a training is started by launch/train.py, under deepspeed, torchrun or plain python.
"""


def main() -> int:
    """Runs the verb of the command line; problems that a user can solve end without a traceback."""
    return entry.run(_run)


def _run() -> int:
    from vggdist.commands.arguments import check_outputs

    arguments = parse(sys.argv[1:])
    check_outputs(arguments)
    return arguments.run(arguments) or 0


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Reads a command line, in which `section.key=value` may stand anywhere behind the verb.

    argparse takes them in one place only, and its remedy does not know of verbs.
    """
    parser = build_parser()
    arguments, rest = parser.parse_known_args(words)
    if hasattr(arguments, "network") and _is_setting(arguments.network):
        try:
            rest = _find_network(arguments, rest)
        except ValueError as error:
            parser.error(f"argument WEIGHTS_OR_RUN: {error}")
    unknown = [word for word in rest if not _is_setting(word)]
    if unknown or (rest and not hasattr(arguments, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(unknown or rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _find_network(arguments: argparse.Namespace, rest: list[str]) -> list[str]:
    """Takes the first word that sets nothing for the network; returns the others."""
    from vggdist.artifacts.paths import expand_home

    words = [arguments.network, *getattr(arguments, "overrides", ()), *rest]
    network = next((word for word in words if not _is_setting(word)), words[0])
    words.remove(network)
    arguments.network, arguments.overrides = expand_home(network), []
    return words


def _is_setting(word: str) -> bool:
    import re

    return re.match(r"@|[a-z0-9_.]+=", word) is not None


def build_parser() -> argparse.ArgumentParser:
    """The command line of all verbs."""
    import argparse

    from vggdist.commands.arguments import add_local_rank

    # Abbreviated, `--local_rank` of launchers would be in the way of `--local`.
    parser = argparse.ArgumentParser("vggdist", description=DESCRIPTION, allow_abbrev=False)
    add_local_rank(parser)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for module in VERBS:
        import_module(module).add_verbs(verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
