"""What made-up measurements say about a training, in all cases and on the boundaries."""

from dataclasses import replace

import pytest
import torch

from vggdist.config import Config
from vggdist.distributed.process import Process
from vggdist.profiling import bound
from vggdist.profiling.bound import (
    LARGEST_WAIT,
    Timings,
    advise,
    describe,
    find_bound,
    render_bound,
)
from vggdist.profiling.timing import Bench
from vggdist.terminal import StatusLine

INPUT = Timings(step=0.1, loader=0.2, together=0.21, data_wait=0.5)
COMPUTE = Timings(step=0.2, loader=0.1, together=0.2, data_wait=0.0)
EXCHANGE = Timings(step=0.4, loader=0.1, together=0.4, data_wait=0.0, no_exchange=0.1)


def setting(
    world_size: int = 1, device: str = "cpu", num_cores: int = 2, **sections: object
) -> Bench:
    values: dict[str, object] = {"batch": {"global": 180}, "precision": "bf16"} | sections
    config = Config.model_validate(values)
    process = Process(0, 0, world_size, torch.device(device), num_cores)
    return Bench(config, process, StatusLine())


@pytest.mark.parametrize(
    ("timings", "expected"),
    [
        (INPUT, "input"),
        (COMPUTE, "compute"),
        (EXCHANGE, "exchange"),
        (Timings(step=0.1), "compute"),
        (Timings(step=0.1, no_exchange=0.04), "exchange"),
        (Timings(step=0.1, no_exchange=0.06), "compute"),
    ],
)
def test_the_longest_of_the_three_is_the_bound(timings, expected):
    assert find_bound(timings) == expected


def test_a_loader_as_fast_as_the_step_is_fast_enough():
    assert find_bound(replace(COMPUTE, loader=0.2)) == "compute"
    assert find_bound(replace(COMPUTE, loader=0.2001)) == "input"


def test_a_network_that_waits_for_images_is_input_bound_though_the_loader_alone_is_faster():
    assert find_bound(replace(COMPUTE, data_wait=LARGEST_WAIT)) == "compute"
    assert find_bound(replace(COMPUTE, data_wait=LARGEST_WAIT + 0.01)) == "input"
    assert find_bound(replace(EXCHANGE, data_wait=LARGEST_WAIT + 0.01)) == "input"


def test_a_slow_loader_counts_before_a_slow_exchange():
    assert find_bound(replace(EXCHANGE, loader=0.5)) == "input"


def test_exchange_of_half_a_step_is_still_compute():
    assert find_bound(replace(EXCHANGE, no_exchange=0.2)) == "compute"
    assert find_bound(replace(EXCHANGE, no_exchange=0.1999)) == "exchange"


def test_a_step_that_noise_made_faster_with_exchange_has_no_exchange():
    assert Timings(step=0.1, no_exchange=0.11).exchange == 0.0


def test_the_advice_for_a_slow_loader_has_both_rates_and_the_threads_that_could_be_added():
    text = advise(INPUT, setting(data={"num_threads": 1}))
    assert text == (
        "This training is input-bound: the loader makes 900 images/s, the step takes 1,800, and "
        "together the network waits for images 50 % of the time. Raise data.num_threads (now 1 of "
        "2 cores), or make the images smaller once (vggdist prepare folder --shorter-side 256); "
        "`vggdist tune data` finds the loader's fastest settings."
    )


def test_the_advice_does_not_raise_threads_that_already_fill_the_cores():
    text = advise(INPUT, setting())
    assert "data.num_threads" not in text
    assert "Give each rank more cores (2 threads decode on all cores of this rank already)" in text


def test_the_advice_does_not_shrink_images_twice():
    assert "--shorter-side" in advise(INPUT, setting())
    assert "--shorter-side" not in advise(replace(INPUT, resized=True), setting())


def test_the_advice_names_the_hardware_decoder_only_where_there_may_be_one():
    assert "hardware_decoder_share (now 0.65)" in advise(INPUT, setting(device="cuda"))
    assert "hardware_decoder_share" not in advise(INPUT, setting())


def test_the_advice_for_a_slow_network_says_that_the_input_has_nothing_to_gain(monkeypatch):
    monkeypatch.setattr(bound, "is_native", lambda precision, device: True)
    text = advise(COMPUTE, setting(precision="fp32", batch={"global": 180, "micro": 10}))
    assert text == (
        "This training is compute-bound: the step takes 900 images/s, and the loader makes 1,800 "
        "(2 times as many); there is nothing to gain in the input. What would help: more ranks, "
        "or GPUs (now 1 rank); precision=auto (now fp32); a larger batch.micro, "
        "if memory allows (now 10, in 18 accumulation steps)."
    )


def test_the_advice_proposes_bf16_only_where_the_device_has_it(monkeypatch):
    monkeypatch.setattr(bound, "is_native", lambda precision, device: False)
    assert "precision" not in advise(COMPUTE, setting(precision="fp32"))


def test_the_advice_proposes_only_what_is_not_set_already():
    text = advise(COMPUTE, setting(precision="bf16", batch={"global": 180, "micro": 180}))
    assert "precision" not in text
    assert "batch.micro" not in text


def test_the_advice_tells_that_loader_and_network_share_the_cores():
    text = advise(replace(COMPUTE, together=0.3), setting())
    assert "nothing to gain" not in text
    assert "with both at work a step takes 50 % longer" in text


def test_the_advice_for_a_slow_exchange_has_its_share_and_the_batch_to_raise():
    text = advise(EXCHANGE, setting(world_size=2))
    assert text.startswith(
        "This training is exchange-bound: 75 % of a step is the exchange of gradients between 2 "
        "ranks; with it the ranks take 450 images/s, without it 1,800. Raise batch.global (now 180)"
    )


def test_a_large_exchange_that_is_not_the_bound_is_not_forgotten():
    timings, two_ranks = replace(EXCHANGE, no_exchange=0.25), setting(world_size=2)
    assert find_bound(timings) == "compute"
    assert "a larger batch.global (now 180), for fewer exchanges" in advise(timings, two_ranks)
    assert "batch.global" not in advise(replace(timings, no_exchange=0.35), two_ranks)


def test_the_advice_admits_what_was_not_measured():
    no_images = Timings(step=0.1, no_exchange=0.09)
    two_ranks = setting(world_size=2, batch={"global": 64, "micro": 32})
    assert advise(no_images, two_ranks).endswith(
        "10 % of a step is exchange. What would help: more ranks, or GPUs (now 2 ranks). "
        "data.root is not set, so only compute and exchange were compared."
    )
    zero = advise(Timings(step=0.1), setting(world_size=2, zero_stage=1))
    assert "The exchange of zero_stage 1 is DeepSpeed's and cannot be left out" in zero
    graph = advise(Timings(step=0.1), setting(world_size=2, cuda_graph=True))
    assert "The exchange is part of the CUDA graph and cannot be left out" in graph


def test_rates_are_of_all_ranks_and_none_where_nothing_was_measured():
    result = describe(EXCHANGE, setting(world_size=2))
    assert result["step_images_per_second"] == pytest.approx(180 / 0.4)
    assert result["no_exchange_images_per_second"] == pytest.approx(180 / 0.1)
    assert describe(Timings(step=0.1), setting())["loader_images_per_second"] is None


def test_the_table_has_a_row_for_everything_measured_with_rates_of_a_rank_and_of_all():
    result = describe(EXCHANGE, setting(world_size=2))
    rows = render_bound(result | {"micro_batch": 45, "accumulation_steps": 2})
    assert rows[1].split() == ["loader", "alone", "0.1000", "900.00", "1800.00"]
    assert [row.split("  ")[0] for row in rows[1:5]] == [
        "loader alone",
        "step on synthetic images",
        "step without exchange",
        "both together",
    ]
    assert rows[5] == "both together: data wait 0.0 %"
    assert rows[6] == result["advice"]
