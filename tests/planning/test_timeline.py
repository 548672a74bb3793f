"""Timelines that can be drawn on paper."""

import pytest

from vggdist.planning.links import Leg
from vggdist.planning.timeline import Message, Task, Timeline, ready_times, simulate

FORWARD = [Task("a", 1.0), Task("b", 2.0)]
BACKWARD = [Task("b", 4.0), Task("a", 2.0)]


def step(*messages: Message) -> Timeline:
    return simulate(FORWARD, BACKWARD, messages, update_seconds=0.5)


def test_without_messages_a_step_is_its_arithmetic() -> None:
    timeline = step()
    assert timeline.seconds == 9.5
    assert timeline.exchange_seconds == 0.0
    assert ready_times(FORWARD, BACKWARD) == [7.0, 9.0]


def test_a_message_that_arrives_before_the_backward_pass_ends_costs_nothing() -> None:
    timeline = step(Message("b", 0, (Leg("network", 2.0),)))
    assert timeline.seconds == 9.5
    assert timeline.exchange_seconds == 2.0


def test_the_rest_of_a_longer_message_is_waited_for_before_the_update() -> None:
    assert step(Message("b", 0, (Leg("network", 5.0),))).seconds == 7 + 5 + 0.5


def test_one_message_is_sent_at_a_time_in_the_order_of_readiness() -> None:
    """b inside its node 7 to 8, between nodes 8 to 11; a is ready at 9 and waits until 11."""
    legs = (Leg("bus", 1.0), Leg("network", 3.0))
    timeline = step(Message("b", 0, legs), Message("a", 1, legs))
    assert [(s.name, s.row, s.start, s.end) for s in timeline.spans if s.row != "compute"] == [
        ("b", "bus", 7.0, 8.0),
        ("b", "network", 8.0, 11.0),
        ("a", "bus", 11.0, 12.0),
        ("a", "network", 12.0, 15.0),
    ]
    assert timeline.seconds == 15.5
    assert timeline.exchange_seconds == 8.0


def test_factors_are_multiplied_once_they_are_there_and_the_backward_pass_is_done() -> None:
    early = step(Message("b", 0, (Leg("network", 1.0),), multiply_seconds=2.0))
    assert early.seconds == 9 + 2 + 0.5
    late = step(Message("b", 0, (Leg("network", 6.0),), multiply_seconds=2.0))
    assert late.seconds == 13 + 2 + 0.5


def test_arithmetic_that_sending_holds_up_makes_the_step_longer() -> None:
    timeline = step(Message("b", 0, (Leg("network", 0.1),), held_up_seconds=0.7))
    assert timeline.seconds == pytest.approx(9.5 + 0.7)


def test_two_multiplications_do_not_happen_at_once() -> None:
    timeline = step(
        Message("b", 0, (Leg("network", 1.0),), multiply_seconds=2.0),
        Message("a", 1, (Leg("network", 1.0),), multiply_seconds=3.0),
    )
    assert timeline.seconds == 9 + 2 + 3 + 0.5
