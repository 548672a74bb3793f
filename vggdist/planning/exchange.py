"""The messages of a step: which gradients travel together, how, and what that costs a rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vggdist.config import BatchSplit, Config, Precision
from vggdist.distributed import traffic
from vggdist.planning.links import Cluster
from vggdist.planning.network import PlannedLayer
from vggdist.planning.timeline import Message

Way = Literal["record", "all_reduce", "factors", "auto"]
"""`record`: as in the published records, fp32 in one ring over all ranks; the others as in
`Config.exchange`, inside of the nodes first."""

BUCKET_ELEMENTS = 1 << 20
"""Gradients below this many elements travel together, as in `training/gradients.py`."""

RECORD_CYCLE_SECONDS, RECORD_BUCKET_BYTES = 5e-3, 64e6
"""Horovod, 2017: what becomes ready within a cycle of 5 ms travels together, up to 64 MB."""


@dataclass(frozen=True)
class Work:
    """What each rank does in a step: `accumulation_steps` times `micro` images."""

    layers: tuple[PlannedLayer, ...]
    precision: Precision
    exchange_precision: Precision
    factor_precision: Precision
    micro: int
    accumulation_steps: int
    by_blocks: bool = False
    """As `Config.updates_by_blocks`."""

    @property
    def images_per_rank(self) -> int:
        """Images of one step on one rank."""
        return self.micro * self.accumulation_steps

    def never_whole(self, ways: Mapping[str, str]) -> tuple[PlannedLayer, ...]:
        """Layers whose gradient is made block by block and is never in memory as a whole."""
        return tuple(
            layer for layer in self.layers if self.by_blocks and ways.get(layer.name) == "factors"
        )


def plan_work(layers: tuple[PlannedLayer, ...], config: Config, split: BatchSplit) -> Work:
    """The work of a rank in a step of a training."""
    return Work(
        layers,
        config.resolved_precision,
        config.travel_precision,
        config.factor_precision,
        split.micro,
        split.accumulation_steps,
        by_blocks=config.updates_by_blocks,
    )


def choose_ways(work: Work, world_size: int, way: Way) -> dict[str, str]:
    """How each trained fully connected layer's gradient travels, by the layer's name."""
    if way == "record" or world_size == 1:
        return {}
    layers = [
        traffic.layer_traffic(
            layer.name,
            *layer.matrix,
            images_per_rank=work.images_per_rank,
            world_size=world_size,
            precision=work.exchange_precision,
            factor_precision=work.factor_precision,
        )
        for layer in work.layers
        if layer.matrix is not None and layer.is_trained
    ]
    return dict(traffic.choose(way, layers))


@dataclass(frozen=True)
class Exchange:
    """Makes the messages of a step.

    Attributes:
        ways: of `choose_ways`.
        multiply_seconds: of each layer whose factors travel, once they are there.
    """

    work: Work
    cluster: Cluster
    ways: Mapping[str, str]
    multiply_seconds: Mapping[str, float]

    def messages(self) -> Iterator[Message]:
        """As `training/gradients.py` sends them, in the order of the backward pass."""
        element_bytes = traffic.ELEMENT_BYTES[self.work.exchange_precision]
        names: list[str] = []
        elements = after = 0
        for number, layer in enumerate(reversed(self.work.layers)):
            if not layer.is_trained:
                continue
            after = number
            if self.ways.get(layer.name) == "factors":
                yield self._factors(layer, number)
            elif layer.num_parameters >= BUCKET_ELEMENTS:
                yield self._gradients(layer.name, layer.num_parameters, number, element_bytes)
            else:
                names.append(layer.name)
                elements += layer.num_parameters
            if elements >= BUCKET_ELEMENTS:
                yield self._gradients(_range(names), elements, number, element_bytes)
                names, elements = [], 0
        if elements:
            yield self._gradients(_range(names), elements, after, element_bytes)

    def record(self, ready: Sequence[float]) -> Iterator[Message]:
        """As Horovod sent them for the published records; `ready`: when each task is done."""
        element_bytes = traffic.ELEMENT_BYTES["fp32"]
        names: list[str] = []
        elements, after, cycle = 0, 0, -1
        for number, layer in enumerate(reversed(self.work.layers)):
            if not layer.is_trained:
                continue
            now = int(ready[number] / RECORD_CYCLE_SECONDS)
            size = (elements + layer.num_parameters) * element_bytes
            if names and (now != cycle or size > RECORD_BUCKET_BYTES):
                yield self._ring(_range(names), elements, after)
                names, elements = [], 0
            names.append(layer.name)
            elements, after, cycle = elements + layer.num_parameters, number, now
        if names:
            yield self._ring(_range(names), elements, after)

    def _ring(self, name: str, num_elements: int, after: int) -> Message:
        sent = traffic.all_reduce_bytes(num_elements, self.cluster.world_size, 4)
        legs = self.cluster.ring_all_reduce(num_elements, 4)
        return Message(name, after, legs, self._held_up(sent), sent_bytes=sent)

    def _gradients(self, name: str, num_elements: int, after: int, element_bytes: int) -> Message:
        sent = traffic.all_reduce_bytes(num_elements, self.cluster.world_size, element_bytes)
        held_up = self._held_up(sent)
        if element_bytes < 4:  # to 16 bits and back
            held_up += 2 * num_elements * (4 + element_bytes) / self.cluster.device.memory_rate
        legs = self.cluster.node_all_reduce(num_elements, element_bytes)
        return Message(name, after, legs, held_up, sent_bytes=sent)

    def _factors(self, layer: PlannedLayer, after: int) -> Message:
        assert layer.matrix is not None
        element_bytes = traffic.ELEMENT_BYTES[self.work.factor_precision]
        images = self.work.images_per_rank
        sent = traffic.factor_bytes(*layer.matrix, images, self.cluster.world_size, element_bytes)
        legs = self.cluster.gather_factors(layer.matrix, images, element_bytes)
        multiply = self.multiply_seconds[layer.name]
        return Message(
            layer.name, after, legs, self._held_up(sent), multiply_seconds=multiply, sent_bytes=sent
        )

    def _held_up(self, sent_bytes: float) -> float:
        return sent_bytes / 1e9 * self.cluster.device.exchange_seconds_per_gigabyte


def _range(names: Sequence[str]) -> str:
    """`conv3_3` ... `conv1_1` -> a name for all of them."""
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
