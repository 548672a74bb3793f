"""The oracle is arithmetic on what each rank put in."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.ranks import run_in_ranks
from vggdist.distributed.process import Process
from vggdist.training.agreement import Agreement, Verdict


def engine_of(module: nn.Module, process: Process) -> Any:
    """All that an agreement asks of an engine."""
    zero = torch.zeros(1)
    return SimpleNamespace(module=module, device=process.device, masked=zero, failed=zero.clone())


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)
    )


def statistics(module: nn.Module) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in module.named_buffers() if "running" in name}


def images_of(rank: int, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(10 * step + rank)
    return (rank + 1) * torch.randn(5, 3, 4, 4, generator=generator)


def agree(process: Process) -> dict[str, Any]:
    """A good step, a step whose update was left out, a step in which rank 1 saw nan, then stops."""
    engine = engine_of(network(), process)
    agreement = Agreement(engine)
    results: dict[str, Any] = {"before": statistics(engine.module)}
    agreement.begin()
    engine.module(images_of(process.rank, 0))
    results["alone"] = statistics(engine.module)
    results["good flags"] = agreement.end(engine, False).tolist()
    results["good"] = statistics(engine.module)
    results["state"] = {n: b.clone() for n, b in engine.module.state_dict().items()}

    agreement.begin()
    engine.module(images_of(process.rank, 1))
    engine.masked.fill_(1)
    results["masked flags"] = agreement.end(engine, False).tolist()
    results["masked"] = statistics(engine.module)

    agreement.begin()
    engine.module(images_of(process.rank, 1) * (float("nan") if process.rank else 1.0))
    engine.failed.fill_(1)
    results["nan flags"] = agreement.end(engine, False).tolist()
    results["nan"] = statistics(engine.module)

    engine.masked.zero_()
    engine.failed.zero_()
    for name, requested in (("one", process.rank == 1), ("all", True), ("none", False)):
        agreement.begin()
        results[f"stop {name}"] = Verdict(agreement.end(engine, requested), 7).read()

    found = agreement.end(engine, False, found_bad=process.rank == 1)
    results["found one"] = Verdict(found, 8).read()

    plain = engine_of(nn.Linear(2, 2), process)
    results["without statistics"] = Agreement(plain).end(plain, process.rank == 0).tolist()
    return results


@pytest.fixture(scope="module")
def agreed() -> list[dict[str, Any]]:
    return run_in_ranks(agree, 2)


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.multi_process
def test_batch_statistics_become_the_mean_over_ranks(agreed: list[dict[str, Any]]) -> None:
    first, second = agreed
    for name, ours in first["alone"].items():
        theirs = second["alone"][name]
        assert not torch.equal(ours, theirs)
        torch.testing.assert_close(first["good"][name], (ours + theirs) / 2)
    assert_equal(first["good"], second["good"])
    assert [result["good flags"] for result in agreed] == [[0.0, 0.0, 0.0, 0.0]] * 2


@pytest.mark.multi_process
def test_a_checkpoint_sees_the_averaged_statistics(agreed: list[dict[str, Any]]) -> None:
    for result in agreed:
        for name, buffer in result["good"].items():
            assert torch.equal(result["state"][name], buffer)


@pytest.mark.multi_process
def test_a_masked_step_puts_the_statistics_back_bit_for_bit(agreed: list[dict[str, Any]]) -> None:
    for result in agreed:
        assert result["masked flags"] == [0.0, 1.0, 0.0, 0.0]
        assert_equal(result["masked"], result["good"])


@pytest.mark.multi_process
def test_nan_in_one_ranks_statistics_stays_in_none(agreed: list[dict[str, Any]]) -> None:
    for result in agreed:
        assert result["nan flags"] == [1.0, 1.0, 0.0, 0.0]
        assert_equal(result["nan"], result["good"])


@pytest.mark.multi_process
def test_all_ranks_see_that_one_wants_to_stop(agreed: list[dict[str, Any]]) -> None:
    for result in agreed:
        assert result["stop one"] == (False, False, True, False)
        assert result["stop all"] == (False, False, True, False)
        assert result["stop none"] == (False, False, False, False)
        assert result["without statistics"] == [0.0, 0.0, 1.0, 0.0]


@pytest.mark.multi_process
def test_all_ranks_see_that_one_found_a_bad_image(agreed: list[dict[str, Any]]) -> None:
    for result in agreed:
        assert result["found one"] == (False, False, False, True)


@pytest.mark.parametrize("flags", [(0, 0, 0, 0), (1, 1, 0, 1), (0, 1, 2, 0), (0, 0, 1, 2)])
def test_a_verdict_says_what_its_flags_say(flags: tuple[int, int, int, int]) -> None:
    verdict = Verdict(torch.tensor(flags, dtype=torch.float32), step=3)
    assert verdict.step == 3
    assert verdict.read() == tuple(flag > 0 for flag in flags)


def test_statistics_lie_as_aligned_as_tensors_of_their_own() -> None:
    network = nn.Sequential(nn.BatchNorm2d(64), nn.BatchNorm2d(128), nn.BatchNorm2d(512))
    Agreement(engine_of(network, Process(0, 0, 1, torch.device("cpu"))))
    assert {b.data_ptr() % 64 for n, b in network.named_buffers() if "running" in n} == {0}
