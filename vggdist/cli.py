"""The `vggdist` command: mounts the verbs of the core and of each room."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vggdist.distributed import entry  # before all else: until `entry.run`, Ctrl-C leaves a trace

if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection, Sequence

VERBS = {
    "train": ("vggdist.commands.training", "train a network: one rank, or several with --ranks"),
    "summary": (
        "vggdist.commands.summary",
        "layers, shapes, parameters and multiply-adds of a network",
    ),
    "import": (
        "vggdist.convert.commands",
        "weights of torchvision, timm, Caffe or Keras as a weights file",
    ),
    "export": (
        "vggdist.convert.commands",
        "a trained network for torchvision, ONNX or torch.export",
    ),
    "predict": (
        "vggdist.commands.prediction",
        "what a trained network says of images: names, confidences, a picture",
    ),
    "prepare": ("vggdist.prepare.commands", "write a data set"),
    "check": (
        "vggdist.prepare.commands",
        "decode every image before a training does; list those that it could not use",
    ),
    "submit": (
        "vggdist.slurm.commands",
        "submit a training to SLURM, or run it here as the cluster would",
    ),
    "experiment": (
        "vggdist.experiments.commands",
        "staged trainings, evaluations and reports: run them, see how far they are",
    ),
    "evaluate": (
        "vggdist.commands.evaluation",
        "errors of a trained network: centre crop, dense, multi-crop",
    ),
    "report": (
        "vggdist.reports.commands",
        "posteriors files fused, and the paper's tables beside ours",
    ),
    "features": (
        "vggdist.transfer.commands",
        "descriptors of images by a trained network, for other tasks",
    ),
    "transfer": (
        "vggdist.transfer.commands",
        "a linear SVM on features: mean class recall, beside Table 11",
    ),
    "plan": (
        "vggdist.planning.commands",
        "time, memory and cost of a training, before it is started",
    ),
    "bench": ("vggdist.profiling.commands", "measure speed on this machine"),
    "tune": ("vggdist.profiling.commands", "find this machine's fastest settings"),
}
"""Verb -> the module that adds it to the command line, and what it does. A room may go together
with its lines."""

DESCRIPTION = """\
Train VGG networks, prepare images, evaluate, submit to a cluster, and measure speed. Each verb
explains itself: vggdist VERB --help.
"""


def main() -> int:
    """Runs the verb of the command line; problems that a user can solve end without a traceback."""
    return entry.run(_run)


def _run() -> int:
    arguments = parse(sys.argv[1:])

    from vggdist.commands.arguments import check_outputs

    check_outputs(arguments)
    return arguments.run(arguments) or 0


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Reads a command line, in which `section.key=value` may stand anywhere behind the verb.

    argparse takes them in one place only, and its remedy does not know of verbs.
    """
    parser = build_parser([word for word in words if word in VERBS])
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


def build_parser(complete: Collection[str] = VERBS.keys()) -> argparse.ArgumentParser:
    """The command line of all verbs.

    Args:
        complete: verbs with all of their arguments; the others are only named, which takes no time.
    """
    import argparse

    # Abbreviated, `--local_rank` of launchers would be in the way of `--local`.
    parser = argparse.ArgumentParser("vggdist", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    verbs = _Verbs(parser.add_subparsers(required=True, metavar="VERB"))
    for module in dict.fromkeys(VERBS[verb][0] for verb in complete):
        import_module(module).add_verbs(verbs)
    for verb in VERBS:
        if verb not in verbs.added:
            verbs.add_parser(verb)
    return parser


class _Verbs:
    """What modules add their verbs to."""

    def __init__(self, subparsers: Any) -> None:
        self._subparsers = subparsers
        self.added: set[str] = set()

    def add_parser(self, verb: str, **settings: Any) -> Any:
        """As that of argparse, with the help of `VERBS`."""
        self.added.add(verb)
        return self._subparsers.add_parser(verb, help=VERBS[verb][1], **settings)


if __name__ == "__main__":
    sys.exit(main())
