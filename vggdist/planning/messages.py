"""The messages of a step: which gradients are sent together, how, and what that costs a rank."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vggdist.config import BatchSplit, Config, Precision
from vggdist.distributed import exchange_time, traffic
from vggdist.distributed.traffic import BUCKET_ELEMENTS, ELEMENT_BYTES
from vggdist.model.layer_costs import Layer
from vggdist.planning.links import Cluster, Leg
from vggdist.planning.timeline import Message

Way = Literal["fp32_ring", "all_reduce", "factors", "auto"]
"""`fp32_ring`: by rings alone, as behind the published results; the others as in
`Config.exchange`."""

HOROVOD_CYCLE_SECONDS, HOROVOD_BUCKET_BYTES = 5e-3, 64e6
"""Of 2017: what becomes ready within a cycle of 5 ms is sent together, up to 64 MB."""


_LARGE = 1 << 24
"""Elements of an all-reduce whose time is that of its bytes."""


@dataclass(frozen=True)
class Work:
    """What each rank does in a step: `accumulation_steps` times `micro` images."""

    layers: tuple[Layer, ...]
    precision: Precision
    exchange_precision: Precision
    factor_precision: Precision
    micro: int
    accumulation_steps: int
    by_blocks: bool = False
    """As `Config.updates_by_blocks`."""

    @classmethod
    def of_training(cls, layers: tuple[Layer, ...], config: Config, split: BatchSplit) -> Work:
        return cls(
            layers,
            config.resolved_precision,
            config.sent_precision,
            config.factor_precision,
            split.micro,
            split.accumulation_steps,
            by_blocks=config.updates_by_blocks,
        )

    @property
    def images_per_rank(self) -> int:
        """Images of one step on one rank."""
        return self.micro * self.accumulation_steps

    def split(self, world_size: int) -> BatchSplit:
        """The global batch of so many ranks."""
        images = self.images_per_rank * world_size
        return BatchSplit(images, self.micro, self.accumulation_steps, world_size)

    def never_whole(self, ways: Mapping[str, str]) -> tuple[Layer, ...]:
        """Layers whose gradient is made block by block and is never in memory as a whole."""
        return tuple(
            layer for layer in self.layers if self.by_blocks and ways.get(layer.name) == "factors"
        )


def choose_ways(work: Work, cluster: Cluster, way: Way) -> dict[str, str]:
    """How each trained fully connected layer's gradient is sent, by the layer's name."""
    if way == "fp32_ring" or cluster.world_size == 1:
        return {}
    if way == "auto":
        return dict(exchange_time.soonest(*_figures(work, cluster)))
    return {
        layer.name: way for layer in work.layers if layer.matrix is not None and layer.is_trained
    }


def _figures(
    work: Work, cluster: Cluster
) -> tuple[list[exchange_time.Gradient], exchange_time.Step, exchange_time.Speeds]:
    """What a training on the cluster would decide by, and measures at its start."""
    gradients = [layer.gradient for layer in reversed(work.layers)]
    size, factor_size = (
        ELEMENT_BYTES[precision] for precision in (work.exchange_precision, work.factor_precision)
    )
    step = exchange_time.Step(
        cluster.world_size, work.micro, work.images_per_rank, size, factor_size, work.by_blocks
    )
    device, slowness = cluster.device, cluster.slowness
    nothing = _seconds(cluster.all_reduce(1, size))
    large = _seconds(cluster.all_reduce(_LARGE, size)) - nothing
    rate = device.teraflops(work.precision)[0] * 1e12 / 2 / slowness
    speeds = exchange_time.Speeds(
        all_reduce_latency=nothing,
        all_gather_latency=_seconds(cluster.gather_factors((1, 1), 1, factor_size)),
        sent_bytes_per_second=traffic.all_reduce_bytes(_LARGE, cluster.world_size, size) / large,
        held_up_seconds_per_byte=device.exchange_seconds_per_gigabyte / 1e9,
        multiply_adds_per_second=rate,
        product_multiply_adds_per_second=rate,
        memory_bytes_per_second=device.memory_rate / slowness,
    )
    return gradients, step, speeds


def _seconds(legs: Iterable[Leg]) -> float:
    return sum(leg.seconds for leg in legs)


@dataclass(frozen=True)
class Exchange:
    """Makes the messages of a step.

    Attributes:
        ways: of `choose_ways`.
        multiply_seconds: of each layer whose factors are sent, once they are there.
    """

    work: Work
    cluster: Cluster
    ways: Mapping[str, str]
    multiply_seconds: Mapping[str, float]

    def messages(self) -> Iterator[Message]:
        """As `training/gradients.py` sends them, in the order of the backward pass."""
        small: list[Layer] = []
        after = 0
        for after, layer in self._gradients():
            if self.ways.get(layer.name) == "factors":
                yield self._send_factors(layer, after)
            elif layer.num_parameters >= BUCKET_ELEMENTS:
                yield self._send([layer], after)
            else:
                small.append(layer)
            if sum(layer.num_parameters for layer in small) >= BUCKET_ELEMENTS:
                yield self._send(small, after)
                small = []
        if small:
            yield self._send(small, after)

    def fp32_ring(self, ready: Sequence[float]) -> Iterator[Message]:
        """As Horovod sent them; `ready`: when each task of the backward pass is done."""
        waiting: list[Layer] = []
        after, cycle = 0, -1
        for number, layer in self._gradients():
            now = int(ready[number] / HOROVOD_CYCLE_SECONDS)
            size = 4 * sum(layer.num_parameters for layer in (*waiting, layer))
            if waiting and (now != cycle or size > HOROVOD_BUCKET_BYTES):
                yield self._send(waiting, after, fp32_ring=True)
                waiting = []
            waiting.append(layer)
            after, cycle = number, now
        if waiting:
            yield self._send(waiting, after, fp32_ring=True)

    def _gradients(self) -> Iterator[tuple[int, Layer]]:
        """The trained layers in the order of the backward pass, with the numbers of its tasks."""
        backward = enumerate(reversed(self.work.layers))
        return ((number, layer) for number, layer in backward if layer.is_trained)

    def _send(self, layers: Sequence[Layer], after: int, *, fp32_ring: bool = False) -> Message:
        """The sum of gradients over all ranks."""
        num_elements = sum(layer.num_parameters for layer in layers)
        size = 4 if fp32_ring else ELEMENT_BYTES[self.work.exchange_precision]
        sent = traffic.all_reduce_bytes(num_elements, self.cluster.world_size, size)
        all_reduce = self.cluster.ring_all_reduce if fp32_ring else self.cluster.all_reduce
        seconds = 0.0
        if size < 4:  # to 16 bits and back
            seconds = 2 * num_elements * (4 + size) / self.cluster.device.memory_rate
        first, last = layers[0].name, layers[-1].name
        name = first if len(layers) == 1 else f"{first} to {last}"
        return self._message(name, after, all_reduce(num_elements, size), sent, seconds)

    def _send_factors(self, layer: Layer, after: int) -> Message:
        assert layer.matrix is not None
        size, images = ELEMENT_BYTES[self.work.factor_precision], self.work.images_per_rank
        sent = traffic.factor_bytes(*layer.matrix, images, self.cluster.world_size, size)
        legs = self.cluster.gather_factors(layer.matrix, images, size)
        return self._message(layer.name, after, legs, sent)

    def _message(
        self, name: str, after: int, legs: tuple[Leg, ...], sent: float, seconds: float = 0.0
    ) -> Message:
        held_up = sent / 1e9 * self.cluster.device.exchange_seconds_per_gigabyte + seconds
        multiply = self.multiply_seconds.get(name, 0.0)
        return Message(name, after, legs, held_up, multiply, sent_bytes=sent)
