"""The `vggdist` command: its verbs stand in `commands/`. Training itself is `launch/train.py`."""

import argparse
import re
import sys
from collections.abc import Sequence

from vggdist.commands import (
    evaluation,
    experiment,
    images,
    networks,
    planning,
    prediction,
    report,
    speed,
    submission,
    transfer,
)
from vggdist.errors import VggdistError, no_space_left

DESCRIPTION = """\
Look at networks, prepare images, submit trainings to a cluster, evaluate, and measure speed. On one
machine a training is started by launch/train.py, under deepspeed, torchrun or plain python.
"""


def main() -> int:
    """Runs the verb of the command line; problems that a user can solve end without a traceback."""
    arguments = parse(sys.argv[1:])
    try:
        return arguments.run(arguments) or 0
    except VggdistError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except OSError as error:
        if (sentence := no_space_left(error)) is None:
            raise
        sys.stderr.write(f"error: {sentence}\n")
        return VggdistError.exit_code
    except KeyboardInterrupt:
        return 130


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Reads a command line, in which `section.key=value` may stand anywhere behind the verb.

    argparse takes them in one place only, and its remedy does not know of verbs.
    """
    parser = build_parser()
    arguments, rest = parser.parse_known_args(words)
    if hasattr(arguments, "network") and _is_setting(arguments.network):
        rest = _find_network(arguments, rest)
    unknown = [word for word in rest if not _is_setting(word)]
    if unknown or (rest and not hasattr(arguments, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(unknown or rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _find_network(arguments: argparse.Namespace, rest: list[str]) -> list[str]:
    """Takes the first word that sets nothing for the network; returns the others."""
    words = [arguments.network, *getattr(arguments, "overrides", ()), *rest]
    arguments.network = next((word for word in words if not _is_setting(word)), words[0])
    words.remove(arguments.network)
    arguments.overrides = []
    return words


def _is_setting(word: str) -> bool:
    return re.match(r"@|[a-z0-9_.]+=", word) is not None


def build_parser() -> argparse.ArgumentParser:
    """The command line of all verbs."""
    parser = argparse.ArgumentParser(prog="vggdist", description=DESCRIPTION)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for group in (
        networks,
        prediction,
        images,
        submission,
        experiment,
        evaluation,
        report,
        transfer,
        planning,
        speed,
    ):
        group.add_verbs(verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
