"""The oracles are sums by hand, and torch's own counter of floating-point operations."""

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.ranks import run_in_ranks
from tests.run_folders import records
from tests.training.small_engine import small_config
from tests.training.small_training import Part
from vggdist.config import Config
from vggdist.config_file import make_config
from vggdist.distributed.process import Process
from vggdist.model.initialization import build_trainable
from vggdist.training import utilization
from vggdist.training.report import print_result, write_result
from vggdist.training.utilization import Utilization, training_flops

H100 = "NVIDIA H100 80GB HBM3"
GPU = torch.device("cuda", 0)


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: H100)


def test_an_image_of_d_takes_three_forward_passes_less_the_first_layer_s() -> None:
    first = 27 * 64 * 224**2
    assert training_flops(Config()) == 2 * (3 * 15_470_264_320 - first)


@pytest.mark.parametrize("trained", ["all", "fully-connected", ["conv2_1", "fc8"]])
def test_the_operations_are_those_that_torch_counts(trained: str | list[str]) -> None:
    config = make_config(
        {
            "model": {"configuration": [["3-8"], ["3-16", "1-8"]], "fc_width": 16},
            "data": {"crop_size": 32},
            "optimizer": {"trained_layers": trained},
        }
    )
    network = build_trainable(config, fresh=False)  # frozen layers may be random
    images = torch.zeros(2, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        network(images).sum().backward()
    assert 2 * training_flops(config) == counter.get_total_flops()


def test_the_peak_of_all_devices_is_used_wholly_at_its_own_speed(h100: None) -> None:
    config = make_config({"precision": "bf16"})
    of_eight = Utilization(config, 8, GPU)
    assert of_eight.peak == f"{H100} in bf16: 989 TFLOPS"
    at_peak = 8 * 989e12 / training_flops(config)
    assert of_eight.of(at_peak / 2) == {"model_flop_utilization": pytest.approx(0.5)}


def test_without_a_known_peak_nothing_is_said(h100: None) -> None:
    assert Utilization(make_config({"precision": "fp32"}), 1, torch.device("cpu")).of(100.0) == {}


def used(process: Process, folder: Path) -> tuple[dict[str, Any], str]:
    """A training on the CPU that is told it were a GPU of a hundred MFLOPS."""
    torch.cuda.get_device_name = lambda _: "A GPU"
    utilization.peak_teraflops = lambda *_: 1e-4  # type: ignore[assignment]
    part = Part(process, folder, schedule={"num_steps": 3}, log={"every_steps": 1})
    part.training.observer.utilization = Utilization(part.training.config, 1, GPU)
    part.train()
    result = write_result(part.training, tuple("abcde"), folder)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        print_result(result, folder)
    return result, printed.getvalue()


def test_curves_result_and_table_of_a_training_have_it(tmp_path: Path) -> None:
    ((result, printed),) = run_in_ranks(used, 1, tmp_path)
    flops = training_flops(small_config())
    for point in [*records(tmp_path), result]:
        expected = point["images_per_second"] * flops / 1e8
        assert point["model_flop_utilization"] == pytest.approx(expected)
    share = f"{100 * result['model_flop_utilization']:.1f} %"
    assert f"{share} of A GPU in fp32: 0.0001 TFLOPS" in printed


def test_without_a_known_peak_neither_curves_nor_result_have_it(tmp_path: Path) -> None:
    (result,) = run_in_ranks(unknown, 1, tmp_path)
    for point in [*records(tmp_path), result]:
        assert "images_per_second" in point
        assert not {"model_flop_utilization", "peak"} & point.keys()


def unknown(process: Process, folder: Path) -> dict[str, Any]:
    part = Part(process, folder, schedule={"num_steps": 1})
    part.train()
    return write_result(part.training, tuple("abcde"), folder)
