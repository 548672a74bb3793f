"""The oracle is the mean of the gradients that each rank's images give alone."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from tests.ranks import run_in_ranks
from vggdist.distributed.collectives import Collectives
from vggdist.distributed.process import Process
from vggdist.training import gradients
from vggdist.training.gradients import GradientExchange
from vggdist.training.optimizer import in_memory_order


@pytest.mark.parametrize("shape", [(6, 3, 3, 5), (4, 7, 1, 1), (4, 1, 3, 3), (1, 3, 3, 3)])
def test_channels_last_tensors_are_viewed_in_the_order_of_their_memory(
    shape: tuple[int, ...],
) -> None:
    numbers = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
    tensor = numbers.to(memory_format=torch.channels_last)
    view = in_memory_order(tensor)
    assert view.is_contiguous()
    assert torch.equal(view, tensor.permute(0, 2, 3, 1).flatten())
    view.mul_(2)
    assert torch.equal(tensor, 2 * numbers)


def test_contiguous_tensors_are_viewed_as_they_are() -> None:
    tensor = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(in_memory_order(tensor), tensor.flatten())
    assert torch.equal(in_memory_order(tensor[1]), tensor[1].flatten())  # behind an offset


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(4 * 36, 10)
    ).to(memory_format=torch.channels_last)


def images_of(rank: int, micro_batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(10 * rank + micro_batch)
    images = torch.randn(2, 3, 8, 8, generator=generator)
    return images.to(memory_format=torch.channels_last)


def backward(network: nn.Module, rank: int, micro_batch: int) -> None:
    labels = torch.tensor([rank, micro_batch])
    F.cross_entropy(network(images_of(rank, micro_batch)), labels).backward()


def mean_gradients(world_size: int, num_micro: int) -> list[Tensor]:
    network = small_network()
    for rank in range(world_size):
        for micro_batch in range(num_micro):
            backward(network, rank, micro_batch)
    return [p.grad / world_size for p in network.parameters()]


def exchange_steps(process: Process, bucket_elements: int, divisor: int = 2) -> dict[str, Any]:
    """Two steps of two micro batches each; what was sent, and what came out."""
    gradients.BUCKET_ELEMENTS = bucket_elements
    sizes: list[int] = []
    all_reduce = distributed.all_reduce

    def counted(tensor: Tensor, async_op: bool = False) -> Any:
        assert async_op
        sizes.append(tensor.numel())
        return all_reduce(tensor, async_op=async_op)

    distributed.all_reduce = counted
    network, last = small_network(), False
    exchange = GradientExchange(
        list(network.parameters()), lambda: last, Collectives(process.device), divisor=divisor
    )
    sent: list[list[int]] = []
    for _ in range(2):
        network.zero_grad()
        for micro_batch in (0, 1):
            last = micro_batch == 1
            backward(network, process.rank, micro_batch)
            exchange.wait()
            sent.append(list(sizes))
            sizes.clear()
    distributed.all_reduce = all_reduce
    return {
        "gradients": [p.grad for p in network.parameters()],
        "layouts": [p.grad.stride() == p.stride() for p in network.parameters()],
        "sent": sent,
    }


def exchanges(process: Process) -> list[dict[str, Any]]:
    means = [exchange_steps(process, bucket) for bucket in (1, 100, 1 << 20)]
    return [*means, exchange_steps(process, 1 << 20, divisor=1)]


@pytest.fixture(scope="module")
def exchanged() -> list[list[dict[str, Any]]]:
    return run_in_ranks(exchanges, 2)


@pytest.mark.multi_process
def test_every_rank_gets_the_mean_or_the_sum_of_the_accumulated_gradients(
    exchanged: list[list[dict[str, Any]]],
) -> None:
    expected = mean_gradients(world_size=2, num_micro=2)
    for *means, sums in exchanged:
        for gradient, mean in zip(sums["gradients"], means[-1]["gradients"], strict=True):
            assert torch.equal(gradient, 2 * mean)
        for result in means:
            assert all(result["layouts"])
            for gradient, mean in zip(result["gradients"], expected, strict=True):
                torch.testing.assert_close(gradient, mean, rtol=1e-5, atol=1e-7)
    first, second = exchanged
    for ours, theirs in zip(first, second, strict=True):
        pairs = zip(ours["gradients"], theirs["gradients"], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.multi_process
def test_only_the_last_micro_batch_is_sent_and_small_gradients_together(
    exchanged: list[list[dict[str, Any]]],
) -> None:
    """Elements: Linear 1440 + 10, second convolution 32 + 4, first 216 + 8; behind comes first."""
    for one_by_one, in_buckets, together, _ in exchanged:
        for result in (one_by_one, in_buckets, together):
            first, second, third, fourth = result["sent"]
            assert first == third == []
            assert sum(second) == sum(fourth) == 1710
            assert second == fourth
        assert sorted(one_by_one["sent"][1]) == [4, 8, 10, 32, 216, 1440]
        # 100: the two large ones alone and at once, all the others together at the end.
        assert sorted(in_buckets["sent"][1]) == [54, 216, 1440]
        assert together["sent"][1] == [1710]


def test_a_world_of_one_exchanges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "get_world_size", lambda: 1)
    monkeypatch.delattr(distributed, "all_reduce")
    network = small_network()
    exchange = GradientExchange(
        list(network.parameters()), lambda: True, Collectives(torch.device("cpu"))
    )
    for micro_batch in (0, 1):
        backward(network, 0, micro_batch)
        exchange.wait()
    for parameter, expected in zip(network.parameters(), mean_gradients(1, 2), strict=True):
        assert torch.equal(parameter.grad, expected)
