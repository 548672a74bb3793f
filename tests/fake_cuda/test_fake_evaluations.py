"""Evaluations with VGG D under a pretended CUDA: the host never waits for its GPU."""

import pytest

from tests.fake_cuda.evaluations import look_at_protocols, look_at_validation
from tests.fake_cuda.process import FakeCuda

pytestmark = pytest.mark.slow


def test_neither_a_protocol_nor_the_rescaling_before_it_waits_for_the_gpu(
    fake_cuda: FakeCuda,
) -> None:
    faults = fake_cuda.run(look_at_protocols)
    assert faults == {name: [] for name in faults}


def test_an_evaluation_while_training_reads_its_counts_once_at_the_end(
    fake_cuda: FakeCuda,
) -> None:
    reads = fake_cuda.run(look_at_validation, 1)
    assert all("the host reads" in read for read in reads)
    assert fake_cuda.run(look_at_validation, 3) == reads
