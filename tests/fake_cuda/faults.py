"""What the watch must see, and what it must let pass, each by itself."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from tests.fake_cuda.runtime import PretendedTensors
from tests.fake_cuda.steps import Ranks, start
from tests.fake_cuda.watch import Watch

RANK = 3


def commit_all() -> dict[str, list[str]]:
    """What is said of each of `FAULTS` and of `HARMLESS`, on GPU 3."""
    device = start(Ranks(world_size=8, rank=RANK)).device
    actions = {name: action for name, (_, action) in FAULTS.items()} | HARMLESS
    watch = Watch(device)
    seen = {}
    with PretendedTensors(), watch:
        for name, action in actions.items():
            torch.cuda.set_device(device)
            x, event = torch.ones(4, device=device), torch.cuda.Event()
            event.record()
            watch.start()
            with contextlib.suppress(Exception):  # not all of it can be done with fake tensors
                action(x, event)
            seen[name] = watch.faults
    return seen


def _set_first(x: Tensor, _: object) -> None:
    x[0] = 1.0


def _wait_for_now(*_: object) -> None:
    torch.cuda.set_device(RANK)
    event = torch.cuda.Event()
    event.record()
    event.synchronize()


def _use_gpu_0(*_: object) -> None:
    with torch.cuda.device(0):
        pass


def _copy_to_pinned(x: Tensor, _: object) -> None:
    pinned = torch.empty(4, pin_memory=True)
    pinned.copy_(x, non_blocking=True)
    x.copy_(pinned, non_blocking=True)


def _copy_to_another_layout(x: Tensor, _: object) -> None:
    pinned = torch.empty(2, 2, pin_memory=True)
    pinned.copy_(x.view(2, 2).T, non_blocking=True)


def _wait_in_a_thread(*_: object) -> None:
    thread = threading.Thread(target=_wait_for_now)
    thread.start()
    thread.join()


def _wait_for_own_stream(*_: object) -> None:
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().synchronize()


Action = Callable[[Tensor, torch.cuda.Event], object]
"""Takes a tensor on the GPU, and an event that was recorded before."""
READS = "the host reads what is on the GPU"
FAULTS: dict[str, tuple[str, Action]] = {
    "item": (READS, lambda x, _: x.sum().item()),
    "condition": (READS, lambda x, _: bool(x.any())),
    "tolist": (READS, lambda x, _: x.tolist()),
    "mask": (READS, lambda x, _: x[x > 0]),
    "equal": (READS, lambda x, _: torch.equal(x, x)),
    "number set": ("a copy from cpu to cuda:3", _set_first),
    "tensor of numbers": (
        "a copy from cpu to cuda:3",
        lambda x, _: torch.tensor([1.0], device=x.device),
    ),
    "copy to the GPU": ("a copy from cpu to cuda:", lambda *_: torch.ones(4).to("cuda")),
    "copy to the host": ("a copy from cuda:3 to cpu", lambda x, _: x.cpu()),
    "copy to another layout": ("a copy from cuda:3 to cpu", _copy_to_another_layout),
    "copy of pageable memory": (
        "a copy from cpu to cuda:3",
        lambda x, _: torch.ones(4).to(x.device, non_blocking=True),
    ),
    "index on the host": (
        "aten::index.Tensor of tensors on cpu and cuda:3",
        lambda x, _: x[torch.tensor([0, 1])],
    ),
    "host and GPU": (
        "aten::add.Tensor of tensors on cpu and cuda:3",
        lambda x, _: x + torch.ones(4),
    ),
    "two GPUs": (
        "aten::add.Tensor of tensors on cuda:0 and cuda:3",
        lambda x, _: x + torch.ones(4, device="cuda:0"),
    ),
    "another GPU": (
        "aten::ones on cuda:0, not the rank's own GPU",
        lambda *_: torch.ones(4, device="cuda:0"),
    ),
    "whole GPU": ("torch.cuda.synchronize, GPU 3", lambda *_: torch.cuda.synchronize()),
    "shared stream": (
        "Stream.synchronize, GPU 3",
        lambda *_: torch.cuda.current_stream().synchronize(),
    ),
    "event of now": ("Event.synchronize, GPU 3", _wait_for_now),
    "set_device": ("torch.cuda.set_device, GPU 0", lambda *_: torch.cuda.set_device(0)),
    "device": ("torch.cuda.device, GPU 0", _use_gpu_0),
}
"""What is said of it, and how it is done."""
HARMLESS: dict[str, Action] = {
    "arithmetic": lambda x, _: (x * 2.0).sum(),
    "number filled in": lambda x, _: x[0:1].fill_(1.0),
    "number on the host": lambda x, _: x * torch.tensor(2.0),
    "pinned memory": _copy_to_pinned,
    "pinned copy": lambda x, _: torch.ones(4).pin_memory().to(x.device, non_blocking=True),
    "event of before": lambda _, event: event.synchronize(),
    "own stream": _wait_for_own_stream,
    "another thread": _wait_in_a_thread,
    "own GPU": lambda *_: torch.cuda.set_device(RANK),
    "host alone": lambda *_: torch.ones(4).sum().item(),
}
