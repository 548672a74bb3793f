"""The watch sees what makes a host wait or leave its GPU, and nothing else."""

import pytest

from tests.fake_cuda.faults import FAULTS, HARMLESS, commit_all
from tests.fake_cuda.process import FakeCuda

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def seen(fake_cuda: FakeCuda) -> dict[str, list[str]]:
    return fake_cuda.run(commit_all)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_seen_and_its_place_told(seen: dict[str, list[str]], name: str) -> None:
    said, _ = FAULTS[name]
    faults = [fault for fault in seen[name] if fault.startswith(said)]
    assert faults, seen[name]
    assert all("tests/fake_cuda/faults.py:" in fault for fault in faults)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_does_no_harm_is_passed_over(seen: dict[str, list[str]], name: str) -> None:
    assert seen[name] == []
