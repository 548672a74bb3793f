"""The oracle is a clock that the test turns."""

import time

import pytest
import torch

from vggdist.training.throughput import Throughput


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def test_a_window_lasts_from_log_to_log(clock: Clock) -> None:
    throughput = Throughput(torch.device("cpu"))
    for seconds, wait in ((1.0, 0.5), (3.0, 0.0)):
        clock.now += seconds
        throughput.add_step(100, wait)
    assert throughput.close_window() == pytest.approx(
        {
            "images_per_second": 50.0,
            "images_per_second_without_wait": 200 / 3.5,
            "data_wait": 0.125,
        }
    )
    clock.now += 1.0
    throughput.add_step(100, 0.0)
    assert throughput.close_window()["images_per_second"] == pytest.approx(100.0)
    assert throughput.images_per_second == pytest.approx(300 / 5)


def test_a_window_that_lasts_is_known_without_its_end(clock: Clock) -> None:
    throughput = Throughput(torch.device("cpu"), seconds=1.0, images=500)
    assert throughput.so_far() == {}
    clock.now += 2.0
    throughput.add_step(100, 0.5)
    assert throughput.so_far() == {"images_per_second": 50.0, "data_wait": 0.25}
    assert throughput.seconds_per_image == pytest.approx(3.0 / 600)
    assert throughput.close_window()["images_per_second"] == pytest.approx(50.0)
    assert throughput.seconds_per_image == pytest.approx(3.0 / 600)


def test_what_is_not_a_step_is_left_out(clock: Clock) -> None:
    throughput = Throughput(torch.device("cpu"))
    clock.now += 7.0  # opening files
    throughput.resume()
    clock.now += 1.0
    throughput.add_step(10, 0.0)
    throughput.pause()
    clock.now += 100.0  # an evaluation
    throughput.resume()
    clock.now += 1.0
    throughput.add_step(10, 0.0)
    assert throughput.close_window()["images_per_second"] == pytest.approx(10.0)
    assert throughput.seconds == pytest.approx(2.0)


def test_the_clock_goes_on_after_the_outermost_of_nested_pauses(clock: Clock) -> None:
    throughput = Throughput(torch.device("cpu"))
    throughput.add_step(10, 0.0)
    clock.now += 1.0
    with throughput.paused():
        clock.now += 100.0  # an evaluation
        with throughput.paused():
            clock.now += 100.0  # its checkpoint
        clock.now += 100.0  # the copy of the best network
    clock.now += 1.0
    assert throughput.close_window()["images_per_second"] == pytest.approx(5.0)


def test_an_empty_window_says_nothing(clock: Clock) -> None:
    throughput = Throughput(torch.device("cpu"))
    clock.now += 1.0
    assert throughput.close_window() == {}
    assert throughput.images_per_second == 0.0


def test_a_wait_longer_than_the_window_is_all_of_it(clock: Clock) -> None:
    throughput = Throughput(torch.device("cpu"))
    clock.now += 1.0
    throughput.add_step(10, 1.5)
    assert throughput.close_window()["data_wait"] == 1.0


def test_a_resumed_training_counts_what_came_before(clock: Clock) -> None:
    throughput = Throughput(torch.device("cpu"), seconds=9.0, images=900)
    clock.now += 1.0
    throughput.add_step(200, 0.0)
    throughput.close_window()
    assert throughput.images_per_second == pytest.approx(110.0)
    assert (throughput.seconds, throughput.images) == (10.0, 1100)
