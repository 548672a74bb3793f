"""A process in which CUDA is pretended, for all tests of this folder."""

import os
import shutil
from collections.abc import Iterator

import pytest
import torch

from tests.fake_cuda.process import FakeCuda, compile_devices


@pytest.fixture(scope="session")
def fake_cuda(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeCuda]:
    """Skips where it cannot be made, and fails where `CI` is set."""
    if missing := what_is_missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    process = FakeCuda(compile_devices(tmp_path_factory.mktemp("fake_cuda")))
    yield process
    process.close()


def what_is_missing() -> str | None:
    """Why CUDA cannot be pretended here, as a sentence; None where it can."""
    if shutil.which("g++") is None:
        return "a pretended CUDA needs g++; install Debian's package g++."
    if torch.version.cuda is None:
        return f"a pretended CUDA needs a torch built for CUDA, and {torch.__version__} is not."
    return None
