"""The oracle is arithmetic on what each rank put in."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.ranks import run_in_ranks
from vggdist.distributed.process import Process
from vggdist.errors import StoppedError
from vggdist.training.flags import DelayedFlags, SentFlags, SharedFlags, until_stopped
from vggdist.training.signals import StopSignal


def engine_of(module: nn.Module, process: Process) -> Any:
    """All that shared flags ask of an engine."""
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
    flags = SharedFlags(engine)
    results: dict[str, Any] = {"before": statistics(engine.module)}
    flags.begin()
    engine.module(images_of(process.rank, 0))
    results["alone"] = statistics(engine.module)
    results["good flags"] = flags.end(engine, False).tolist()
    results["good"] = statistics(engine.module)
    results["state"] = {n: b.clone() for n, b in engine.module.state_dict().items()}

    flags.begin()
    engine.module(images_of(process.rank, 1))
    engine.masked.fill_(1)
    results["masked flags"] = flags.end(engine, False).tolist()
    results["masked"] = statistics(engine.module)

    flags.begin()
    engine.module(images_of(process.rank, 1) * (float("nan") if process.rank else 1.0))
    engine.failed.fill_(1)
    results["nan flags"] = flags.end(engine, False).tolist()
    results["nan"] = statistics(engine.module)

    engine.masked.zero_()
    engine.failed.zero_()
    for name, requested in (("one", process.rank == 1), ("all", True), ("none", False)):
        flags.begin()
        results[f"stop {name}"] = SentFlags(flags.end(engine, requested), 7).read()[1:5]

    found = flags.end(engine, False, found_bad=process.rank == 1)
    results["found one"] = SentFlags(found, 8).read()[1:5]

    plain = engine_of(nn.Linear(2, 2), process)
    results["without statistics"] = SharedFlags(plain).end(plain, process.rank == 0).tolist()
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
def test_flags_are_read_as_they_were_sent(flags: tuple[int, int, int, int]) -> None:
    sent = SentFlags(torch.tensor([*flags, 0.0, 2.5]), step=3)
    assert sent.read() == (3, *(flag > 0 for flag in flags), (0.0, 2.5))


def test_flags_of_a_gpu_are_handed_out_a_step_later_or_when_they_are_asked_for() -> None:
    def flags(failed: int) -> torch.Tensor:
        return torch.tensor([failed, 0, 0, 0])

    at_once = DelayedFlags(torch.device("cpu"))
    assert at_once.push(flags(1), 1) == (1, True, False, False, False, ())
    assert at_once.flush() is None
    delayed = DelayedFlags(torch.device("cuda"))
    assert delayed.push(flags(0), 1) is None
    assert delayed.push(flags(1), 2) == (1, False, False, False, False, ())
    assert delayed.flush() == (2, True, False, False, False, ())
    assert delayed.flush() is None
    assert delayed.push(flags(0), 3) is None


def test_statistics_lie_as_aligned_as_tensors_of_their_own() -> None:
    network = nn.Sequential(nn.BatchNorm2d(64), nn.BatchNorm2d(128), nn.BatchNorm2d(512))
    SharedFlags(engine_of(network, Process(0, 0, 1, torch.device("cpu"))))
    assert {b.data_ptr() % 64 for n, b in network.named_buffers() if "running" in n} == {0}


def evaluate_until(process: Process, stopping_rank: int, stopping_batch: int) -> tuple[int, bool]:
    """How many batches this rank has seen, and whether it was stopped; rank 1 has one less."""
    stop, seen = StopSignal(), 0
    try:
        for number in until_stopped(iter(range(5 - process.rank)), 5, stop, process.device):
            assert number == seen
            seen += 1
            if (process.rank, number) == (stopping_rank, stopping_batch):
                stop.requested = True
    except StoppedError:
        return seen, True
    return seen, False


def evaluations(process: Process) -> list[tuple[int, bool]]:
    cases = ((0, 1), (1, 1), (0, 2), (1, 3), (0, 4), (9, 9))
    return [evaluate_until(process, *case) for case in cases]


@pytest.mark.multi_process
def test_a_signal_to_any_rank_ends_an_evaluation_on_all_after_the_same_batch() -> None:
    first, second = run_in_ranks(evaluations, 2)
    assert first[:4] == second[:4] == [(2, True), (2, True), (3, True), (4, True)]
    assert (first[4], second[4]) == ((5, True), (4, True)), "rank 1 has run out of batches"
    assert (first[5], second[5]) == ((5, False), (4, False))
