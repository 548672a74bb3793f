#!/usr/bin/env python
"""Starts one rank of an evaluation, under `deepspeed`, `torchrun`, `srun` or plain `python`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))  # for a Python that has no vggdist
from vggdist.distributed import entry

EXAMPLES = """\
examples:
  deepspeed --num_gpus 8 launch/evaluate.py runs/vgg_d --data /data/imagenet --scales 256,384,512
  torchrun --nproc-per-node 8 launch/evaluate.py runs/vgg_d --data /data/imagenet
  srun --nodes 2 --ntasks-per-node 8 python launch/evaluate.py runs/vgg_d --data /data/imagenet
"""


def main() -> int:
    """Reads the command line and evaluates; the exit code is that of `vggdist/errors.py`."""
    import argparse

    from vggdist.commands.arguments import add_local_rank
    from vggdist.commands.evaluation import DESCRIPTION, add_arguments, run

    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    add_local_rank(parser)
    return run(parser.parse_intermixed_args())


if __name__ == "__main__":
    sys.exit(entry.run(main))
