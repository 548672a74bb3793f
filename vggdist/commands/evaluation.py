"""The verb evaluate, which `launch/evaluate.py` starts as well."""

import argparse
from typing import Any

from vggdist.commands.arguments import (
    add_data,
    add_json,
    add_network,
    add_output,
    add_settings,
    check_outputs,
    scales,
    settings_of,
    show,
)
from vggdist.commands.ranks import add_ranks, start_ranks

DESCRIPTION = """\
Applies a trained network to every validation image and writes the class posteriors to a file for
each protocol and scale Q; then prints the errors of each file and of their mean. A file that exists
for the same weights, images and settings is not computed again.

  center-crop   the middle of the image, as in a training's own evaluations
  dense         the whole image: the fully connected layers as convolutions, the score map
                averaged (section 3.2 of the paper); evaluation.spatial_average=posteriors
                averages after the soft-max instead of before it
  multi-crop    50 crops, a 5x5 grid and its mirror images, for each scale (section 3.2)

dense+multi-crop does both, and averages their posteriors (Table 5). `vggdist report` computes the
paper's tables from the files of several networks.
"""

EXAMPLES = """\
examples:
  vggdist evaluate runs/vgg_d --protocol dense --scales 256,384,512
  vggdist evaluate vgg16.safetensors --data /data/imagenet --protocol center-crop --scales 256
  vggdist evaluate runs/vgg_d --data /data/imagenet --ranks 2 device=cpu precision=fp32
  torchrun --nproc-per-node 8 launch/evaluate.py runs/vgg_d --data /data/imagenet --scales 384
"""


def add_verbs(verbs: Any) -> None:
    """Adds this verb to the command line."""
    evaluate = verbs.add_parser(
        "evaluate",
        allow_abbrev=False,  # the ranks get this command line without --ranks
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    add_arguments(evaluate)
    add_ranks(evaluate, "the images")
    evaluate.set_defaults(run=_evaluate)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what to evaluate, and how."""
    add_network(parser)
    add_settings(parser)
    add_data(parser, "the data set (default: the one that the run was trained on)", required=False)
    parser.add_argument(
        "--split", choices=("train", "val"), default="val", help="which images (default: val)"
    )
    parser.add_argument(
        "--protocol",
        type=_protocols,
        default=("dense",),
        metavar="NAME",
        help="center-crop, dense, multi-crop, or several joined by + (default: dense)",
    )
    parser.add_argument(
        "--scales",
        type=scales,
        default=(),
        metavar="Q,Q,...",
        help="rescaled shorter sides Q, pixels (default: the middle of the training scales)",
    )
    parser.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        help="also average over the mirrored image (default: all but center-crop do)",
    )
    add_output(
        parser,
        "--out",
        metavar="DIR",
        help="folder for the posteriors files (default: posteriors in the run folder, or next to "
        "the weights file)",
    )
    parser.add_argument(
        "--storage",
        choices=("float32", "float16"),
        default="float32",
        help="type of the stored posteriors; float16 takes half the space and may tie classes "
        "whose posteriors differ by less than 0.001 (default: float32)",
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Evaluates on this rank; returns the exit code."""
    from vggdist.artifacts.run_folder import data_of
    from vggdist.distributed.rank import leave, run_rank
    from vggdist.evaluate import evaluate
    from vggdist.evaluation.report import render_evaluated, summarize

    def work() -> int:
        root = arguments.data or data_of(arguments.network)
        check_outputs(arguments, [root])
        evaluated = evaluate(_request(arguments, root), heeds_signals=True)
        if evaluated is not None:  # on the main rank
            summary = summarize(evaluated)
            show(render_evaluated(summary), summary, arguments.json)
        return 0

    return leave(run_rank(work))


def _request(arguments: argparse.Namespace, root: str) -> Any:
    from vggdist.evaluate import Request

    return Request(
        network=arguments.network,
        root=root,
        split=arguments.split,
        protocols=arguments.protocol,
        scales=arguments.scales,
        flip=arguments.flip,
        out=arguments.out,
        storage=arguments.storage,
        overrides=tuple(settings_of(arguments)),
    )


def _evaluate(arguments: argparse.Namespace) -> int:
    return run(arguments) if arguments.ranks == 1 else start_ranks(arguments.ranks, save=True)


def _protocols(text: str) -> tuple[str, ...]:
    known = ("center-crop", "dense", "multi-crop")
    names = tuple(text.split("+"))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"{', '.join(map(repr, unknown))} is none of {', '.join(known)}; several are joined "
            "by +"
        )
    return names
