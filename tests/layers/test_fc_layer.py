import pytest
import torch

from vggdist.layers.fc_layer import FCLayer


def test_it_is_linear_then_relu_in_eval_mode() -> None:
    layer = FCLayer(5, 4, number=6, dropout=0.5).eval()
    x = torch.randn(3, 5)
    expected = (x @ layer.linear.weight.T + layer.linear.bias).clamp(min=0)
    torch.testing.assert_close(layer(x), expected)


def test_dropout_comes_after_the_relu() -> None:
    layer = FCLayer(5, 400, number=6, dropout=0.5)
    x, keys = torch.randn(3, 5), torch.tensor([1, 2, 3])
    hidden = layer.eval()(x)
    dropped = layer.train()(x, keys)
    assert torch.all((dropped == 0) | torch.isclose(dropped, 2 * hidden))
    assert 0.2 < (dropped[hidden > 0] == 0).float().mean() < 0.8


def test_the_last_layer_is_linear_alone() -> None:
    layer = FCLayer(5, 4, number=8, last=True)
    x = torch.randn(3, 5)
    torch.testing.assert_close(layer(x), x @ layer.linear.weight.T + layer.linear.bias)


@pytest.mark.parametrize("num_images", [1, 8, 33])
def test_units_lie_image_by_image_in_memory_in_either_order_of_the_product(num_images: int) -> None:
    layer = FCLayer(300, 70, number=8, last=True)
    x = torch.randn(num_images, 300)
    units = layer(x)
    assert units.is_contiguous()
    exact = x.double() @ layer.linear.weight.double().T + layer.linear.bias.double()
    assert ((units - exact).norm() / exact.norm()).item() < 1e-6


def test_a_hook_on_the_linear_part_sees_its_output_gradient() -> None:
    """An in-place ReLU after it would make torch refuse the hook (the exchange needs one)."""
    layer = FCLayer(5, 4, number=6)
    seen = []
    layer.linear.register_full_backward_hook(lambda module, inputs, outputs: seen.append(outputs))
    layer(torch.randn(3, 5, requires_grad=True)).sum().backward()
    assert seen[0][0].shape == (3, 4)


def factors_of(layer: FCLayer, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What the layer hands on in a backward pass of a sum of squares."""
    taken: list[tuple[torch.Tensor, torch.Tensor]] = []
    layer.take_factors = lambda *factors: taken.append(factors)
    layer(x).float().square().sum().backward()
    layer.take_factors = None
    return taken


@pytest.mark.parametrize("last", [False, True])
def test_the_factors_multiply_to_the_gradients_that_autograd_gives(last: bool) -> None:
    torch.manual_seed(0)
    layer = FCLayer(5, 4, number=8, last=last)
    x = torch.randn(3, 5, requires_grad=True)
    ((inputs, outputs),) = factors_of(layer, x)
    assert layer.linear.weight.grad is None
    assert layer.linear.bias.grad is None
    factored, x.grad = x.grad, None
    layer(x).square().sum().backward()
    torch.testing.assert_close(x.grad, factored)
    torch.testing.assert_close(outputs.T @ inputs, layer.linear.weight.grad)
    torch.testing.assert_close(outputs.sum(0), layer.linear.bias.grad)


def test_under_autocast_the_factors_are_in_its_type_and_the_units_the_same() -> None:
    torch.manual_seed(0)
    layer = FCLayer(64, 32, number=8, last=True)
    x = torch.randn(8, 64)
    with torch.autocast("cpu", torch.bfloat16):
        ((inputs, outputs),) = factors_of(layer, x)
        plain = layer(x)
        layer.take_factors = lambda *factors: None
        units = layer(x)
    assert inputs.dtype == outputs.dtype == units.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(units, plain, rtol=0.01, atol=0.01)


def test_a_layer_above_frozen_ones_hands_on_its_factors_too() -> None:
    layer = FCLayer(5, 4, number=8, last=True)
    ((inputs, outputs),) = factors_of(layer, torch.randn(3, 5))
    assert inputs.shape == (3, 5)
    assert outputs.shape == (3, 4)


def test_without_gradients_nothing_is_handed_on() -> None:
    layer = FCLayer(5, 4, number=8, last=True)
    layer.take_factors = lambda *factors: pytest.fail("there is no backward pass")
    with torch.no_grad():
        assert not layer(torch.randn(3, 5)).requires_grad
