"""The `vggdist` command: mounts the verbs of the core and of each room."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vggdist import __version__
from vggdist.distributed import entry  # first: until `entry.run`, Ctrl-C prints a traceback

if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection, Iterable, Sequence

VERBS = {
    "train": ("vggdist.commands.training", "train a network: one rank, or several with --ranks"),
    "summary": (
        "vggdist.commands.summary",
        "layers, shapes, parameters and multiply-adds of a network",
    ),
    "import": (
        "vggdist.convert.commands",
        "convert weights of torchvision, timm, Caffe or Keras to a weights file",
    ),
    "export": (
        "vggdist.convert.commands",
        "export a trained network to torchvision, ONNX or torch.export",
    ),
    "predict": (
        "vggdist.commands.prediction",
        "classify images with a trained network: names, confidences, a picture",
    ),
    "prepare": ("vggdist.prepare.commands", "write a data set"),
    "check": (
        "vggdist.prepare.commands",
        "decode every image before a training does; list the bad ones",
    ),
    "submit": (
        "vggdist.slurm.commands",
        "submit a training to SLURM, or run it here like the cluster",
    ),
    "experiment": (
        "vggdist.experiments.commands",
        "run staged trainings, evaluations and reports, and show their status",
    ),
    "evaluate": (
        "vggdist.commands.evaluation",
        "errors of a trained network: centre crop, dense, multi-crop",
    ),
    "report": (
        "vggdist.reports.commands",
        "fuse posteriors files; compare with the paper's tables",
    ),
    "features": (
        "vggdist.transfer.commands",
        "compute image descriptors with a trained network, for other tasks",
    ),
    "transfer": (
        "vggdist.transfer.commands",
        "a linear SVM on features: mean class recall, compared with Table 11",
    ),
    "doctor": (
        "vggdist.doctor.commands",
        "try what a training needs; say what to do about problems",
    ),
    "runs": ("vggdist.monitoring.commands", "list trainings: state, errors, speed, time left"),
    "compare": ("vggdist.monitoring.commands", "trainings side by side: results, settings, curves"),
    "plan": (
        "vggdist.planning.commands",
        "estimate a training's time, memory and cost before it starts",
    ),
    "completion": (
        "vggdist.commands.completion",
        "print the script with which bash, zsh or fish complete these verbs",
    ),
    "bench": ("vggdist.profiling.commands", "measure speed on this machine"),
    "tune": ("vggdist.profiling.commands", "find this machine's fastest settings"),
}
"""Verb -> the module that adds it to the command line, and its help. A room can be deleted with its
lines."""

DESCRIPTION = """\
Train VGG networks, prepare images, evaluate, submit to a cluster, and measure speed. Each verb
explains itself: vggdist VERB --help.
"""


def main() -> int:
    """Runs the command line's verb; prints problems that a user can solve, without a traceback."""
    return entry.run(_run)


def _run() -> int:
    arguments = parse(sys.argv[1:])

    from vggdist.commands.arguments import check_outputs

    check_outputs(arguments)
    return arguments.run(arguments) or 0


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parses a command line, in which `section.key=value` may be anywhere after the verb.

    argparse accepts them in one place only, and its workaround does not support subcommands.
    """
    parser = build_parser([word for word in words if word in VERBS])
    if words and words[0] not in VERBS and not words[0].startswith("-"):
        parser.error(f"{words[0]!r} is no verb{_near(words[0], VERBS)}; vggdist --help lists them")
    if words[:1] == ["predict"]:  # which has options in place of a configuration
        words = [
            f"--{word}" if word.startswith(("precision=", "device=")) else word for word in words
        ]
    arguments, rest = parser.parse_known_args(words)
    if hasattr(arguments, "network") and _is_setting(arguments.network):
        try:
            rest = _find_network(arguments, rest)
        except ValueError as error:
            parser.error(f"argument WEIGHTS_OR_RUN: {error}")
    unknown = [word for word in rest if not _is_setting(word)]
    if unknown or (rest and not hasattr(arguments, "overrides")):
        verb = arguments.verb
        option = (unknown or rest)[0].partition("=")[0]
        near = _near(option, re.findall(r"--[a-z-]+", verb.format_usage()))
        verb.error(f"unrecognized arguments: {' '.join(unknown or rest)}{near}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _near(word: str, known: Iterable[str]) -> str:
    """The question whether the most similar of the known words was meant; empty if none is."""
    import difflib

    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _find_network(arguments: argparse.Namespace, rest: list[str]) -> list[str]:
    """Takes the first word that is not a setting as the network; returns the others."""
    from vggdist.artifacts.paths import expand_home

    words = [arguments.network, *getattr(arguments, "overrides", ()), *rest]
    network = next((word for word in words if not _is_setting(word)), words[0])
    words.remove(network)
    arguments.network, arguments.overrides = expand_home(network), []
    return words


def _is_setting(word: str) -> bool:
    return re.match(r"@|[a-z0-9_.]+=", word) is not None


def build_parser(complete: Collection[str] = VERBS.keys()) -> argparse.ArgumentParser:
    """The command line of all verbs.

    Args:
        complete: verbs to add with all arguments; the others are only listed, which takes no time.
    """
    import argparse

    # With abbreviations, the launchers' `--local_rank` would conflict with `--local`.
    parser = argparse.ArgumentParser("vggdist", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    verbs = _Verbs(parser.add_subparsers(required=True, metavar="VERB"))
    for module in dict.fromkeys(VERBS[verb][0] for verb in complete):
        import_module(module).add_verbs(verbs)
    for verb in VERBS:
        if verb not in verbs.added:
            verbs.add_parser(verb)
    return parser


class _Verbs:
    """The object to which modules add their verbs."""

    def __init__(self, subparsers: Any) -> None:
        self._subparsers = subparsers
        self.added: set[str] = set()

    def add_parser(self, verb: str, **settings: Any) -> Any:
        """argparse's `add_parser`, with the help from `VERBS`."""
        self.added.add(verb)
        parser = self._subparsers.add_parser(verb, help=VERBS[verb][1], **settings)
        parser.set_defaults(verb=parser)
        return parser


if __name__ == "__main__":
    sys.exit(main())
