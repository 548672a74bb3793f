"""The time of a training step: each layer's arithmetic, and the gradients that are sent meanwhile.

Fitted on nothing that an estimate reports: a device's rate is that of one device alone, a link's
that of its bits. Not modelled: that collectives take some of a GPU's units and memory rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vggdist.model.layer_costs import Layer
from vggdist.planning.links import Cluster
from vggdist.planning.messages import Exchange, Way, Work, choose_ways
from vggdist.planning.timeline import Message, Task, Timeline, ready_times, simulate

WEIGHT_BYTES = 4
UPDATE_PASSES, UPDATE_PASSES_BY_BLOCKS = 5, 4
"""Over memory: the update reads weight, gradient and momentum and writes weight and momentum; block
by block, the gradient stays in the cache."""


@dataclass(frozen=True)
class StepTime:
    """A step of the slowest rank; the parts add up to `seconds`.

    Attributes:
        compute_seconds: what a rank alone would take for the same images.
        straggling_seconds: by which the slowest rank takes longer than the mean.
        exposed_seconds: by which exchange makes the step longer.
        hidden_seconds: of exchange, behind the backward pass.
        ways: how each fully connected gradient is sent.
        sent_bytes: by each rank.
    """

    seconds: float
    compute_seconds: float
    straggling_seconds: float
    exposed_seconds: float
    hidden_seconds: float
    ways: dict[str, str]
    sent_bytes: float
    timeline: Timeline


def time_step(work: Work, cluster: Cluster, way: Way) -> StepTime:
    """Simulates a step of `work` on every rank of `cluster`."""
    return simulate_step(work, cluster, choose_ways(work, cluster, way), way == "fp32_ring")


def simulate_step(
    work: Work, cluster: Cluster, ways: Mapping[str, str], fp32_ring: bool = False
) -> StepTime:
    """As `time_step`, with a way for each fully connected layer."""
    slowest = cluster.slowness
    rank = _Rank(work, cluster, ways, slowest)
    forward, backward = rank.tasks()
    messages: list[Message] = []
    if cluster.world_size > 1:
        exchange = Exchange(work, cluster, ways, rank.multiply_seconds())
        ready = ready_times(forward, backward)
        messages = list(exchange.fp32_ring(ready) if fp32_ring else exchange.messages())
    timeline = simulate(forward, backward, messages, rank.update_seconds())
    compute = compute_seconds(work, cluster)
    exposed = max(0.0, timeline.seconds - slowest * compute)
    return StepTime(
        seconds=timeline.seconds,
        compute_seconds=compute,
        straggling_seconds=timeline.seconds - exposed - compute,
        exposed_seconds=exposed,
        hidden_seconds=max(0.0, timeline.exchange_seconds - exposed),
        ways=dict(ways),
        sent_bytes=sum(message.sent_bytes for message in messages),
        timeline=timeline,
    )


def compute_seconds(work: Work, cluster: Cluster) -> float:
    """A step on one device that exchanges nothing."""
    rank = _Rank(work, cluster, {}, 1.0)
    forward, backward = rank.tasks()
    return sum(task.seconds for task in (*forward, *backward)) + rank.update_seconds()


@dataclass(frozen=True)
class _Rank:
    """The arithmetic of a rank that takes `slowness` times as long as the mean."""

    work: Work
    cluster: Cluster
    ways: Mapping[str, str]
    slowness: float

    def tasks(self) -> tuple[list[Task], list[Task]]:
        """Up to the last micro batch's forward pass, and of its backward pass."""
        # A gradient whose factors are sent is not multiplied before they have arrived.
        forward = [self._task(layer, 1) for layer in self.work.layers]
        backward = [
            self._task(layer, layer.backward_passes - (self.ways.get(layer.name) == "factors"))
            for layer in reversed(self.work.layers)
        ]
        return (forward + backward) * (self.work.accumulation_steps - 1) + forward, backward

    def update_seconds(self) -> float:
        never_whole = self.work.never_whole(self.ways)
        return self.slowness * sum(
            (UPDATE_PASSES_BY_BLOCKS if layer in never_whole else UPDATE_PASSES)
            * self._memory_seconds(layer)
            for layer in self.work.layers
            if layer.is_trained
        )

    def multiply_seconds(self) -> dict[str, float]:
        """By layer: of all ranks' factors into a gradient, which then lies in memory or not."""
        images = self.work.images_per_rank * self.cluster.world_size
        return {
            layer.name: self.slowness
            * (
                self._arithmetic_seconds(layer, images)
                + (0 if self.work.by_blocks else self._memory_seconds(layer))
            )
            for layer in self.work.layers
            if self.ways.get(layer.name) == "factors"
        }

    def _task(self, layer: Layer, passes: int) -> Task:
        """Passes through a layer: its arithmetic, and its weights or their gradient in memory."""
        arithmetic = self._arithmetic_seconds(layer, self.work.micro)
        seconds = passes * (arithmetic + self._memory_seconds(layer))
        return Task(layer.name, self.slowness * seconds)

    def _arithmetic_seconds(self, layer: Layer, images: int) -> float:
        rate = self.cluster.device.teraflops(self.work.precision)[0] * 1e12
        return 2 * layer.multiply_adds * images / rate

    def _memory_seconds(self, layer: Layer) -> float:
        """To read or write all weights."""
        return WEIGHT_BYTES * layer.num_parameters / self.cluster.device.memory_rate
