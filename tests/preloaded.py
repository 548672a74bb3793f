"""Imported once by the server that forks ranks on CPUs: what the product imports on demand."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed
import deepspeed.module_inject.auto_ep_layer  # noqa: F401 (by deepspeed.initialize)
