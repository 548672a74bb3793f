"""Devices that a test pretends: which is taken, and what is said of one that cannot be used."""

from pathlib import Path

import pytest
import torch

from vggdist.distributed import device as subject
from vggdist.distributed.device import choose_device, has_kernels, require_kernels
from vggdist.errors import ConfigError

WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
"""What PyPI's torch has kernels for."""


def test_auto_is_the_gpu_of_the_local_rank_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto", 1) == choose_device("cpu", 1) == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"device is cuda, but this machine has no usable GPU; "):
        choose_device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto", 1) == torch.device("cuda", 1)
    assert choose_device("cpu", 1) == torch.device("cpu")
    with pytest.raises(ConfigError) as caught:
        choose_device("auto", 2)
    assert str(caught.value) == (
        "local rank 2 has no GPU of its own: this machine shows 2; start at most that many ranks "
        "on it."
    )


@pytest.fixture
def unusable_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A GPU behind a driver that is too old; the driver's file."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "__version__", "2.14.1")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(subject, "_NODE", tmp_path / "nvidia0")
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19\n")
    monkeypatch.setattr(subject, "_DRIVER", driver)
    return driver


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_gpu_behind_an_old_driver_is_not_left_idle_without_a_word(
    unusable_gpu: Path, name: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_device(name, 0)
    assert str(caught.value) == (
        f"device is {name}, but this process was given an NVIDIA GPU that torch cannot use: its "
        "driver is 535.129.03, and torch 2.14.1 (CUDA 13.0) needs driver 580 or newer. Update the "
        "driver, or install a torch that is built for an older CUDA (make setup CUDA=12, for "
        "drivers from 525 on); `nvidia-smi` shows whether the GPU works. Set device to cpu to "
        "train on the processor instead."
    )
    assert choose_device("cpu", 0) == torch.device("cpu")


def test_without_a_driver_that_is_said(unusable_gpu: Path) -> None:
    unusable_gpu.unlink()
    with pytest.raises(ConfigError, match=r"cannot use: no driver answers, and torch 2\.14\.1"):
        choose_device("auto", 0)


def test_a_torch_without_cuda_is_said(unusable_gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ConfigError, match=r"torch 2\.14\.1 is built without CUDA"):
        choose_device("auto", 0)


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_gpus_that_are_hidden_on_purpose_are_not_missed(
    unusable_gpu: Path, monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert choose_device("auto", 0) == torch.device("cpu")


def test_a_launcher_that_numbers_gpus_where_there_are_none_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(subject, "_NODE", tmp_path / "none")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")  # as `deepspeed --num_gpus 2` does
    assert choose_device("auto", 0) == torch.device("cpu")


def test_gpus_that_slurm_has_given_are_not_left_idle(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(subject, "_NODE", tmp_path / "none")
    monkeypatch.setattr(subject.srun, "num_gpus", lambda environment: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    with pytest.raises(ConfigError, match="this process was given an NVIDIA GPU"):
        choose_device("auto", 0)


@pytest.mark.parametrize(
    ("capability", "architectures", "expected"),
    [
        ((7, 0), WHEEL, False),  # V100
        ((6, 0), WHEEL, False),  # P100
        ((7, 5), WHEEL, True),  # T4
        ((8, 9), WHEEL, True),  # L4, by sm_80 or sm_86
        ((9, 0), WHEEL, True),  # H100
        ((10, 3), WHEEL, True),  # by sm_100
        ((12, 1), WHEEL, True),
        ((13, 0), WHEEL, True),  # by compute_120
        ((13, 0), WHEEL[:-1], False),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_90a"], False),
    ],
)
def test_what_runs_on_a_gpu_is_what_cuda_says(
    capability: tuple[int, int], architectures: list[str], expected: bool
) -> None:
    assert has_kernels(capability, architectures) == expected


@pytest.mark.parametrize(
    ("capability", "remedy"),
    [((7, 0), r"Install torch's build for CUDA 12\.6 .* \(make setup CUDA=12\), or set device"),
     ((20, 0), "Install a newer torch, or set device to cpu")],
)  # fmt: skip
def test_a_gpu_without_kernels_is_refused_with_the_torch_to_install(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], remedy: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: WHEEL[:-1])
    with pytest.raises(ConfigError, match=remedy) as caught:
        require_kernels(torch.device("cuda", 0))
    require_kernels(torch.device("cpu"))
    number = ".".join(map(str, capability))
    assert str(caught.value).startswith(f"A GPU has compute capability {number}, and torch ")
