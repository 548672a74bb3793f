"""What is chosen, on devices that a test pretends; and the measurement on the real one."""

import pytest
import torch

from vggdist.config import Config
from vggdist.distributed import precision as subject
from vggdist.distributed import process as world
from vggdist.distributed.precision import (
    choose_precision,
    is_native,
    relative_seconds,
    resolve_precision,
    use_precision,
)
from vggdist.distributed.process import Process
from vggdist.errors import ConfigError

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def processor_with(monkeypatch, *features, ratio=None):
    """Pretends a processor; `ratio`: what a measurement finds, none: there must be none."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(features, True))

    def measure(precision, device):
        assert ratio is not None, "measured where the answer is known"
        return ratio

    monkeypatch.setattr(subject, "relative_seconds", measure)


def gpu_with(monkeypatch, bf16):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)


def process_on(device, world_size=1):
    return Process(0, 0, world_size, device)


def test_a_processor_without_bf16_gets_fp32_and_is_not_measured(monkeypatch):
    processor_with(monkeypatch, "avx2")
    precision, why = choose_precision("auto", CPU)
    assert precision == "fp32"
    assert why == (
        "precision fp32: this processor has neither AVX512_BF16 nor AMX, and would emulate bf16."
    )


@pytest.mark.parametrize("feature", ["avx512_bf16", "amx_bf16"])
@pytest.mark.parametrize(("ratio", "expected"), [(0.62, "bf16"), (1.38, "fp32")])
def test_a_processor_with_bf16_gets_what_is_faster_there(monkeypatch, feature, ratio, expected):
    processor_with(monkeypatch, feature, ratio=ratio)
    precision, why = choose_precision("auto", CPU)
    assert precision == expected
    assert why == (
        f"precision {expected}: a convolution in bf16 takes {ratio} times as long as in fp32 here."
    )


@pytest.mark.parametrize(("bf16", "expected"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_gets_bf16_if_it_has_it_and_else_fp16(monkeypatch, bf16, expected):
    gpu_with(monkeypatch, bf16)
    precision, why = choose_precision("auto", GPU)
    assert precision == expected
    assert why.startswith(f"precision {expected}: A GPU")


@pytest.mark.parametrize("setting", ["bf16", "fp16"])
def test_an_emulated_precision_is_obeyed_with_its_price(monkeypatch, setting):
    processor_with(monkeypatch, "avx2", ratio=9.83)
    precision, why = choose_precision(setting, CPU)
    assert precision == setting
    assert why == (
        f"precision {setting}, as set; WARNING: this device emulates it: a convolution takes 9.8 "
        "times as long as in fp32."
    )


def test_a_precision_that_is_native_but_slow_has_its_price_too(monkeypatch):
    processor_with(monkeypatch, "avx512_bf16", ratio=1.4)
    assert "WARNING: this device is slow in it: a convol" in choose_precision("bf16", CPU)[1]


def test_fp32_and_what_is_as_fast_are_obeyed_without_a_warning(monkeypatch):
    processor_with(monkeypatch, "amx_bf16", ratio=1.05)
    assert choose_precision("bf16", CPU) == ("bf16", "precision bf16, as set.")
    processor_with(monkeypatch)
    assert choose_precision("fp32", CPU) == ("fp32", "precision fp32, as set.")
    gpu_with(monkeypatch, bf16=True)
    assert choose_precision("bf16", GPU) == ("bf16", "precision bf16, as set.")


@pytest.mark.parametrize(("capability", "has_tf32"), [((8, 0), True), ((7, 5), False)])
def test_a_gpu_has_tf32_from_ampere_on(monkeypatch, capability, has_tf32):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert is_native("tf32", GPU) == has_tf32
    why = choose_precision("tf32", GPU)[1]
    assert ("has no TF32" in why) != has_tf32


def test_tf32_is_fp32_where_there_is_none_and_says_so(monkeypatch):
    processor_with(monkeypatch, "amx_bf16")
    expected = "this device has no TF32, and computes in fp32."
    assert choose_precision("tf32", CPU) == ("tf32", f"precision tf32, as set; {expected}")
    assert resolve_precision(Config(), process_on(CPU), of_run="tf32")[1].endswith(expected)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_only_tf32_rounds_what_is_multiplied_and_sums_are_fp32(precision):
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    products.allow_tf32 = convolutions.allow_tf32 = precision != "tf32"
    products.allow_bf16_reduced_precision_reduction = True
    products.allow_fp16_reduced_precision_reduction = True
    use_precision(precision)
    assert products.allow_tf32 == convolutions.allow_tf32 == (precision == "tf32")
    assert not products.allow_bf16_reduced_precision_reduction
    assert not products.allow_fp16_reduced_precision_reduction


def test_what_is_resolved_is_in_use(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    resolve_precision(Config(precision="fp32"), process_on(CPU))
    assert not torch.backends.cudnn.allow_tf32


def test_what_the_device_cannot_compute_at_all_is_refused(monkeypatch):
    class Broken:
        def __init__(self, dtype, device):
            raise RuntimeError("no kernel")

    monkeypatch.setattr(subject, "_Step", Broken)
    with pytest.raises(ConfigError, match=r"precision is fp16, in which cpu cannot compute a conv"):
        relative_seconds("fp16", CPU)


def test_a_convolution_is_really_timed():
    assert relative_seconds("fp32", CPU) == 1.0
    assert relative_seconds("bf16", CPU) > 0.05


def test_a_convolution_is_timed_where_gradients_are_off_as_well():
    with torch.inference_mode():
        assert relative_seconds("fp32", CPU) == 1.0


def test_all_ranks_compute_in_what_each_of_them_has(monkeypatch):
    processor_with(monkeypatch, "amx_bf16", ratio=0.5)
    monkeypatch.setattr(world, "gather", lambda value: [value, value, "fp32"])
    config, why = resolve_precision(Config(), process_on(CPU, world_size=3))
    assert config.precision == "fp32"
    assert why == "precision fp32: the best that the device of rank 2 has."


def test_a_network_is_applied_in_the_precision_of_its_training_where_that_is_native(monkeypatch):
    processor_with(monkeypatch, "avx512_bf16", ratio=0.5)
    chosen, why = choose_precision("auto", CPU, trained="fp32")
    assert (chosen, why) == ("fp32", "precision fp32, in which the network was trained.")
    assert choose_precision("bf16", CPU, trained="fp32")[0] == "bf16"
    processor_with(monkeypatch)
    assert choose_precision("auto", CPU, trained="bf16")[0] == "fp32", "never an emulated one"


def test_a_run_keeps_its_precision_on_another_kind_of_machine(monkeypatch):
    processor_with(monkeypatch, "avx2", ratio=10.0)
    config, why = resolve_precision(Config(), process_on(CPU), of_run="bf16")
    assert config.precision == "bf16"
    assert why == (
        "precision bf16, in which this run was begun; WARNING: this device emulates it: a "
        "convolution takes 10.0 times as long as in fp32."
    )
    config, why = resolve_precision(Config(), process_on(CPU), of_run="fp32")
    assert why == "precision fp32, in which this run was begun."


def test_auto_cannot_be_computed_in():
    with pytest.raises(AssertionError, match="resolve_precision"):
        _ = Config().sent_precision
