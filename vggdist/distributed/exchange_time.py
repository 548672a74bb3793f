"""Which gradients are sent as factors: the ways with which a step ends soonest.

Fewer bytes are not always sooner. Where the network is fast, a matrix is sent behind the rest of
the backward pass, while the product of all ranks' factors comes after it and grows with their
number.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from vggdist.config import Exchange
from vggdist.distributed.traffic import BUCKET_ELEMENTS, all_reduce_bytes, factor_bytes

_WEIGHT_BYTES = 4
_ALIKE = 0.002
"""Difference of two ends, relative, that is less than what a measurement tells."""


@dataclass(frozen=True)
class Speeds:
    """Of the slowest rank; latencies are seconds of a collective of almost nothing."""

    all_reduce_latency: float
    all_gather_latency: float
    sent_bytes_per_second: float
    """By each rank, in a large all-reduce."""
    held_up_seconds_per_byte: float
    """By which a byte that is sent holds up the arithmetic; on a CPU the same cores do both."""
    multiply_adds_per_second: float
    """Of a convolution."""
    product_multiply_adds_per_second: float
    """Of the factors of all ranks' images."""
    memory_bytes_per_second: float


@dataclass(frozen=True)
class Gradient:
    """Of a layer.

    Attributes:
        name: of the layer.
        num_elements: weights and biases; 0 if it is frozen.
        multiply_adds: of one image's forward pass.
        backward_passes: each as long as the forward pass.
        matrix: (in_features, out_features) of a fully connected layer, else none.
    """

    name: str
    num_elements: int
    multiply_adds: int
    backward_passes: int
    matrix: tuple[int, int] | None


@dataclass(frozen=True)
class Step:
    """What each rank does in a step, and the bytes of a number when it is sent.

    Attributes:
        micro: images of a micro batch.
        images_per_rank: of all micro batches.
        by_blocks: as `Config.updates_by_blocks`.
    """

    world_size: int
    micro: int
    images_per_rank: int
    gradient_bytes: int
    factor_bytes: int
    by_blocks: bool


def soonest(gradients: Sequence[Gradient], step: Step, speeds: Speeds) -> dict[str, Exchange]:
    """The ways of the fully connected layers' gradients with which a step ends soonest.

    Of ways that end alike, the one with the fewest bytes, so that noise does not decide.

    Args:
        gradients: in the order of the backward pass, the last layer's first.
    """
    names = [gradient.name for gradient in gradients if gradient.matrix is not None]
    ways: tuple[Exchange, ...] = ("factors", "all_reduce")
    choices = [dict(zip(names, choice, strict=True)) for choice in product(ways, repeat=len(names))]
    ends = [end_seconds(gradients, choice, step, speeds) for choice in choices]
    alike = [
        choice for choice, end in zip(choices, ends, strict=True) if end <= (1 + _ALIKE) * min(ends)
    ]
    return min(alike, key=lambda choice: _sent_bytes(gradients, choice, step))


def end_seconds(
    gradients: Sequence[Gradient], ways: Mapping[str, Exchange], step: Step, speeds: Speeds
) -> float:
    """From the start of the last backward pass to the last gradient; updates are alike.

    One message is sent at a time, in the order in which gradients are ready; the products of
    factors follow the backward pass, while the last messages are still being sent.
    """
    now = link = 0.0
    products = []
    sends = dict(_messages(gradients, ways))
    for gradient in gradients:
        memory = _WEIGHT_BYTES * gradient.num_elements / speeds.memory_bytes_per_second
        factored = ways.get(gradient.name) == "factors"
        arithmetic = gradient.multiply_adds * step.micro / speeds.multiply_adds_per_second
        now += (gradient.backward_passes - factored) * (arithmetic + memory)
        if factored:
            sent, latency = _factor_bytes(gradient, step), speeds.all_gather_latency
        elif gradient.name in sends:
            num_elements = sends[gradient.name]
            sent = all_reduce_bytes(num_elements, step.world_size, step.gradient_bytes)
            latency = speeds.all_reduce_latency
        else:
            continue
        link = max(link, now) + latency + sent / speeds.sent_bytes_per_second
        now += sent * speeds.held_up_seconds_per_byte
        if factored:
            rows = step.images_per_rank * step.world_size
            multiply = gradient.multiply_adds * rows / speeds.product_multiply_adds_per_second
            # Block by block the gradient is neither written nor read by the update.
            products.append((link, multiply + (-memory if step.by_blocks else memory)))
        elif step.gradient_bytes < _WEIGHT_BYTES:  # to 16 bits and back
            converted = 2 * num_elements * (_WEIGHT_BYTES + step.gradient_bytes)
            now += converted / speeds.memory_bytes_per_second
    for arrived, multiply in products:
        now = max(now, arrived) + multiply
    return max(now, link)


def _messages(
    gradients: Sequence[Gradient], ways: Mapping[str, Exchange]
) -> Iterator[tuple[str, int]]:
    """(last layer, elements) of each all-reduce, as `training/gradients.py` sends them."""
    waiting, last = 0, ""
    for gradient in gradients:
        if ways.get(gradient.name) == "factors":
            continue
        last = gradient.name
        if gradient.num_elements >= BUCKET_ELEMENTS:
            yield last, gradient.num_elements
            continue
        waiting += gradient.num_elements
        if waiting >= BUCKET_ELEMENTS:
            yield last, waiting
            waiting = 0
    if waiting:
        yield last, waiting


def _sent_bytes(gradients: Sequence[Gradient], ways: Mapping[str, Exchange], step: Step) -> float:
    """Of the fully connected layers, by each rank."""
    return sum(
        _factor_bytes(gradient, step)
        if ways[gradient.name] == "factors"
        else all_reduce_bytes(gradient.num_elements, step.world_size, step.gradient_bytes)
        for gradient in gradients
        if gradient.matrix is not None
    )


def _factor_bytes(gradient: Gradient, step: Step) -> float:
    assert gradient.matrix is not None
    return factor_bytes(*gradient.matrix, step.images_per_rank, step.world_size, step.factor_bytes)
