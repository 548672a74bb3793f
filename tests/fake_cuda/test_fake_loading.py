"""A loader's thread under a pretended CUDA stays on the rank's GPU, and in a stream of its own."""

from pathlib import Path

import pytest

from tests.fake_cuda.loading import RANK, look_at_loader
from tests.fake_cuda.process import FakeCuda

pytestmark = pytest.mark.slow


def test_a_loaders_thread_never_leaves_its_gpu_and_waits_for_no_stream_but_its_own(
    fake_cuda: FakeCuda, tiny_dataset: Path
) -> None:
    calls = fake_cuda.run(look_at_loader, tiny_dataset)
    assert {call.device for call in calls} == {RANK}
    waits = [call for call in calls if call.name.endswith("synchronize")]
    assert waits
    assert all(call.own_stream for call in waits), waits
