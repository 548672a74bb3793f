"""Imported once by the server that forks ranks: what the product imports when it needs it."""

import os

import torch

if not torch.cuda.is_available():  # else a rank chooses between CPU and GPU by itself
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed  # noqa: F401
