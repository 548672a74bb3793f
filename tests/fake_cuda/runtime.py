"""CUDA, pretended on a machine without a GPU.

Tensors on `cuda:N` are fake ones, of torch's `FakeTensorMode`: they have a shape, a type, a memory
format and a device, but no values. What torch and DeepSpeed ask of the CUDA runtime besides, for
devices, streams and events, is answered here, and calls by which the host waits for a GPU, or a
thread turns to one, are noted.
"""

from __future__ import annotations

import ctypes
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

NUM_DEVICES = 8
ROOT = Path(__file__).parents[2]
MACHINERY = Path(__file__).with_name("runtime.py"), Path(__file__).with_name("watch.py")


@dataclass(frozen=True)
class Call:
    """A call by which the host waits for a GPU, or a thread turns to one."""

    name: str
    """Such as `torch.cuda.set_device`."""
    device: int
    """Which is waited for, or turned to."""
    thread: str
    place: str
    own_stream: bool = False
    """Whether only a stream is waited for that the thread has made for itself."""
    since: int = -1
    """For an event that is waited for, the number of the call that recorded it."""


calls: list[Call] = []
"""All so far, of all threads."""


def pretend() -> None:
    """Makes torch believe in `NUM_DEVICES` GPUs; for the rest of the process."""
    import torch.distributed._tools.fake_collectives  # lets collectives take fake tensors

    for name, pretended in _CUDA.items():
        setattr(torch.cuda, name, pretended)
    torch.cuda.nccl.version = lambda: (2, 30, 7)
    # The exchange compares addresses, and fake tensors have none.
    Tensor.data_ptr = _data_ptr
    Tensor.record_stream = lambda self, stream: None
    nn.Module._apply = _apply
    for name in ("_fused_sgd_", "_fused_sgd_.tensor_lr"):
        _META.impl(name, _fused_sgd)
    # CUDA's device guards ask the driver. While torch counts no device, it lets others that do
    # nothing take their place.
    torch._C._ensureCUDADeviceGuardSet()
    ctypes.CDLL(None).pretend_devices(NUM_DEVICES)
    # torch would ask for the device's properties; on a GPU these convolutions are cuDNN's.
    torch._C._select_conv_backend = lambda *_, **__: torch._C._ConvBackend.Cudnn
    # Autograd's own threads, one for each device, would ask the driver.
    torch.autograd.set_multithreading_enabled(False)


class PretendedTensors(FakeTensorMode):
    """Within it all tensors are fake, those on GPUs included.

    They hold no values, so whatever is read is made up: no bool is true, a float is -1, which no
    flag is set by and which can be divided by.
    """

    def __init__(self, integers: int = 0) -> None:
        """Describes what is read.

        Args:
            integers: that a tensor of integers is read as.
        """
        super().__init__(allow_non_fake_inputs=True)
        self._integers = integers

    @property
    def avoid_device_init(self) -> bool:
        """Else torch, which believes in a GPU, would initialize it."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            dtype = args[0].dtype
            if dtype.is_floating_point:
                return -1.0
            return False if dtype == torch.bool else self._integers
        return super().__torch_dispatch__(func, types, args, kwargs or {})


class Stream:
    """A queue of a GPU."""

    def __init__(self, device: Any = None, priority: int = 0, *, is_default: bool = False) -> None:
        self.device_index = _index(device)
        self.device = torch.device("cuda", self.device_index)
        self.is_default = is_default

    def wait_stream(self, stream: Stream) -> None: ...
    def wait_event(self, event: Event) -> None: ...
    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        own = self is current_stream() and not self.is_default
        _note("Stream.synchronize", self.device_index, own_stream=own)

    def query(self) -> bool:
        return True


class Event:
    """A place in a queue."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._recorded = -1

    def record(self, stream: Stream | None = None) -> None:
        self._recorded = len(calls)
        _note("Event.record", current_device())

    def wait(self, stream: Stream | None = None) -> None: ...
    def query(self) -> bool:
        return True

    def elapsed_time(self, _: Event) -> float:
        return 0.0

    def synchronize(self) -> None:
        _note("Event.synchronize", current_device(), since=self._recorded)


class CUDAGraph:
    """A graph; a replay is noted, and does nothing."""

    def pool(self) -> tuple[int, int]:
        return (0, 1)

    def replay(self) -> None:
        _note("CUDAGraph.replay", current_device(), own_stream=True)


@contextmanager
def graph(
    captured: CUDAGraph, pool: Any = None, stream: Stream | None = None, **_: Any
) -> Iterator[None]:
    """Captures nothing, but what cannot be captured is an error, as it is with CUDA."""
    assert stream is not None
    assert not stream.is_default
    first = len(calls)
    _thread.is_capturing = True
    former = current_stream(stream.device_index)
    set_stream(stream)
    try:
        yield
    finally:
        _thread.is_capturing = False
        set_stream(former)
    waits = [call for call in calls[first:] if call.name.endswith("synchronize")]
    assert not waits, f"waiting cannot be captured: {waits}"


def is_current_stream_capturing() -> bool:
    return _thread.is_capturing


class _Thread(threading.local):
    """What CUDA keeps for each thread: it begins on GPU 0, in the stream that all share."""

    def __init__(self) -> None:
        self.device = 0
        self.is_capturing = False
        self.streams = dict(_DEFAULT_STREAMS)


def current_device() -> int:
    """The GPU of the calling thread."""
    return _thread.device


def set_device(device: Any) -> None:
    _thread.device = _index(device)
    _note("torch.cuda.set_device", _thread.device)


def exchange_device(index: int) -> int:
    """`torch.cuda.device` is made of it: changes, and returns where the thread was."""
    former = _thread.device
    if index >= 0:
        _thread.device = index
    if index not in (-1, former):
        _note("torch.cuda.device", index)
    return former


def current_stream(device: Any = None) -> Stream:
    return _thread.streams[_index(device)]


def set_stream(stream: Stream) -> None:
    """Changes to the stream's GPU, as CUDA's does."""
    exchange_device(stream.device_index)
    _thread.streams[stream.device_index] = stream


def synchronize(device: Any = None) -> None:
    _note("torch.cuda.synchronize", _index(device))


def place() -> str:
    """What runs now: file, line and function of the innermost frame of ours or of DeepSpeed's."""
    for frame, line in traceback.walk_stack(None):
        path = Path(frame.f_code.co_filename)
        installed = "site-packages" in path.parts
        if path in MACHINERY or (installed and "deepspeed" not in path.parts):
            continue
        if installed:
            path = Path(*path.parts[path.parts.index("deepspeed") :])
        elif path.is_relative_to(ROOT):
            path = path.relative_to(ROOT)
        else:
            continue  # Python's own
        return f"{path}:{line} in {frame.f_code.co_name}"
    return "an unknown place"


def _note(name: str, device: int, **details: Any) -> None:
    calls.append(Call(name, device, threading.current_thread().name, place(), **details))


def _index(device: Any) -> int:
    if isinstance(device, int):
        return device
    index = None if device is None else torch.device(device).index
    return current_device() if index is None else index


def _data_ptr(tensor: Tensor) -> int:
    """An address that only views of the same memory have in common."""
    offset = tensor.storage_offset() * tensor.element_size()
    return (tensor.untyped_storage()._cdata << 64) + offset


def _apply(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
    """As torch's own treats real tensors; fake ones it swaps, which fails where they have hooks."""
    for child in module.modules() if recurse else [module]:
        for name, parameter in child._parameters.items():
            if parameter is None:
                continue
            with torch.no_grad():
                applied: Any = function(parameter)
            if torch._has_compatible_shallow_copy_type(parameter, applied):
                parameter.data = applied
                parameter.fake_device = applied.device
            else:
                child._parameters[name] = nn.Parameter(applied, parameter.requires_grad)
        for name, buffer in child._buffers.items():
            if buffer is not None:
                child._buffers[name] = function(buffer)
    return module


def _fused_sgd(weights: list[Tensor], gradients: list[Tensor], *_: Any, **__: Any) -> None:
    """Stands in for a kernel that torch does not have for tensors without values."""
    for weight, gradient in zip(weights, gradients, strict=True):
        assert weight.shape == gradient.shape, (weight.shape, gradient.shape)
        assert weight.dtype == gradient.dtype, (weight.dtype, gradient.dtype)


_CUDA: dict[str, Any] = {
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "device_count": lambda: NUM_DEVICES,
    "get_device_capability": lambda device=None: (9, 0),
    "get_device_name": lambda device=None: "a pretended GPU",
    "is_bf16_supported": lambda including_emulation=True: True,
    "current_device": current_device,
    "set_device": set_device,
    "_exchange_device": exchange_device,
    "_maybe_exchange_device": exchange_device,
    "current_stream": current_stream,
    "set_stream": set_stream,
    "synchronize": synchronize,
    "get_device_properties": lambda device=None: SimpleNamespace(total_memory=80 << 30),
    "memory_allocated": lambda device=None: 0,
    "empty_cache": lambda: None,
    "reset_peak_memory_stats": lambda device=None: None,
    "CUDAGraph": CUDAGraph,
    "graph": graph,
    "is_current_stream_capturing": is_current_stream_capturing,
    "Stream": Stream,
    "Event": Event,
}
_DEFAULT_STREAMS = {index: Stream(index, is_default=True) for index in range(NUM_DEVICES)}
_thread = _Thread()
_META = torch.library.Library("aten", "IMPL", "Meta")
