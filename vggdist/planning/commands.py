"""The verb plan: a training in numbers before it is started."""

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any

from vggdist.commands.arguments import (
    add_config,
    add_input,
    add_json,
    add_output,
    configured,
    positive,
    show,
    user_path_text,
)

if TYPE_CHECKING:
    from vggdist.data.count import ImageCounts

PLAN_DESCRIPTION = """\
Simulates a training step layer by layer, with the gradients that are sent meanwhile, and says what
the whole training would take: time of a step, efficiency on 1 to 1024 ranks, memory, what disks and
CPU cores have to supply, hours, and how far apart checkpoints should be. Nothing is started; the
images of data.root are counted, by its manifest or its folders.

  fp32 all-reduce  one ring over all ranks, as behind the published results
  factors          fully connected layers exchange the factors of their gradients, always
  ours             what exchange=auto would run

The device is h100, a100, v100, p100 (from published figures), cpu (two cores), or a file of
`vggdist bench machine --out FILE`. The network is a node's link to the others; give the rate that
you have measured if you have. With --micro-batch every rank has so many images and the global batch
follows; without, batch.global of the configuration is shared by the ranks.
"""


def add_verbs(verbs: Any) -> None:
    """Adds this verb to the command line."""
    plan = verbs.add_parser(
        "plan",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=PLAN_DESCRIPTION,
        epilog="examples: vggdist plan --config configs/vgg_d.yaml --nodes 4 --gpus-per-node 8 "
        "--micro-batch 64 --device h100 --network 400gbit --out plan.png\n"
        "          vggdist plan --config configs/vgg_d.yaml --nodes 1 --gpus-per-node 8 "
        "--device a100 --network 100gbit batch.global=512 --json plan.json",
    )
    count = partial(plan.add_argument, type=positive)
    count("--nodes", required=True, metavar="N", help="machines")
    count("--gpus-per-node", required=True, metavar="G", help="ranks on each, one for a GPU")
    micro = "of each rank and step (default: batch.global shared by the ranks)"
    count("--micro-batch", metavar="IMAGES", help=micro)
    add_input(
        plan,
        "--device",
        type=user_path_text,
        required=True,
        metavar="DEVICE",
        help="h100, a100, v100, p100, cpu or a file",
    )
    plan.add_argument(
        "--network", required=True, metavar="RATE", help="such as 25gbit, of each node"
    )
    images = "training images (default: those in data.root; without it ImageNet's 1,281,167)"
    count("--images", metavar="COUNT", help=images)
    validation = "of each evaluation (default: those in data.root, or ImageNet's 50,000)"
    count("--validation-images", metavar="COUNT", help=validation)
    count("--cores-per-node", metavar="CORES", help="CPU cores that decode images")
    add_output(plan, "--out", suffixes=(".png",), metavar="FILE", help="also draw it, as PNG")
    add_config(plan)
    add_json(plan)
    plan.set_defaults(run=_plan)


def _plan(arguments: argparse.Namespace) -> None:
    from vggdist.planning.devices import load_device
    from vggdist.planning.estimate import estimate_training
    from vggdist.planning.links import Cluster, parse_rate
    from vggdist.planning.table import render_estimate

    cluster = Cluster(
        arguments.nodes,
        arguments.gpus_per_node,
        load_device(arguments.device),
        parse_rate(arguments.network),
    )
    config = configured(arguments)
    estimate = estimate_training(
        config,
        cluster,
        micro_batch=arguments.micro_batch,
        images=_count_images(arguments, config.data.root),
        num_cores=arguments.cores_per_node,
    )
    if arguments.out is not None:
        from vggdist.planning.chart import draw_estimate

        draw_estimate(estimate, arguments.out)
    show(render_estimate(estimate), estimate.to_dict(), arguments.json)


def _count_images(arguments: argparse.Namespace, root: str | None) -> "ImageCounts":
    """As the options say; what they do not say is counted."""
    from vggdist.data.count import ImageCounts, count_images

    given = arguments.images, arguments.validation_images
    if all(given):
        return ImageCounts(*given, "as given")
    counted = count_images(root)
    if not any(given):
        return counted
    option = "--images" if arguments.images else "--validation-images"
    note = f"one as given by {option}, the other {counted.note}"
    return ImageCounts(given[0] or counted.num_train, given[1] or counted.num_val, note)
