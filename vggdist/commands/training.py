"""The verb train, which `launch/train.py` starts as well."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from vggdist.artifacts.paths import quote
from vggdist.commands.arguments import add_config, settings_of, steps_or_count
from vggdist.commands.ranks import add_ranks, start_ranks
from vggdist.config import Config
from vggdist.distributed import srun
from vggdist.distributed.entry import quiet_libraries
from vggdist.model.configurations import configuration_name
from vggdist.terminal import counted

DESCRIPTION = "Train a VGG network. Without --config: configuration D, as in the paper."

REST = """\

Repeating the command continues from the newest checkpoint of the run folder. --print-config shows
every key with its value, and docs/configuration.md explains them.
"""

EXAMPLES = f"""\
examples:
  vggdist train --config configs/quickstart.yaml --ranks 2
  torchrun --nproc-per-node 8 -m vggdist train --config configs/vgg_d.yaml data.root=/data/imagenet
  deepspeed --num_gpus 8 --module vggdist train data.root=/data/imagenet run.folder=/runs/vgg_d
{REST}"""


def add_verbs(verbs: Any) -> None:
    """Adds this verb to the command line."""
    parser = verbs.add_parser(
        "train",
        allow_abbrev=False,  # the ranks get this command line without --ranks
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    add_arguments(parser)
    add_ranks(parser, "each batch")
    parser.set_defaults(run=_train)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the configuration of the training."""
    usual = "optimizer.learning_rate=0.005; @FILE reads such lines"
    add_config(parser, f"on top of the file, such as {usual}")
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print the resolved configuration, each key explained, and stop",
    )
    parser.add_argument(
        "--profile",
        type=steps_or_count,
        metavar="STEPS",
        help="record steps such as 100-105, or so many after the first five of this start: a trace "
        "for Perfetto or TensorBoard and a table, in the folder `profile` of the run",
    )


def run(arguments: argparse.Namespace, num_ranks: int = 1) -> int:
    """One rank of the training, or several on this machine; the exit code is that of
    `vggdist/errors.py`."""
    from vggdist.config_file import load_config, to_explained_yaml

    config = load_config(arguments.config, settings_of(arguments))
    if arguments.print_config:
        sys.stdout.write(to_explained_yaml(config))
        return 0
    _announce(config, arguments.config, num_ranks)
    quiet_libraries()
    if num_ranks > 1:
        return start_ranks(num_ranks, save=True)
    from vggdist.distributed.rank import leave
    from vggdist.pretrain import run as train

    return leave(train(config, profiled=arguments.profile))


def _announce(config: Config, file: Path | None, num_ranks: int) -> None:
    """The first line, seconds before torch and others are imported; a rank of several is silent."""
    if "RANK" in os.environ or srun.is_one_of_several(os.environ):
        return
    what = (
        quote(file) if file else f"configuration {configuration_name(config.model.configuration)}"
    )
    line = f"starting {counted(num_ranks, 'rank')} of {what} in {quote(config.run_folder)}"
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")


def _train(arguments: argparse.Namespace) -> int:
    return run(arguments, arguments.ranks)
