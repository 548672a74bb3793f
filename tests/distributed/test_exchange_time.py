"""The oracle is arithmetic on a network of two layers."""

from dataclasses import replace

import pytest

from vggdist.config import Exchange
from vggdist.distributed.exchange_time import Gradient, Speeds, Step, end_seconds, soonest

FC = Gradient("fc", 4_000_000, 4_000_000, 2, (2000, 2000))
CONVOLUTION = Gradient("conv", 1_100_000, 500_000_000, 1, None)
GRADIENTS = [FC, CONVOLUTION]
STEP = Step(4, 8, 8, 4, 4, by_blocks=False)
SPEEDS = Speeds(
    all_reduce_latency=1e-4,
    all_gather_latency=1e-4,
    sent_bytes_per_second=1e9,
    held_up_seconds_per_byte=0.0,
    multiply_adds_per_second=1e11,
    product_multiply_adds_per_second=1e11,
    memory_bytes_per_second=1e30,
)
MATRIX: dict[str, Exchange] = {"fc": "all_reduce"}
FACTORS: dict[str, Exchange] = {"fc": "factors"}


def test_messages_are_sent_one_after_another_behind_the_backward_pass() -> None:
    """fc's pass takes 0.64 ms; then 24 ms for its matrix, and 6.6 ms for the convolution's."""
    of_fc, of_convolution = (1e-4 + 1.5 * 4 * n / 1e9 for n in (4e6, 1.1e6))
    end = end_seconds(GRADIENTS, MATRIX, STEP, SPEEDS)
    backward = 2 * 4e6 * 8 / 1e11 + 500e6 * 8 / 1e11
    assert end == pytest.approx(max(2 * 4e6 * 8 / 1e11 + of_fc, backward) + of_convolution)


def test_the_product_of_factors_runs_while_the_last_message_is_sent() -> None:
    """32 rows x 4 M multiply-adds, 1.28 ms, behind the 6.7 ms of the convolution's gradient."""
    end = end_seconds(GRADIENTS, FACTORS, STEP, SPEEDS)
    backward = 4e6 * 8 / 1e11 + 500e6 * 8 / 1e11
    assert end == pytest.approx(backward + 1e-4 + 1.5 * 4 * 1.1e6 / 1e9)
    slow = replace(SPEEDS, product_multiply_adds_per_second=1e9)
    assert end_seconds(GRADIENTS, FACTORS, STEP, slow) == pytest.approx(backward + 0.128)


def test_a_slow_network_takes_the_factors_and_a_slow_processor_the_matrix() -> None:
    assert soonest(GRADIENTS, STEP, replace(SPEEDS, sent_bytes_per_second=1e8)) == FACTORS
    busy = replace(SPEEDS, sent_bytes_per_second=1e11, product_multiply_adds_per_second=1e9)
    assert soonest(GRADIENTS, STEP, busy) == MATRIX


def test_of_ways_that_end_alike_the_fewest_bytes_are_sent() -> None:
    """384 kB against 24 MB, or 65 MB against 32; everything is hidden behind the convolution."""
    long = [FC, replace(CONVOLUTION, multiply_adds=50_000_000_000)]
    fast = replace(SPEEDS, sent_bytes_per_second=1e14, product_multiply_adds_per_second=1e18)
    assert soonest(long, STEP, fast) == FACTORS
    assert soonest(long, replace(STEP, world_size=512), fast) == MATRIX


def test_sending_holds_up_the_arithmetic_of_a_processor() -> None:
    busy = replace(SPEEDS, sent_bytes_per_second=1e14, held_up_seconds_per_byte=1e-9)
    free = replace(busy, held_up_seconds_per_byte=0.0)
    sent = 1.5 * 4 * (4e6 + 1.1e6)
    assert end_seconds(GRADIENTS, MATRIX, STEP, busy) - end_seconds(
        GRADIENTS, MATRIX, STEP, free
    ) == pytest.approx(sent * 1e-9, rel=0.02)


def test_small_gradients_wait_for_each_other_in_a_bucket() -> None:
    small = replace(CONVOLUTION, num_elements=300_000)
    gradients = [replace(small, name=f"conv{number}") for number in range(5)]
    late = replace(SPEEDS, all_reduce_latency=1.0)
    assert end_seconds(gradients, {}, STEP, late) == pytest.approx(2.0, abs=0.3)


def test_a_frozen_layer_takes_time_and_sends_nothing() -> None:
    frozen = replace(FC, num_elements=0, matrix=None)
    assert soonest([frozen, CONVOLUTION], STEP, SPEEDS) == {}
    alone = end_seconds([CONVOLUTION], {}, STEP, SPEEDS)
    assert end_seconds([frozen, CONVOLUTION], {}, STEP, SPEEDS) > alone
