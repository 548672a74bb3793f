"""The exchange on GPUs: the products of factors, and all ranks' gradients over NCCL, unwaiting."""

import os
from typing import Any

import pytest
import torch

from tests.ranks import run_in_ranks
from vggdist.distributed import collectives
from vggdist.distributed import process as world
from vggdist.distributed.process import Process
from vggdist.layers.fc_layer import FCLayer
from vggdist.training.product import multiply

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_product_of_factors_is_rounded_only_in_fp32(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 512, generator=generator).to(dtype)
    dy = torch.randn(64, 256, generator=generator).to(dtype)
    out = torch.full((256, 512), float("nan"), device="cuda")
    multiply(dy.cuda(), x.cuda(), 0.25, out)
    exact = 0.25 * dy.double().T @ x.double()
    assert ((out.cpu() - exact).norm() / exact.norm()).item() < 2e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_layer_hands_on_the_factors_of_the_gradient_that_autograd_gives(
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    layer = FCLayer(64, 32, number=8, last=True).cuda()
    x = torch.randn(16, 64, device="cuda", requires_grad=True)
    taken: list[tuple[torch.Tensor, torch.Tensor]] = []
    gradients = []
    for take in (None, lambda *factors: taken.append(factors)):
        layer.take_factors = take
        with torch.autocast("cuda", dtype):
            units = layer(x)
        units.float().square().sum().backward()
        gradients.append(x.grad.clone())
        x.grad = None
    ((inputs, outputs),) = taken
    assert inputs.dtype == outputs.dtype == dtype
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0.02, atol=0.02)
    product = outputs.float().T @ inputs.float()
    torch.testing.assert_close(product, layer.linear.weight.grad, rtol=0.02, atol=0.1)


def gradients_over_nccl(process: Process, hosts: list[str] | None) -> dict[str, Any]:
    """Both ways in the third of three steps, in which any wait for the device is an error."""
    from tests.training.small_engine import (
        batch_of_step,
        given_gradients,
        loss_of,
        share,
        small_engine,
    )

    world.stop()
    process = world.start("cuda")
    if hosts is not None:
        collectives.gather = lambda value: hosts  # type: ignore[assignment]
    results: dict[str, Any] = {}
    for exchange in ("all_reduce", "factors"):
        engine = small_engine(process, micro=2, precision="bf16", exchange=exchange)
        noted: dict[str, torch.Tensor] = {}
        engine.optimizer.register_step_pre_hook(
            lambda *_, e=engine, n=noted: n.update(given_gradients(e))
        )
        shares = [
            [part.to(process.device) for part in share(tensor, process, 1)]
            for tensor in batch_of_step(0)
        ]
        for step in range(3):
            if step == 2:
                torch.cuda.set_sync_debug_mode("error")
            for images, labels, keys in zip(*shares, strict=True):
                engine.backward(loss_of(engine, images, labels, keys))
                engine.step()
        torch.cuda.set_sync_debug_mode("default")
        results[exchange] = {name: gradient.cpu() for name, gradient in noted.items()}
    return results


@pytest.mark.multi_process
@pytest.mark.parametrize("hosts", [None, ["a", "a", "b", "b"]], ids=["one node", "two nodes"])
def test_over_nccl_factors_give_the_gradients_of_an_all_reduce(hosts: list[str] | None) -> None:
    world_size = 4 if hosts else 2
    if torch.cuda.device_count() < world_size:
        reason = f"needs {world_size} GPUs, and there are {torch.cuda.device_count()}"
        (pytest.fail if os.environ.get("CI") == "gpu" else pytest.skip)(reason)
    for results in run_in_ranks(gradients_over_nccl, world_size, hosts):
        for name, gradient in results["all_reduce"].items():
            difference = (results["factors"][name] - gradient).norm() / gradient.norm()
            assert difference.item() < 2.0**-6, name
