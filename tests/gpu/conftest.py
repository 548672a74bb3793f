"""What the tests of `make test-gpu` share: the device, and the figures that they print.

The files are numbered in the order in which they run: from what everything else needs to what takes
long. `pytest tests/gpu --rehearse` runs them all with the CPU in the GPU's place and small sizes,
so that a mistake in a test is found where there is no GPU.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ranks import run_in_ranks
from vggdist.distributed.device import _why_no_gpu
from vggdist.profiling.sample import save_photo

Figure = Callable[[str, object], None]
InRanks = Callable[..., list[Any]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rehearse", action="store_true", help="run the GPU's tests on the CPU, in small sizes"
    )


def pytest_collection_finish(session: pytest.Session) -> None:
    """Tests for a GPU alone, and no GPU: one sentence, and an exit code that is not 0."""
    alone = session.items and all(item.get_closest_marker("gpu") for item in session.items)
    if alone and not _rehearsing(session.config) and (reason := _no_gpu()):
        pytest.exit(reason, returncode=pytest.ExitCode.USAGE_ERROR)


@pytest.fixture(scope="session")
def rehearsal(pytestconfig: pytest.Config) -> bool:
    """Whether the CPU takes the GPU's place."""
    return _rehearsing(pytestconfig)


@pytest.fixture(scope="session")
def device(rehearsal: bool) -> torch.device:
    """The GPU."""
    if rehearsal:
        return torch.device("cpu")
    if reason := _no_gpu():
        pytest.skip(reason)
    return torch.device("cuda", 0)


@pytest.fixture
def figure(pytestconfig: pytest.Config) -> Figure:
    """Prints a measured value at once."""
    reporter: Any = pytestconfig.pluginmanager.get_plugin("terminalreporter")
    capture: Any = pytestconfig.pluginmanager.get_plugin("capturemanager")

    def show(name: str, value: object) -> None:
        text = f"{value:.3g}" if isinstance(value, float) else str(value)
        with capture.global_and_fixture_disabled():
            reporter.ensure_newline()
            reporter.write_line(f"  {name}: {text}")

    return show


@pytest.fixture(scope="session")
def in_ranks(device: torch.device, rehearsal: bool) -> InRanks:
    """`run_in_ranks` on the device."""

    def run(function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
        return run_in_ranks(
            function, world_size, *arguments, device=device.type, fresh=not rehearsal
        )

    return run


@pytest.fixture
def require_gpus(rehearsal: bool, device: torch.device) -> Callable[[int], None]:
    """Skips a test of several ranks where there are fewer GPUs.

    With CI=gpu it fails where the machine has them and torch does not see them.
    """

    def require(num_gpus: int) -> None:
        seen = torch.cuda.device_count()
        if rehearsal or seen >= num_gpus:
            return
        present = len(list(Path("/dev").glob("nvidia[0-9]*")))
        if os.environ.get("CI") == "gpu" and present >= num_gpus:
            pytest.fail(f"the machine has {present} GPUs, and torch sees {seen}")
        pytest.skip(f"needs {num_gpus} GPUs, and there is {seen}")

    return require


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory, rehearsal: bool) -> Path:
    """A data set of 48 (rehearsed: 8) training photos in ImageNet's usual shapes, 2 classes."""
    root = tmp_path_factory.mktemp("photos")
    shapes = [(500, 375), (375, 500), (500, 333), (640, 480)]
    for split, count in (("train", 8 if rehearsal else 48), ("val", 4)):
        for number in range(count):
            path = root / split / f"class{number % 2}" / f"{number:03d}.jpg"
            save_photo(path, *shapes[number % 4], seed=number)
    return root


def _rehearsing(config: pytest.Config) -> bool:
    return bool(config.getoption("rehearse", default=False))


def _no_gpu() -> str:
    """Why there is no GPU for the tests, in a sentence; empty: there is one."""
    if torch.cuda.is_available():
        return ""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        reason = "CUDA_VISIBLE_DEVICES, which is empty, hides all"
    else:
        reason = _why_no_gpu() or "this machine has none"
    return f"`make test-gpu` needs an NVIDIA GPU: {reason}."
