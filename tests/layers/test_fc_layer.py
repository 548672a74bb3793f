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


def test_a_hook_on_the_linear_part_sees_its_output_gradient() -> None:
    """An in-place ReLU after it would make torch refuse the hook (the exchange needs one)."""
    layer = FCLayer(5, 4, number=6)
    seen = []
    layer.linear.register_full_backward_hook(lambda module, inputs, outputs: seen.append(outputs))
    layer(torch.randn(3, 5, requires_grad=True)).sum().backward()
    assert seen[0][0].shape == (3, 4)
