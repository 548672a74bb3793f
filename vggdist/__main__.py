"""`python -m vggdist`, which `torchrun -m` and `deepspeed --module` start as well."""

import sys

from vggdist.cli import main

if __name__ == "__main__":
    sys.exit(main())
