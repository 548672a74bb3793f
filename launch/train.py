#!/usr/bin/env python
"""Starts one rank of a training; `deepspeed`, `torchrun` and plain `python` all run this file."""

import sys

from vggdist.distributed import entry

EXAMPLES = """\
examples:
  deepspeed --num_gpus 8 launch/train.py --config configs/vgg_d.yaml data.root=/data/imagenet
  torchrun --nproc-per-node 8 launch/train.py --config configs/vgg_d.yaml data.root=/data/imagenet
  python launch/train.py --config configs/quickstart.yaml model.batch_norm=false

The same command again continues from the newest checkpoint of the run folder. --print-config shows
every key with its value, and docs/configuration.md explains them.
"""


def main() -> int:
    """Reads the command line and trains; the exit code is that of `vggdist/errors.py`."""
    import argparse

    from vggdist.commands.arguments import add_local_rank, user_path
    from vggdist.config_file import load_config, to_yaml
    from vggdist.errors import ConfigError

    parser = argparse.ArgumentParser(
        description="Train a VGG network. Without --config: configuration D, as in the paper.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=user_path, metavar="FILE", help="YAML file of sections")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="on top of the file, such as optimizer.learning_rate=0.005; @FILE reads such lines",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved configuration and stop"
    )
    add_local_rank(parser)
    arguments = parser.parse_intermixed_args()
    try:
        config = load_config(arguments.config, arguments.overrides)
    except ConfigError as error:
        parser.exit(error.exit_code, f"error: {error}\n")
    if arguments.print_config:
        sys.stdout.write(to_yaml(config))
        return 0
    from vggdist.distributed.rank import leave
    from vggdist.pretrain import run

    return leave(run(config))


if __name__ == "__main__":
    sys.exit(entry.run(main))
