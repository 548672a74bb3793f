"""The kernels of a training step that are ours to choose, beside float64 or torch on a CPU."""

import pytest
import torch
from torch import Tensor, nn

from tests.layers.test_dropout import mask, random_keys
from tests.training.test_engine import set_loss_scale
from tests.training.test_optimizer import copies, momentum_of, parameters, set_gradients
from vggdist.config import OptimizerConfig
from vggdist.distributed.precision import DTYPES
from vggdist.layers.dropout import KeyedDropout
from vggdist.layers.fc_layer import FCLayer
from vggdist.training.optimizer import MaskedLARS, MaskedSGD, build_optimizer
from vggdist.training.product import Product, multiply

pytestmark = pytest.mark.gpu

each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
SGD = OptimizerConfig(learning_rate=0.1, momentum=0.9, weight_decay=0.01)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """In Euclidean norms."""
    return ((found.cpu().double() - expected).norm() / expected.norm()).item()


def factors(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """dy (64, 256) and x (64, 512)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 512, generator=generator).to(dtype)
    dy = torch.randn(64, 256, generator=generator).to(dtype)
    return dy.to(device), x.to(device)


@each_dtype
def test_a_product_of_factors_is_rounded_only_in_fp32(dtype, device, figure):
    dy, x = factors(dtype, device)
    out = torch.full((256, 512), float("nan"), device=device)
    multiply(dy, x, 0.25, out)
    error = relative_error(out, 0.25 * dy.cpu().double().T @ x.cpu().double())
    figure("relative error", error)
    assert error < 2e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_a_layer_hands_on_the_factors_of_the_gradient_that_autograd_gives(dtype, device):
    torch.manual_seed(0)
    layer = FCLayer(64, 32, number=8, last=True).to(device)
    x = torch.randn(16, 64).to(device).requires_grad_()
    taken, gradients = [], []
    for take in (None, lambda *both: taken.append(both)):
        layer.take_factors = take
        with torch.autocast(device.type, dtype):
            units = layer(x)
        units.float().square().sum().backward()
        gradients.append(x.grad.clone())
        x.grad = None
    ((inputs, outputs),) = taken
    assert inputs.dtype == outputs.dtype == dtype
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0.02, atol=0.02)
    product = outputs.float().T @ inputs.float()
    torch.testing.assert_close(product, layer.linear.weight.grad, rtol=0.02, atol=0.1)


def test_masks_of_dropout_are_those_on_a_cpu(device):
    keys = random_keys(64)
    kept = KeyedDropout(0.5, 6)(torch.ones(64, 4096, device=device), keys.to(device)) != 0
    assert torch.equal(kept.cpu(), mask(keys))


def on(device: torch.device) -> list[nn.Parameter]:
    """The parameters of the optimizer's tests, convolutions channels_last."""
    return [
        nn.Parameter(
            one.detach()
            .to(device)
            .to(memory_format=torch.channels_last if one.dim() == 4 else torch.contiguous_format)
        )
        for one in parameters()
    ]


def give_gradients(params: list[nn.Parameter], step: int, factor: float = 1.0) -> None:
    """Those of the optimizer's tests, in the memory format of the parameters."""
    own = parameters()
    set_gradients(own, step)
    for parameter, other in zip(params, own, strict=True):
        parameter.grad = torch.empty_like(parameter).copy_(other.grad).mul_(factor)


def largest_difference(ours: list[nn.Parameter], theirs: list[nn.Parameter]) -> float:
    pairs = zip(ours, theirs, strict=True)
    return max((one.detach().cpu() - other.detach()).abs().max().item() for one, other in pairs)


def test_the_fused_update_is_the_one_of_torchs_plain_sgd_on_a_cpu(device, figure):
    ours, theirs = on(device), parameters()
    optimizer = MaskedSGD(ours, SGD)
    oracle = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=0.01, fused=False)
    for step in range(5):
        give_gradients(ours, step)
        set_gradients(theirs, step)
        optimizer.step()
        oracle.step()
    difference = largest_difference(ours, theirs)
    figure("largest difference after 5 steps", difference)
    assert difference < 5e-6  # of numbers near 4: some units in fp32's last place
    assert optimizer.masked.tolist() == [0.0]


def test_lars_is_that_of_a_cpu(device, figure):
    settings = SGD.model_copy(update={"name": "lars"})
    ours, theirs = on(device), parameters()
    optimizers = build_optimizer(ours, settings), build_optimizer(theirs, settings)
    assert isinstance(optimizers[0], MaskedLARS)
    for step in range(5):
        give_gradients(ours, step)
        set_gradients(theirs, step)
        for optimizer in optimizers:
            optimizer.step()
    difference = largest_difference(ours, theirs)
    figure("largest difference after 5 steps", difference)
    assert difference < 2e-6


@each_dtype
def test_weights_are_updated_from_factors_as_from_their_product(dtype, device, figure):
    dy, x = factors(dtype, device)
    weight = nn.Parameter(torch.randn(256, 512, generator=torch.Generator().manual_seed(1)))
    ours = nn.Parameter(weight.detach().clone().to(device))
    optimizer = MaskedSGD([ours], SGD)
    oracle = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=0.01, fused=False)
    for _ in range(3):
        optimizer.products.append(Product(ours, dy, x, 0.5))
        optimizer.step()
        weight.grad = (0.5 * dy.cpu().double().T @ x.cpu().double()).float()
        oracle.step()
    difference = largest_difference([ours], [weight])
    figure("largest difference after 3 steps", difference)
    assert difference < 2e-5  # of numbers near 10


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", ["gradient", "factor"])
def test_one_bad_number_leaves_weights_and_momentum_bit_for_bit(device, bad, place):
    params = [*on(device), nn.Parameter(torch.ones(256, 512, device=device))]
    optimizer = MaskedSGD(params, SGD)

    def step(number: int, spoiled: bool) -> None:
        give_gradients(params[:3], number)
        dy, x = factors(torch.bfloat16, device)
        if spoiled and place == "gradient":
            params[2].grad[3, 3] = bad
        elif spoiled:
            dy[5, 7] = bad
        optimizer.products.append(Product(params[3], dy, x, 0.5))
        optimizer.step()

    step(0, spoiled=False)
    assert optimizer.masked.tolist() == [0.0]
    before = copies(params), copies(momentum_of(optimizer))
    for number in (1, 2):  # the flag stays: no good step may slip in after it
        step(number, spoiled=number == 1)
        assert optimizer.masked.tolist() == [1.0]
        after = copies(params), copies(momentum_of(optimizer))
        for ours, theirs in zip(before, after, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_under_a_loss_scale_a_bad_step_is_left_out_and_the_scale_halved(device, figure):
    ours, theirs = on(device), parameters()
    optimizer = MaskedSGD(ours, SGD)
    oracle = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=0.01, fused=False)
    scaler = torch.amp.GradScaler(device=device.type, init_scale=2.0**10)
    scaler.scale(torch.zeros((), device=device))
    masked, scales = [], [2.0**10]
    for step, good in enumerate([False, True, True, False, True]):
        give_gradients(ours, step, scales[-1])
        if not good:
            ours[1].grad[2] = float("nan")
        scaler.step(optimizer)
        scaler.update()
        masked.append(optimizer.masked.item())
        scales.append(scaler.get_scale())
        if good:
            set_gradients(theirs, step)
            oracle.step()
    figure("loss scales", scales)
    assert masked == [1.0, 0.0, 0.0, 1.0, 0.0]
    assert scales == [2.0**10, 2.0**9, 2.0**9, 2.0**9, 2.0**8, 2.0**8]
    assert largest_difference(ours, theirs) < 2e-5


def overflowing_steps(process):
    """Of a network whose gradients do not fit into fp16: scales, flags, whether it has moved."""
    from tests.training.small_engine import (
        batch_of_step,
        equal,
        loss_of,
        small_engine,
        weights_of,
    )

    engine = small_engine(process, micro=8, precision="fp16")
    set_loss_scale(engine, 2.0**24)
    origin, steps = weights_of(engine), []
    for _ in range(24):
        engine.backward(loss_of(engine, *(one.to(process.device) for one in batch_of_step(0))))
        engine.step()
        unmoved = equal(weights_of(engine), origin)
        steps.append((engine.loss_scale(), engine.masked.item(), engine.failed.item(), unmoved))
        if not engine.masked.item():
            break
    return steps


def test_an_overflow_of_fp16_is_seen_and_the_scale_falls_until_gradients_fit(in_ranks, figure):
    (steps,) = in_ranks(overflowing_steps, 1)
    figure("loss scale of the first step that fits", steps[-1][0])
    assert len(steps) > 1
    for number, (scale, masked, failed, unmoved) in enumerate(steps[:-1], start=1):
        assert (scale, masked, failed, unmoved) == (2.0 ** (24 - number), 1.0, 0.0, True)
    assert steps[-1][1:] == (0.0, 0.0, False)
