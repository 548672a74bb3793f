#!/usr/bin/env python
"""Starts one rank of a training; `deepspeed`, `torchrun` and plain `python` all run this file."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))  # for a Python that has no vggdist
from vggdist.distributed import entry


def main() -> int:
    """Reads the command line and trains; the exit code is that of `vggdist/errors.py`."""
    import argparse

    from vggdist.commands.arguments import add_local_rank
    from vggdist.commands.training import DESCRIPTION, REST, add_arguments, run

    examples = f"""\
examples:
  deepspeed --num_gpus 8 launch/train.py --config configs/vgg_d.yaml data.root=/data/imagenet
  torchrun --nproc-per-node 8 launch/train.py --config configs/vgg_d.yaml data.root=/data/imagenet
  python launch/train.py --config configs/quickstart.yaml model.batch_norm=false
{REST}"""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    add_local_rank(parser)
    return run(parser.parse_intermixed_args())


if __name__ == "__main__":
    sys.exit(entry.run(main))
