"""Imported once by the server that forks ranks on CPUs: what the product imports on demand."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed  # noqa: F401
