"""The oracle is the whole product in fp64, and torch's SGD with it."""

import math

import pytest
import torch
from torch import nn

from vggdist.config import OptimizerConfig
from vggdist.training import product as products
from vggdist.training.optimizer import MaskedSGD, norm
from vggdist.training.product import Product, multiply

BAD = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_product_of_factors_is_rounded_only_in_fp32(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 40, generator=generator).to(dtype)
    dy = torch.randn(24, 30, generator=generator).to(dtype)
    out = torch.full((30, 40), math.nan)
    multiply(dy, x, 0.25, out)
    exact = 0.25 * dy.double().T @ x.double()
    assert ((out - exact).norm() / exact.norm()).item() < 1e-6


def test_fp16_factors_whose_product_leaves_fp16s_range_lose_nothing() -> None:
    x, dy = torch.full((8, 3), 200.0).half(), torch.full((8, 2), 300.0).half()
    out = torch.empty(2, 3)
    multiply(dy, x, 0.125, out)
    assert torch.equal(out, torch.full((2, 3), 60_000.0))


def product_of(weight: nn.Parameter, seed: int = 0, dtype: torch.dtype = torch.float32) -> Product:
    generator = torch.Generator().manual_seed(seed)
    height, width = weight.shape
    dy, x = (torch.randn(6, size, generator=generator).to(dtype) for size in (height, width))
    return Product(weight, dy, x, 0.5)


def whole(product: Product) -> torch.Tensor:
    return product.scale * product.dy.double().T @ product.x.double()


def new_weight() -> nn.Parameter:
    return nn.Parameter(torch.randn(11, 7, generator=torch.Generator().manual_seed(9)))


@pytest.mark.parametrize("elements", [1, 20, 21, 77, 1 << 20])
def test_blocks_are_the_rows_of_the_whole_in_order(
    monkeypatch: pytest.MonkeyPatch, elements: int
) -> None:
    monkeypatch.setitem(products.BLOCK_ELEMENTS, "cpu", elements)
    product = product_of(new_weight())
    got, next_row = torch.full((11, 7), math.nan), 0
    for rows, block in product.blocks():
        assert rows.start == next_row
        assert block.numel() <= max(elements, 7)
        got[rows], next_row = block, rows.stop
    assert next_row == 11
    torch.testing.assert_close(got.double(), whole(product), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_follows_from_the_factors(dtype: torch.dtype) -> None:
    product = product_of(new_weight(), dtype=dtype)
    assert product.norm().item() == pytest.approx(whole(product).norm().item(), rel=1e-5)
    assert Product(product.weight, 0 * product.dy, product.x, 0.5).norm() == 0


def test_the_bound_is_one() -> None:
    product = product_of(new_weight())
    assert whole(product).abs().max() <= product.bound() < math.inf
    for factor in (product.dy, product.x):
        for bad in BAD:
            kept = factor[3, 2].clone()
            factor[3, 2] = bad
            assert not product.bound().isfinite()
            factor[3, 2] = kept


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_steps_from_a_product_are_those_of_torchs_sgd(
    monkeypatch: pytest.MonkeyPatch, momentum: float
) -> None:
    monkeypatch.setitem(products.BLOCK_ELEMENTS, "cpu", 21)
    config = OptimizerConfig(learning_rate=0.1, momentum=momentum, weight_decay=0.01)
    ours, bias, theirs = new_weight(), nn.Parameter(torch.zeros(11)), new_weight()
    optimizer = MaskedSGD([ours, bias], config)
    oracle = torch.optim.SGD([theirs], lr=0.1, momentum=momentum, weight_decay=0.01, fused=False)
    for step in range(3):
        product = product_of(ours, step)
        bias.grad = torch.ones(11)
        optimizer.products.append(product)
        optimizer.step()
        theirs.grad = whole(product).float()
        oracle.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        assert not optimizer.products
        assert ours.grad is None
    assert (bias < 0).all()


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_factor_leaves_all_weights_and_momentum_bit_for_bit(bad: float) -> None:
    config = OptimizerConfig(learning_rate=0.1, momentum=0.9, weight_decay=0.01)
    weight, bias = new_weight(), nn.Parameter(torch.zeros(11))
    optimizer = MaskedSGD([weight, bias], config)
    former = weight.detach().clone()
    product = product_of(weight)
    product.x[2, 2] = bad
    bias.grad = torch.ones(11)
    optimizer.products.append(product)
    optimizer.step()
    assert optimizer.masked == 1
    assert torch.equal(weight, former)
    assert not bias.any()
    assert not optimizer.state[weight]["momentum_buffer"].any()


def test_the_norm_of_all_counts_a_product_as_its_matrix() -> None:
    product, other = product_of(new_weight()), torch.ones(3)
    expected = math.sqrt(whole(product).norm().item() ** 2 + 3)
    assert norm([other, product.norm()]).item() == pytest.approx(expected, rel=1e-6)
