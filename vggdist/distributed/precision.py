"""The precision that a device computes in: resolves `precision: auto` for it and for all ranks.

Checks the device's features, and measures: a processor with bf16 instructions may be slower with
them, and the environment may disable them (ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA).
"""

from __future__ import annotations

import math
import time

import torch

from vggdist.config import Config, Precision, PrecisionSetting
from vggdist.distributed import process as world
from vggdist.distributed.process import Process
from vggdist.errors import ConfigError

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

_MEASURED_SECONDS = 0.5
_WORTH_A_WARNING = 1.1
"""A ratio to fp32 above this is more than noise."""
_FROM_SAFEST: tuple[Precision, ...] = ("fp32", "tf32", "fp16", "bf16")
"""Ranks agree on the first of these that any of them chooses."""


def resolve_precision(
    config: Config,
    process: Process,
    of_run: Precision | None = None,
    trained: Precision | None = None,
) -> tuple[Config, str]:
    """The configuration with `auto` replaced by a precision, and the reason; collective.

    Afterwards this process computes in it (`use_precision`).

    Args:
        config: a `precision` other than `auto` is kept.
        process: all ranks choose the same precision, one that each of their devices has.
        of_run: the precision of the run to be continued, which `auto` keeps.
        trained: the precision in which the network was trained, which `auto` prefers.

    Raises:
        ConfigError: the device cannot compute in the precision that is set.
    """
    if config.precision == "auto" and of_run is not None:
        precision, reason = of_run, f"precision {of_run}, in which this run was begun"
        if cost := _cost(of_run, process.device):
            reason += f"; {cost}"
        reason += "."
    else:
        wanted, reason = choose_precision(config.precision, process.device, trained)
        of_ranks = world.gather(wanted) if process.world_size > 1 else [wanted]
        precision = min(of_ranks, key=_FROM_SAFEST.index)
        if precision != wanted:
            rank = of_ranks.index(precision)
            reason = f"precision {precision}: the best that the device of rank {rank} has."
    use_precision(precision)
    return config.model_copy(update={"precision": precision}), reason


def use_precision(precision: Precision) -> None:
    """Sets torch's global switches: products are exact in fp32, rounded in tf32.

    By default torch uses TF32 in convolutions, and adds parts of 16-bit products in 16 bits.
    """
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    products = torch.backends.cuda.matmul
    products.allow_tf32 = precision == "tf32"
    products.allow_bf16_reduced_precision_reduction = False
    products.allow_fp16_reduced_precision_reduction = False


def choose_precision(
    setting: PrecisionSetting, device: torch.device, trained: Precision | None = None
) -> tuple[Precision, str]:
    """The precision for one device, and the reason as a sentence.

    `auto` is the one in which the network was trained, if the device has it; else bf16 where the
    device computes it natively, fp16 on older GPUs, else fp32. A setting that the device would
    emulate is kept; the sentence then reports its cost.

    Raises:
        ConfigError: the device cannot compute in the precision that is set.
    """
    if setting != "auto":
        cost = _cost(setting, device)
        return setting, f"precision {setting}, as set" + (f"; {cost}." if cost else ".")
    if trained is not None and is_native(trained, device):
        return trained, f"precision {trained}, in which the network was trained."
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if is_native("bf16", device):
            return "bf16", f"precision bf16: {name} computes it natively."
        return "fp16", f"precision fp16: {name} has no bf16."
    if not is_native("bf16", device):
        return (
            "fp32",
            "precision fp32: this processor has neither AVX512_BF16 nor AMX, and would emulate "
            "bf16.",
        )
    ratio = relative_seconds("bf16", device)
    times = f"a convolution in bf16 takes {ratio:.2f} times as long as in fp32 here."
    return (
        ("bf16", f"precision bf16: {times}") if ratio < 1 else ("fp32", f"precision fp32: {times}")
    )


def is_native(precision: Precision, device: torch.device) -> bool:
    """Whether the device has instructions for the precision, according to its data sheet."""
    if precision == "fp32":
        return True
    if precision == "tf32":
        return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cuda":
        return precision == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
    has = torch.cpu.get_capabilities()
    return bool(has.get(f"avx512_{precision}") or has.get(f"amx_{precision}"))


def relative_seconds(precision: Precision, device: torch.device) -> float:
    """Time of a convolution, forward and backward, relative to fp32; takes half a second.

    Raises:
        ConfigError: the device cannot compute in this precision.
    """
    seconds = {DTYPES["fp32"]: math.inf, DTYPES[precision]: math.inf}
    try:
        steps = {dtype: _Step(dtype, device) for dtype in seconds}
        for step in steps.values():
            step.seconds()  # the first call builds kernels
        ends_at = time.monotonic() + _MEASURED_SECONDS
        while time.monotonic() < ends_at or math.inf in seconds.values():
            for dtype, step in steps.items():
                seconds[dtype] = min(seconds[dtype], step.seconds())
    except RuntimeError as error:
        raise ConfigError(
            f"precision is {precision}, in which {device} cannot compute a convolution ({error}); "
            "set precision to auto."
        ) from error
    return seconds[DTYPES[precision]] / seconds[DTYPES["fp32"]]


class _Step:
    """One convolution of some 3 GFLOP, forward and backward."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._device = device
        with torch.inference_mode(False):
            layer = torch.nn.Conv2d(128, 128, 3, padding=1, device=device, dtype=dtype)
            self._layer = layer.to(memory_format=torch.channels_last)
            self._maps = torch.ones(4, 128, 28, 28, device=device, dtype=dtype).to(
                memory_format=torch.channels_last
            )

    def seconds(self) -> float:
        with torch.inference_mode(False), torch.enable_grad():
            began_at = time.perf_counter()
            maps = self._layer(self._maps)
            maps.backward(maps.detach())
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            return time.perf_counter() - began_at


def _cost(precision: Precision, device: torch.device) -> str:
    """The cost of a precision that the device lacks, as text; empty if it has it."""
    if precision == "fp32" or (device.type == "cuda" and is_native(precision, device)):
        return ""
    if precision == "tf32":
        return "this device has no TF32, and computes in fp32"
    ratio = relative_seconds(precision, device)
    if ratio < _WORTH_A_WARNING:
        return ""
    how = "is slow in" if is_native(precision, device) else "emulates"
    return (
        f"WARNING: this device {how} it: a convolution takes {ratio:.1f} times as long as in fp32"
    )
