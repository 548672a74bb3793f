"""The oracle is `torch.optim.SGD`, not fused; for LARS, the paper's formula."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vggdist.config import OptimizerConfig
from vggdist.training.optimizer import (
    MaskedLARS,
    MaskedSGD,
    any_not_finite,
    build_optimizer,
    norm,
)

BAD = [float("nan"), float("inf"), float("-inf")]


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3, 3, 3), (4,), (5, 7)]
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def set_gradients(params: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in params:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def masked_sgd(params: list[nn.Parameter], momentum: float = 0.9) -> MaskedSGD:
    config = OptimizerConfig(learning_rate=0.1, momentum=momentum, weight_decay=0.01)
    return MaskedSGD(params, config)


def copies(tensors: list[nn.Parameter] | list[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def momentum_of(optimizer: MaskedSGD) -> list[Tensor]:
    return [optimizer.state[p]["momentum_buffer"] for p in optimizer.parameters()]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize(
    "prepare", [lambda optimizer: None, MaskedSGD.start_momentum], ids=["lazy", "started"]
)
def test_good_gradients_make_the_steps_of_torchs_sgd(
    momentum: float, prepare: Callable[[MaskedSGD], None]
) -> None:
    ours, theirs = parameters(), parameters()
    optimizer = masked_sgd(ours, momentum)
    oracle = torch.optim.SGD(theirs, lr=0.1, momentum=momentum, weight_decay=0.01, fused=False)
    prepare(optimizer)
    for step in range(4):
        if step == 2:
            optimizer.set_learning_rate(0.03)
            oracle.param_groups[0]["lr"] = 0.03
        set_gradients(ours, step)
        set_gradients(theirs, step)
        optimizer.step()
        oracle.step()
        assert optimizer.masked is not None
        assert optimizer.masked.tolist() == [0.0]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("steps_before", [0, 1])
def test_one_bad_element_leaves_weights_and_momentum_bit_for_bit(
    bad: float, steps_before: int
) -> None:
    params = parameters()
    optimizer = masked_sgd(params)
    optimizer.start_momentum()
    for step in range(steps_before):
        set_gradients(params, step)
        optimizer.step()
    weights, momentum = copies(params), copies(momentum_of(optimizer))
    set_gradients(params, 5)
    params[2].grad[3, 3] = bad
    optimizer.step()
    assert optimizer.masked.tolist() == [1.0]
    assert_same(copies(params), weights)
    assert_same(copies(momentum_of(optimizer)), momentum)


def test_a_bad_first_step_makes_momentum_of_zeros_and_not_of_what_memory_held() -> None:
    params = parameters()
    optimizer = masked_sgd(params)
    set_gradients(params, 0)
    params[0].grad.fill_(float("nan"))
    optimizer.step()
    assert not any(buffer.any() for buffer in momentum_of(optimizer))


def test_after_a_bad_gradient_good_ones_change_nothing_either() -> None:
    params = parameters()
    optimizer = masked_sgd(params)
    weights = copies(params)
    set_gradients(params, 0)
    params[1].grad[0] = float("inf")
    optimizer.step()
    for step in range(2):
        set_gradients(params, step)
        optimizer.step()
        assert optimizer.masked.tolist() == [1.0]
    assert_same(copies(params), weights)


def test_under_a_scaler_a_bad_gradient_costs_its_own_step_only() -> None:
    ours, theirs = parameters(), parameters()
    optimizer = masked_sgd(ours)
    oracle = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=0.01, fused=False)
    scaler = torch.amp.GradScaler(device="cpu", init_scale=2.0**10)
    scaler.scale(torch.zeros(()))
    scale, masked = 2.0**10, []
    for step, good in enumerate([False, True, True, False, True]):
        set_gradients(ours, step)
        for parameter in ours:
            parameter.grad.mul_(scale)
        if not good:
            ours[1].grad[2] = float("nan")
        scaler.step(optimizer)
        scaler.update()
        scale = scaler.get_scale()
        masked.append(optimizer.masked.item())
        if good:
            set_gradients(theirs, step)
            oracle.step()
    assert masked == [1.0, 0.0, 0.0, 1.0, 0.0]
    assert scale == 2.0**8
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_momentum_has_the_memory_format_of_its_weights() -> None:
    params = parameters()
    params[0].data = params[0].data.to(memory_format=torch.channels_last)
    optimizer = masked_sgd(params)
    optimizer.start_momentum()
    assert momentum_of(optimizer)[0].stride() == params[0].stride()


def test_gradients_of_another_memory_format_are_those_of_the_same_weights() -> None:
    ours, theirs = (
        nn.Parameter(torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last))
        for _ in range(2)
    )
    theirs.data.copy_(ours)
    ours.grad = torch.randn(4, 3, 3, 3)
    theirs.grad = ours.grad.clone()
    masked_sgd([ours]).step()
    torch.optim.SGD([theirs], lr=0.1, momentum=0.9, weight_decay=0.01, fused=False).step()
    torch.testing.assert_close(ours, theirs)
    assert ours.is_contiguous(memory_format=torch.channels_last)


def test_the_norm_is_that_of_all_elements_together() -> None:
    tensors = [torch.tensor([3.0]), torch.tensor([[4.0, 12.0]])]
    assert norm(iter(tensors)).item() == 13.0


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_element_is_found_anywhere(bad: float) -> None:
    elements = torch.randn(17)
    assert any_not_finite(elements.split(6)).tolist() == [0.0]
    for index in range(17):
        spoiled = elements.clone()
        spoiled[index] = bad
        assert any_not_finite(spoiled.split(6)).tolist() == [1.0]


def test_infinities_of_both_signs_do_not_cancel_and_large_elements_are_good() -> None:
    assert any_not_finite([torch.tensor([float("inf"), float("-inf")])]).tolist() == [1.0]
    assert any_not_finite([torch.full((10,), 1e30)]).tolist() == [0.0]


# LARS


def lars(params: list[nn.Parameter]) -> MaskedSGD:
    return build_optimizer(
        params,
        OptimizerConfig(
            name="lars", learning_rate=2.0, momentum=0.9, weight_decay=0.01, trust_coefficient=0.02
        ),
    )


def slow_lars(params: list[nn.Parameter], momentum: list[Tensor]) -> None:
    """A step, parameter by parameter, in float64: the paper's Algorithm 1."""
    for parameter, buffer in zip(params, momentum, strict=True):
        weights, gradient = parameter.detach().double(), parameter.grad.double()
        if parameter.dim() > 1:
            local = 0.02 * weights.norm() / (gradient.norm() + 0.01 * weights.norm())
            gradient = local * (gradient + 0.01 * weights)
        buffer.mul_(0.9).add_(gradient)
        parameter.data -= (2.0 * buffer).float()


def test_lars_scales_each_layers_step_and_leaves_biases_to_sgd() -> None:
    ours, theirs = parameters(), parameters()
    optimizer = lars(ours)
    assert isinstance(optimizer, MaskedLARS)
    momentum = [torch.zeros(p.shape, dtype=torch.float64) for p in theirs]
    for step in range(4):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        optimizer.step()
        slow_lars(theirs, momentum)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_lars_steps_do_not_depend_on_the_size_of_the_gradient() -> None:
    """Without weight decay; that is what it is for."""
    moved = []
    for factor in (1.0, 1000.0):
        (weight,) = params = [nn.Parameter(torch.randn(5, 7, generator=generator_of(1)))]
        config = OptimizerConfig(name="lars", learning_rate=1.0, weight_decay=0.0)
        weight.grad = factor * torch.randn(5, 7, generator=generator_of(2))
        before = weight.detach().clone()
        build_optimizer(params, config).step()
        moved.append(weight.detach() - before)
    torch.testing.assert_close(moved[0], moved[1])
    assert moved[0].norm().item() == pytest.approx(0.001 * before.norm().item(), rel=1e-4)


def test_lars_takes_fp16s_loss_scale_out_first() -> None:
    ours, theirs = parameters(), parameters()
    optimizer, oracle = lars(ours), lars(theirs)
    set_gradients(ours, 0)
    set_gradients(theirs, 0)
    for parameter in ours:
        parameter.grad *= 256.0
    optimizer.grad_scale, optimizer.found_inf = torch.tensor([256.0]), torch.zeros(1)
    optimizer.step()
    oracle.step()
    assert_same(copies(ours), copies(theirs))


@pytest.mark.parametrize("bad", BAD)
def test_lars_leaves_a_bad_gradient_out(bad: float) -> None:
    params = parameters()
    optimizer, before = lars(params), copies(params)
    set_gradients(params, 0)
    params[2].grad[0, 0] = bad
    optimizer.step()
    assert optimizer.masked.item() == 1
    assert_same(copies(params), before)
    assert not any(buffer.any() for buffer in momentum_of(optimizer))


def test_lars_moves_weights_that_are_zero() -> None:
    weight = nn.Parameter(torch.zeros(3, 3))
    weight.grad = torch.ones(3, 3)
    lars([weight]).step()
    assert torch.equal(weight, torch.full((3, 3), -2.0))


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
