#!/usr/bin/env python
"""Starts one rank of an evaluation, under `deepspeed`, `torchrun`, `srun` or plain `python`."""

import argparse
import sys

from vggdist.commands.evaluation import DESCRIPTION, add_arguments, run

EXAMPLES = """\
examples:
  deepspeed --num_gpus 8 launch/evaluate.py runs/vgg_d --data /data/imagenet --scales 256,384,512
  torchrun --nproc-per-node 8 launch/evaluate.py runs/vgg_d --data /data/imagenet
  srun --nodes 2 --ntasks-per-node 8 python launch/evaluate.py runs/vgg_d --data /data/imagenet
"""


def main() -> int:
    """Reads the command line and evaluates; the exit code is that of `vggdist/errors.py`."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    # The deepspeed launcher gives it to every script; the environment says the same.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return run(parser.parse_intermixed_args())


if __name__ == "__main__":
    sys.exit(main())
