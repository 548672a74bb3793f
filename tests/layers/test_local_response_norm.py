"""The oracle is AlexNet's printed formula, written as a loop over channels."""

import pytest
import torch
from torch import Tensor

from vggdist.layers.local_response_norm import LocalResponseNorm


def printed_formula(x: Tensor) -> Tensor:
    """b_i = a_i / (2 + 1e-4 * sum of a_j^2 over j from i - 2 to i + 2)^0.75 in float64."""
    x = x.double()
    num_channels = x.shape[1]
    b = torch.empty_like(x)
    for i in range(num_channels):
        total = torch.zeros_like(x[:, 0])
        for j in range(max(0, i - 2), min(num_channels - 1, i + 2) + 1):
            total += x[:, j] ** 2
        b[:, i] = x[:, i] / (2 + 1e-4 * total) ** 0.75
    return b


@pytest.fixture
def activations() -> Tensor:
    return 100 * torch.randn(2, 9, 4, 3, generator=torch.Generator().manual_seed(0)).relu()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_it_is_the_printed_formula_and_keeps_the_memory_format(
    activations: Tensor, memory_format: torch.memory_format
) -> None:
    x = activations.to(memory_format=memory_format)
    y = LocalResponseNorm()(x)
    torch.testing.assert_close(y.double(), printed_formula(x), rtol=1e-5, atol=1e-5)
    assert y.is_contiguous(memory_format=memory_format)


def test_the_library_needs_alpha_times_five_for_the_same(activations: Tensor) -> None:
    library = torch.nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
    torch.testing.assert_close(LocalResponseNorm()(activations), library(activations))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_only_input_and_output_are_rounded(
    activations: Tensor, dtype: torch.dtype
) -> None:
    x = (10 * activations).to(dtype)  # squares beyond fp16's 65,504
    with torch.autocast("cpu", dtype=dtype):
        y = LocalResponseNorm()(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, printed_formula(x).to(dtype), rtol=2**-8, atol=0.0)


def test_its_gradient_is_that_of_the_formula() -> None:
    x = torch.randn(1, 6, 2, 2, dtype=torch.float32, requires_grad=True)
    ours = torch.autograd.grad(LocalResponseNorm()(x).square().sum(), x)[0]
    theirs = torch.autograd.grad(printed_formula(x).square().sum(), x)[0]
    torch.testing.assert_close(ours, theirs)
