"""A training step as a timeline: layer after layer, and the messages that are sent meanwhile.

A gradient can leave when the backward pass has gone through its layer, the last layer first. One
message is sent at a time, in the order in which they are ready, as `distributed/collectives.py` and
NCCL's streams have it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from vggdist.planning.links import Leg


@dataclass(frozen=True)
class Task:
    """Arithmetic on a rank."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Message:
    """Gradients that are sent together.

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
        exchange_seconds: of these, in which a message is sent or factors are multiplied.
    """

    spans: tuple[Span, ...]
    seconds: float
    exchange_seconds: float


def ready_times(forward: Sequence[Task], backward: Sequence[Task]) -> list[float]:
    """When each task of the backward pass is done."""
    done = accumulate(task.seconds for task in (*forward, *backward))
    return list(done)[len(forward) :]


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

    def run(row: str, name: str, start: float, seconds: float) -> float:
        spans.append(Span(row, name, start, start + seconds))
        return start + seconds

    now, ready = 0.0, []
    for task in forward:
        now = run("compute", task.name, now, task.seconds)
    for number, task in enumerate(backward):
        now = run("compute", task.name, now, task.seconds)
        ready.append(now)
        now += sum(message.held_up_seconds for message in messages if message.after == number)
    link_is_free = 0.0
    for message in messages:
        link_is_free = max(link_is_free, ready[message.after])
        for leg in message.legs:
            link_is_free = run(leg.link, message.name, link_is_free, leg.seconds)
        if message.multiply_seconds:
            now = run("multiply", message.name, max(now, link_is_free), message.multiply_seconds)
    now = run("compute", "update", max(now, link_is_free), update_seconds)
    return Timeline(tuple(spans), now, _covered(span for span in spans if span.row != "compute"))


def _covered(spans: Iterable[Span]) -> float:
    """Length of the time in which at least one span goes on."""
    total, until = 0.0, 0.0
    for span in sorted(spans, key=lambda span: span.start):
        total += max(0.0, span.end - max(until, span.start))
        until = max(until, span.end)
    return total
