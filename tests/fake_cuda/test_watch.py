"""The watch sees what makes a host wait or leave its GPU, and nothing else."""

import pytest

from tests.fake_cuda.faults import FAULTS, HARMLESS, faults_of
from tests.fake_cuda.process import FakeCuda

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_seen_and_its_place_told(fake_cuda: FakeCuda, name: str) -> None:
    said, _ = FAULTS[name]
    seen = [fault for fault in fake_cuda.run(faults_of, name) if fault.startswith(said)]
    assert seen, name
    assert all("tests/fake_cuda/faults.py:" in fault for fault in seen)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_does_no_harm_is_passed_over(fake_cuda: FakeCuda, name: str) -> None:
    assert fake_cuda.run(faults_of, name) == []
