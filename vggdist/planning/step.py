"""The time of a training step: each layer's arithmetic, and the gradients that travel beside it.

Fitted on nothing that a plan reports: a device's rate is that of one device alone, a link's that of
its bits. Not modelled: that collectives take some of a GPU's units and of its memory's rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

from vggdist.planning.exchange import Exchange, Way, Work, choose_ways
from vggdist.planning.links import Cluster
from vggdist.planning.network import PlannedLayer
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
        ways: how each fully connected gradient travels.
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
    ways = choose_ways(work, cluster.world_size, way)
    slowest = 1.0 + cluster.device.step_spread * largest_of(cluster.world_size)
    forward, backward, update = _arithmetic(work, cluster, ways, slowest)
    global_batch = work.images_per_rank * cluster.world_size
    multiply = {
        layer.name: slowest * _multiply_seconds(layer, work, cluster, global_batch)
        for layer in work.layers
        if ways.get(layer.name) == "factors"
    }
    messages: list[Message] = []
    if cluster.world_size > 1:
        exchange = Exchange(work, cluster, ways, multiply)
        ready = ready_times(forward, backward)
        messages = list(exchange.record(ready) if way == "record" else exchange.messages())
    timeline = simulate(forward, backward, messages, update)
    compute = compute_seconds(work, cluster)
    exposed = max(0.0, timeline.seconds - slowest * compute)
    return StepTime(
        seconds=timeline.seconds,
        compute_seconds=compute,
        straggling_seconds=timeline.seconds - exposed - compute,
        exposed_seconds=exposed,
        hidden_seconds=max(0.0, timeline.exchange_seconds - exposed),
        ways=ways,
        sent_bytes=sum(message.sent_bytes for message in messages),
        timeline=timeline,
    )


def compute_seconds(work: Work, cluster: Cluster) -> float:
    """A step on one device that has no one to exchange with."""
    forward, backward, update = _arithmetic(work, cluster, {}, 1.0)
    return sum(task.seconds for task in (*forward, *backward)) + update


def largest_of(count: int) -> float:
    """Expected largest of so many standard normal numbers (Blom 1958)."""
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25))


def _arithmetic(
    work: Work, cluster: Cluster, ways: dict[str, str], slowest: float
) -> tuple[list[Task], list[Task], float]:
    """Tasks up to the last micro batch's forward pass, of its backward pass, and the update."""
    forward = [
        Task(layer.name, slowest * _seconds(layer, work, cluster, 1, work.micro))
        for layer in work.layers
    ]
    backward = []
    for layer in reversed(work.layers):
        # A gradient whose factors travel is not multiplied before they are there.
        passes = layer.backward_passes - (ways.get(layer.name) == "factors")
        seconds = slowest * _seconds(layer, work, cluster, passes, work.micro)
        backward.append(Task(layer.name, seconds))
    never_whole = work.never_whole(ways)
    update = slowest * sum(
        (UPDATE_PASSES_BY_BLOCKS if layer in never_whole else UPDATE_PASSES)
        * _pass_seconds(layer, cluster)
        for layer in work.layers
        if layer.is_trained
    )
    before = (forward + backward) * (work.accumulation_steps - 1)
    return before + forward, backward, update


def _multiply_seconds(layer: PlannedLayer, work: Work, cluster: Cluster, images: int) -> float:
    """Of all ranks' factors into a gradient, which then lies in memory or not."""
    written = 0 if work.by_blocks else _pass_seconds(layer, cluster)
    return _arithmetic_seconds(layer, work, cluster, images) + written


def _seconds(layer: PlannedLayer, work: Work, cluster: Cluster, passes: int, images: int) -> float:
    """Passes through a layer: its arithmetic, and its weights or their gradient in memory."""
    arithmetic = _arithmetic_seconds(layer, work, cluster, images)
    return passes * (arithmetic + _pass_seconds(layer, cluster))


def _arithmetic_seconds(layer: PlannedLayer, work: Work, cluster: Cluster, images: int) -> float:
    rate = cluster.device.teraflops(work.precision)[0] * 1e12
    return 2 * layer.multiply_adds * images / rate


def _pass_seconds(layer: PlannedLayer, cluster: Cluster) -> float:
    """Of the memory, to read or write all weights."""
    return WEIGHT_BYTES * layer.num_parameters / cluster.device.memory_rate
