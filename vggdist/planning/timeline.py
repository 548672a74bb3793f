"""A training step as a timeline: layer after layer, and the messages that travel meanwhile.

A gradient can leave when the backward pass has gone through its layer, the last layer first. One
message travels at a time, in the order in which they are ready, as `distributed/collectives.py` and
NCCL's streams have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vggdist.planning.links import Leg


@dataclass(frozen=True)
class Task:
    """Arithmetic on a rank."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Message:
    """Gradients on their way.

    Attributes:
        after: number of the task of the backward pass behind which they are ready.
        legs: the links that they take, one after the other.
        held_up_seconds: by which sending holds up the arithmetic after it.
        multiply_seconds: of arithmetic that waits for the message: factors into a gradient.
        sent_bytes: by each rank.
    """

    name: str
    after: int
    legs: tuple[Leg, ...]
    held_up_seconds: float = 0.0
    multiply_seconds: float = 0.0
    sent_bytes: float = 0.0


@dataclass(frozen=True)
class Span:
    """Something that happens on a row of the timeline, in seconds from the step's start."""

    row: str
    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """What happens in a step.

    Attributes:
        seconds: from the first layer to the updated weights.
        exchange_seconds: of these, in which a message travels or factors are multiplied.
    """

    spans: tuple[Span, ...]
    seconds: float
    exchange_seconds: float


def ready_times(forward: Sequence[Task], backward: Sequence[Task]) -> list[float]:
    """When each task of the backward pass is done."""
    now, times = sum(task.seconds for task in forward), []
    for task in backward:
        now += task.seconds
        times.append(now)
    return times


def simulate(
    forward: Sequence[Task],
    backward: Sequence[Task],
    messages: Sequence[Message],
    update_seconds: float,
) -> Timeline:
    """Runs through one step.

    Args:
        forward: tasks before the first gradient, earlier micro batches included.
        backward: tasks of the last micro batch's backward pass, in its order.
        messages: in the order in which they become ready.
        update_seconds: of the optimizer, once everything has arrived.
    """
    spans: list[Span] = []
    now = 0.0
    for task in forward:
        spans.append(Span("compute", task.name, now, now + task.seconds))
        now += task.seconds
    ready = []
    for number, task in enumerate(backward):
        spans.append(Span("compute", task.name, now, now + task.seconds))
        now += task.seconds
        ready.append(now)
        now += sum(message.held_up_seconds for message in messages if message.after == number)
    arrivals, travels = _travel(messages, ready)
    spans += travels
    for arrived, message in sorted(zip(arrivals, messages, strict=True), key=lambda pair: pair[0]):
        if message.multiply_seconds:
            now = max(now, arrived)
            spans.append(Span("multiply", message.name, now, now + message.multiply_seconds))
            now += message.multiply_seconds
    now = max([now, *arrivals])
    spans.append(Span("compute", "update", now, now + update_seconds))
    exchange = _covered([span for span in spans if span.row != "compute"])
    return Timeline(tuple(spans), now + update_seconds, exchange)


def _travel(messages: Sequence[Message], ready: Sequence[float]) -> tuple[list[float], list[Span]]:
    """When each message has arrived, and what the links carry when."""
    spans, arrivals, now = [], [], 0.0
    for message in messages:
        now = max(now, ready[message.after])
        for leg in message.legs:
            spans.append(Span(leg.link, message.name, now, now + leg.seconds))
            now += leg.seconds
        arrivals.append(now)
    return arrivals, spans


def _covered(spans: Sequence[Span]) -> float:
    """Length of the time in which at least one span goes on."""
    total, until = 0.0, 0.0
    for span in sorted(spans, key=lambda span: span.start):
        total += max(0.0, span.end - max(until, span.start))
        until = max(until, span.end)
    return total
