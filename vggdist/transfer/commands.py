"""Verbs about transfer (Appendix B): features and transfer."""

import argparse
from typing import Any

from vggdist.artifacts.paths import quote
from vggdist.commands.arguments import (
    add_data,
    add_input,
    add_json,
    add_network,
    add_output,
    add_settings,
    positive,
    scales,
    settings_of,
    show,
)

FEATURES_DESCRIPTION = """\
Applies a trained network to whole images and writes a descriptor of each: the activations of fc7
after its ReLU (or the last pooled maps), averaged over all places and over the mirror image, then
averaged or stacked over the scales Q, and normalized to length 1 (Appendix B of the paper).

The .npz holds X (images, units) float32, y (labels), files, classes and a header that says what was
computed. ROOT is a data set with train/ and val/, whose images are all taken and keep the split
before their names, or a folder of class folders.
"""

FEATURES_EXAMPLES = """\
examples:
  vggdist features runs/vgg_d --data /data/caltech-101 --scales 256,384,512 --aggregate stack \\
    --out d.npz
  vggdist features vgg16.safetensors --data /data/photos --layer pool5 --scales 256 --out photos.npz
"""

TRANSFER_DESCRIPTION = """\
Trains a linear SVM on the features of some images of each class and tests it on others, for several
random splits, and prints the mean class recall beside the paper's Table 11. Its weight C is chosen
on 20 % of the training images. A split follows from the seed and the images' names alone, so it is
the same for every network. The features of several networks of the same images are stacked.
"""

TRANSFER_EXAMPLES = """\
examples:
  vggdist transfer d.npz --train-per-class 30 --test-per-class 50 --seeds 3
  vggdist transfer d.npz e.npz --train-per-class 60 --json fused.json
"""


def add_verbs(verbs: Any) -> None:
    """Adds these verbs to the command line."""
    features = verbs.add_parser(
        "features",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=FEATURES_DESCRIPTION,
        epilog=FEATURES_EXAMPLES,
    )
    _add_features(features)
    transfer = verbs.add_parser(
        "transfer",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=TRANSFER_DESCRIPTION,
        epilog=TRANSFER_EXAMPLES,
    )
    add_input(transfer, "features", nargs="+", metavar="F", help="file of `vggdist features`")
    for name, default, what in (
        ("--train-per-class", 30, "training images of each class"),
        ("--test-per-class", 50, "most test images of each class"),
        ("--seeds", 3, "random splits"),
    ):
        transfer.add_argument(
            name, type=positive, default=default, metavar="N", help=f"{what} (default: {default})"
        )
    add_json(transfer)
    transfer.set_defaults(run=_transfer)


def _add_features(parser: argparse.ArgumentParser) -> None:
    add_network(parser)
    add_settings(parser)
    add_data(parser, "the images")
    add_output(
        parser, "--out", suffixes=(".npz",), required=True, metavar="F", help=".npz file to write"
    )
    parser.add_argument(
        "--scales",
        type=scales,
        default=(),
        metavar="Q,Q,...",
        help="rescaled shorter sides Q, pixels (default: 256,384,512, or as much larger than the "
        "network's input, where that is not 224)",
    )
    parser.add_argument(
        "--layer",
        choices=("fc7", "pool5"),
        default="fc7",
        help="fc7, or the last pooled maps, for which a file of convolutions alone is enough "
        "(default: fc7)",
    )
    parser.add_argument(
        "--aggregate",
        choices=("average", "stack"),
        default="average",
        help="what becomes of several scales; the paper averages for VOC and stacks for Caltech "
        "(default: average)",
    )
    parser.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="average with the mirror image (default: yes)",
    )
    add_json(parser)
    parser.set_defaults(run=_features)


def _features(arguments: argparse.Namespace) -> None:
    from dataclasses import asdict

    from vggdist.distributed.rank import log_to_terminal
    from vggdist.transfer.features import Request, compute_features
    from vggdist.transfer.features_file import require_writable, save_features

    log_to_terminal()
    require_writable(arguments.out)
    features = compute_features(
        Request(
            network=arguments.network,
            root=arguments.data,
            scales=arguments.scales,
            layer=arguments.layer,
            aggregate=arguments.aggregate,
            flip=arguments.flip,
            overrides=tuple(settings_of(arguments)),
        )
    )
    save_features(arguments.out, features)
    num_images, num_units = features.descriptors.shape
    recipe = features.recipe
    assert recipe is not None
    values = {"num_images": num_images, "num_units": num_units, **asdict(recipe)}
    text = (
        f"{quote(arguments.out)}: {num_images:,} images of {len(features.classes)} classes, "
        f"{num_units:,} units of each ({recipe.trained}, {recipe.method})"
    )
    show(text, values, arguments.json)


def _transfer(arguments: argparse.Namespace) -> None:
    from vggdist.terminal import Progress
    from vggdist.transfer.linear_classifier import FITS_PER_SPLIT, render_transfer, transfer

    progress = Progress(arguments.seeds * FITS_PER_SPLIT, unit="fits")
    result = transfer(
        arguments.features,
        arguments.train_per_class,
        arguments.test_per_class,
        arguments.seeds,
        progress.advance,
    )
    progress.close()
    show(render_transfer(result), result.to_dict(), arguments.json)
