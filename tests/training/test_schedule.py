"""The oracle is arithmetic, written out for short trainings."""

import json
import math
from collections.abc import Sequence

import pytest

from vggdist.config import ScheduleConfig
from vggdist.training.schedule import Decrease, Schedule


def schedule(total_steps: int = 100, steps_per_epoch: float = 10.0, **config: object) -> Schedule:
    return Schedule(
        ScheduleConfig.model_validate(config), 0.01, steps_per_epoch, total_steps=total_steps
    )


def rates_after(one: Schedule, errors: Sequence[float]) -> list[float]:
    """The learning rate after each evaluation, in units of the first one; one every 10 steps."""
    rates = []
    for error in errors:
        one.observe(10 * (len(one.steps) + 1), error)
        rates.append(one.learning_rate(0) / 0.01)
    return rates


def test_the_papers_plateaus_lower_the_rate_three_times_and_then_end() -> None:
    one = schedule(patience=2)
    falling = [0.9, 0.8]
    assert rates_after(one, falling) == [1.0, 1.0]
    # Each plateau is two evaluations without a new low.
    assert rates_after(one, [0.8, 0.85]) == pytest.approx([1.0, 0.1])
    assert rates_after(one, [0.7, 0.7, 0.71]) == pytest.approx([0.1, 0.1, 0.01])
    assert rates_after(one, [0.72, 0.7]) == pytest.approx([0.01, 0.001])
    assert not one.finished
    assert rates_after(one, [0.7]) == pytest.approx([0.001])
    assert not one.finished
    assert rates_after(one, [0.7]) == pytest.approx([0.001])  # a fourth would be no decrease
    assert one.finished


def test_a_new_low_begins_the_waiting_anew() -> None:
    one = schedule(patience=3)
    assert rates_after(one, [0.5, 0.6, 0.6, 0.4, 0.5, 0.5]) == [1.0] * 6
    assert rates_after(one, [0.4]) == pytest.approx([0.1])  # equal is no new low


def test_each_fall_and_the_reason_for_the_end_can_be_told() -> None:
    one = schedule(patience=2, num_decreases=2)
    rates_after(one, [0.5, 0.4, 0.4, 0.4, 0.4])
    assert one.decreases(50) == [Decrease(40, pytest.approx(0.001))]
    assert one.end(50) == ""
    rates_after(one, [0.4, 0.375, 0.4])
    assert one.decreases(80) == [
        Decrease(40, pytest.approx(0.001)),
        Decrease(60, pytest.approx(0.0001)),
    ]
    rates_after(one, [0.4])
    assert one.finished
    assert len(one.decreases(90)) == 2  # the last plateau is no fall but the end
    assert one.end(90) == (
        "no new low of the top-1 error for 2 evaluations (schedule.patience), and the learning "
        "rate has fallen 2 times (schedule.num_decreases); the lowest error, 37.50 %, was that of "
        "step 70"
    )
    assert one.end(100) == "all 100 steps are taken"


@pytest.mark.parametrize(("epochs", "falls"), [(3.0, [30, 60, 90]), (2.45, [25, 49, 74, 98])])
def test_a_fall_of_the_step_schedule_is_where_the_rate_is_lower_than_a_step_before(
    epochs: float, falls: list[int]
) -> None:
    one = schedule(name="step", step_epochs=epochs, factor=0.5)
    lower = [
        step for step in range(1, 101) if one.learning_rate(step) < one.learning_rate(step - 1)
    ]
    assert lower == falls
    assert [fall.step for fall in one.decreases(100)] == falls
    assert [fall.step for fall in one.decreases(falls[1])] == falls[:2]
    assert [one.learning_rate(fall.step) for fall in one.decreases(100)] == pytest.approx(
        [fall.learning_rate for fall in one.decreases(100)]
    )


def test_cosine_glides_and_has_no_falls() -> None:
    assert schedule(name="cosine").decreases(100) == []


def test_without_decreases_the_first_plateau_ends_the_training() -> None:
    one = schedule(patience=1, num_decreases=0)
    assert rates_after(one, [0.5]) == [1.0]
    assert not one.finished
    assert rates_after(one, [0.5]) == [1.0]
    assert one.finished


@pytest.mark.parametrize("name", ["step", "cosine"])
def test_plateaus_are_nothing_to_the_other_schedules(name: str) -> None:
    one, untouched = schedule(name=name, patience=1), schedule(name=name)
    rates_after(one, [0.5] * 20)
    assert not one.finished
    assert [one.learning_rate(s) for s in range(100)] == [
        untouched.learning_rate(s) for s in range(100)
    ]


def test_step_lowers_the_rate_every_so_many_epochs() -> None:
    one = schedule(name="step", step_epochs=3.0, factor=0.5)
    rates = [one.learning_rate(step) / 0.01 for step in (0, 29, 30, 59, 60, 99)]
    assert rates == pytest.approx([1.0, 1.0, 0.5, 0.5, 0.25, 0.125])


def test_step_lowers_the_rate_at_the_first_step_of_its_epoch_whatever_the_rounding() -> None:
    """1.1 x 10 is a little above 11 in binary."""
    one = schedule(name="step", step_epochs=1.1, factor=0.1)
    assert one.learning_rate(10) == 0.01
    assert one.learning_rate(11) == pytest.approx(0.001)


def test_cosine_is_half_a_wave_from_the_rate_to_zero() -> None:
    one = schedule(name="cosine")
    for step in range(100):
        expected = 0.01 * (1 + math.cos(math.pi * step / 100)) / 2
        assert one.learning_rate(step) == pytest.approx(expected)
    assert one.learning_rate(100) == pytest.approx(0.0, abs=1e-12)
    assert one.learning_rate(150) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", ["plateau", "step", "cosine"])
def test_warm_up_rises_in_equal_steps_to_the_rate(name: str) -> None:
    one = schedule(name=name, warmup_epochs=0.5, step_epochs=5.0)
    rising = [one.learning_rate(step) for step in range(5)]
    assert rising == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.01])
    assert one.learning_rate(5) == pytest.approx(0.01)


def test_a_warm_up_that_ends_within_a_step_never_passes_the_rate() -> None:
    one = schedule(warmup_epochs=0.25)  # 2.5 steps
    rates = [one.learning_rate(step) for step in range(4)]
    assert rates == pytest.approx([0.01 / 3, 0.02 / 3, 0.01, 0.01])


def test_cosine_falls_over_the_steps_that_warm_up_leaves() -> None:
    one = schedule(name="cosine", warmup_epochs=2.0)
    assert one.learning_rate(20) == pytest.approx(0.01)
    assert one.learning_rate(60) == pytest.approx(0.005)
    assert one.learning_rate(99) == pytest.approx(0.005 * (1 + math.cos(math.pi * 79 / 80)))


def test_a_training_of_warm_up_alone_has_rates_too() -> None:
    one = schedule(total_steps=3, name="cosine", warmup_epochs=1.0)
    assert [one.learning_rate(step) for step in range(3)] == pytest.approx([0.001, 0.002, 0.003])


def test_the_state_survives_a_checkpoints_json() -> None:
    one, two = schedule(patience=2), schedule(patience=2)
    rates_after(one, [0.9, 0.8, 0.8, 0.8])
    two.load(json.loads(json.dumps(one.state())))
    assert (two.steps, two.errors) == (one.steps, one.errors)
    following = [0.8, 0.7, 0.7, 0.7, 0.7, 0.7]
    assert rates_after(one, following) == rates_after(two, following)
    assert one.finished == two.finished
