"""The `vggdist` command: its verbs stand in `commands/`. Training itself is `launch/train.py`."""

import argparse
import re
import sys
from collections.abc import Sequence

from vggdist.commands import (
    evaluation,
    images,
    networks,
    planning,
    prediction,
    report,
    speed,
    transfer,
)
from vggdist.errors import VggdistError

DESCRIPTION = """\
Look at networks, prepare images and measure speed. Training is started by launch/train.py, under
deepspeed, torchrun or plain python.
"""


def main() -> int:
    """Runs the verb of the command line; problems that a user can solve end without a traceback."""
    arguments = parse(sys.argv[1:])
    try:
        return arguments.run(arguments) or 0
    except VggdistError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Reads a command line, in which `section.key=value` may stand anywhere behind the verb.

    argparse takes them in one place only, and its remedy does not know of verbs.
    """
    parser = build_parser()
    arguments, rest = parser.parse_known_args(words)
    unknown = [word for word in rest if not re.match(r"@|[a-z_.]+=", word)]
    if unknown or (rest and not hasattr(arguments, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(unknown or rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def build_parser() -> argparse.ArgumentParser:
    """The command line of all verbs."""
    parser = argparse.ArgumentParser(prog="vggdist", description=DESCRIPTION)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for group in (networks, prediction, images, evaluation, report, transfer, planning, speed):
        group.add_verbs(verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
