"""Gradients of fully connected layers from all ranks' factors.

A layer's gradient over the images of all ranks is dY^T X, with the images of all ranks as the rows
of X and dY. Gathering the rows and multiplying them on every rank gives the result of an all-reduce
of the matrices, rounded less often: products are added in fp32 and never rounded to 16 bits.

Each rank does its own multiplication. If different hardware rounds differently, weights differ only
by the sum of these roundings, since the updates are otherwise the same on all ranks.
"""

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vggdist.config import BatchSplit, Config, Exchange
from vggdist.distributed.collectives import Collectives, Wait
from vggdist.distributed.traffic import (
    ELEMENT_BYTES,
    LayerTraffic,
    all_reduce_bytes,
    layer_traffic,
)
from vggdist.layers.fc_layer import FCLayer
from vggdist.training.product import Product
from vggdist.training.ranges import SEND, named

logger = logging.getLogger(__name__)


class FactoredGradient:
    """The gradient of one layer, computed from the gathered factors."""

    def __init__(
        self,
        layer: FCLayer,
        collectives: Collectives,
        dtype: torch.dtype | None = None,
        divisor: int = 1,
    ) -> None:
        """Takes over the computation of the layer's gradient.

        Args:
            layer: a trained layer.
            collectives: of all ranks.
            dtype: of the factors when sent; None: as computed.
            divisor: of the gradient.
        """
        self._layer, self._collectives, self._dtype = layer, collectives, dtype
        self._scale = 1.0 / divisor
        self._in_flight: list[tuple[Tensor, Wait]] = []
        self._kept: Tensor | None = None
        self.attach()

    def attach(self) -> None:
        """From the next forward pass on, autograd computes no gradient for the layer."""
        self._layer.take_factors = self._send

    def detach(self) -> None:
        """From the next forward pass on, autograd computes the layer's gradient."""
        self._layer.take_factors = None

    def forget_step(self) -> None:
        """Drops the factors in flight."""
        self._in_flight.clear()

    def _send(self, x: Tensor, dy: Tensor) -> None:
        with named(SEND):
            for factor in (x, dy):
                self._in_flight.append(self._collectives.all_gather(factor.to(self._dtype)))

    @torch.no_grad()
    def finish(self) -> Product:
        """Sets the biases' gradient of the step and returns the weights'."""
        for _, wait in self._in_flight:
            wait()
        x, dy = (_rows([rows for rows, _ in self._in_flight[first::2]]) for first in (0, 1))
        self._in_flight.clear()
        if x.device.type == "cpu":
            # Once, not for every block of their product.
            x, dy = x.float(), dy.float()
        linear = self._layer.linear
        linear.bias.grad = dy.sum(0, dtype=torch.float32).mul_(self._scale)
        return Product(linear.weight, dy, x, self._scale)

    def multiply(self, product: Product) -> None:
        """Sets the weights' gradient to the whole product."""
        weight = self._layer.linear.weight
        gradient = torch.empty_like(weight) if self._kept is None else self._kept
        if weight.device.type == "cpu":
            # Reuse the same memory, since fresh memory costs more than its use.
            self._kept = gradient
        product.write(slice(None), gradient)
        weight.grad = gradient


def _rows(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def factored_layers(
    network: nn.Module,
    ways: Mapping[str, Exchange],
    config: Config,
    split: BatchSplit,
    *,
    tell: bool,
) -> list[FCLayer]:
    """The trained fully connected layers whose gradients are sent as factors.

    Args:
        network: with `FCLayer`s.
        ways: of `choose_ways`.
        config: the precisions and `exchange`.
        split: how a step's images are divided among the ranks.
        tell: note the bytes of both ways in the log file.
    """
    layers = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, FCLayer) and module.linear.weight.requires_grad
    }
    if tell:
        apart = {id(p) for layer in layers.values() for p in layer.parameters()}
        rest = sum(
            p.numel() for p in network.parameters() if p.requires_grad and id(p) not in apart
        )
        traffic = [
            layer_traffic(
                name,
                layer.linear.in_features,
                layer.linear.out_features,
                images_per_rank=split.per_rank,
                world_size=split.world_size,
                precision=config.sent_precision,
                factor_precision=config.factor_precision,
            )
            for name, layer in layers.items()
        ]
        logger.debug("%s", render_traffic(traffic, ways, rest, config, split))
    return [layer for name, layer in layers.items() if ways[name] == "factors"]


def render_traffic(
    layers: Sequence[LayerTraffic],
    ways: Mapping[str, Exchange],
    num_others: int,
    config: Config,
    split: BatchSplit,
) -> str:
    """The table of bytes that each rank sends in a step.

    Args:
        layers: the fully connected ones.
        ways: how each is sent.
        num_others: trained parameters of all other layers.
        config: the precisions and `exchange`.
        split: how a step's images are divided among the ranks.
    """
    others = all_reduce_bytes(num_others, split.world_size, ELEMENT_BYTES[config.sent_precision])
    sent = others + sum(
        layer.factors if ways[layer.name] == "factors" else layer.all_reduce for layer in layers
    )
    rows = [
        f"Gradient exchange, MB sent by each of {split.world_size} ranks in a step of "
        f"{split.per_rank} images of its own:",
        f"  {'layer':<14}{'matrix (' + config.sent_precision + ')':>16}"
        f"{'factors (' + config.factor_precision + ')':>16}  exchange={config.exchange} takes",
    ]
    for layer in layers:
        way = "the factors" if ways[layer.name] == "factors" else "the matrix"
        rows.append(
            f"  {layer.name:<14}{layer.all_reduce / 1e6:>16.2f}{layer.factors / 1e6:>16.2f}  {way}"
        )
    rows.append(f"  {'all others':<14}{others / 1e6:>16.2f}")
    rows.append(f"  {'together':<14}{sent / 1e6:>16.2f}")
    return "\n".join(rows)
