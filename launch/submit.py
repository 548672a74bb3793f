#!/usr/bin/env python
"""Submits a training to SLURM through submitit; imports no torch."""

import argparse
import sys

from vggdist.commands.submission import DESCRIPTION, EXAMPLES, add_arguments, run
from vggdist.errors import VggdistError


def main() -> int:
    """Reads the command line and submits; the exit code is that of `vggdist/errors.py`."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=EXAMPLES.replace("vggdist submit", "python launch/submit.py"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    try:
        return run(parser.parse_intermixed_args())
    except VggdistError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
