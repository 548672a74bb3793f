#!/usr/bin/env python
"""Submits a training to SLURM through submitit; imports no torch."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))  # for a Python that has no vggdist
from vggdist.distributed import entry


def main() -> int:
    """Reads the command line and submits; the exit code is that of `vggdist/errors.py`."""
    import argparse

    from vggdist.slurm.commands import DESCRIPTION, EXAMPLES, add_arguments, run

    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=EXAMPLES.replace("vggdist submit", "python launch/submit.py"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    return run(parser.parse_intermixed_args())


if __name__ == "__main__":
    sys.exit(entry.run(main))
