"""Steps summed up from traces that are written here, so that every time is known."""

from typing import Any

import pytest

from vggdist.training.step_times import measure_steps, render_steps

Event = dict[str, Any]


def event(
    name: str,
    start: float,
    end: float,
    cat: str = "user_annotation",
    tid: int = 1,
    correlation: int | None = None,
) -> Event:
    """Times in milliseconds; a trace has microseconds."""
    args = {} if correlation is None else {"correlation": correlation}
    span = {"ts": 1000 * start, "dur": 1000 * (end - start)}
    return {"ph": "X", "name": name, "cat": cat, "tid": tid, "args": args, **span}


def step(number: int, start: float) -> list[Event]:
    """One of 100 ms on a CPU, of which two micro batches take 80."""
    return [
        event(f"ProfilerStep#{number}", start, start + 100),
        event("input", start, start + 4),
        event("forward", start + 4, start + 20),
        event("backward", start + 20, start + 40),
        event("input", start + 40, start + 41),
        event("forward", start + 41, start + 55),
        event("backward", start + 55, start + 75),
        event("send", start + 60, start + 61),
        event("exchange", start + 75, start + 85),
        event("update", start + 85, start + 95),
        # Two that overlap, in threads of their own, and one for the flags.
        event("gloo:all_reduce", start + 60, start + 70, tid=2),
        event("gloo:all_gather", start + 65, start + 80, tid=3),
        event("gloo:all_reduce", start + 96, start + 99, tid=2),
        event("aten::mm", start + 76, start + 84, cat="cpu_op"),
    ]


def test_ranges_and_rest_add_up_to_the_step() -> None:
    times = measure_steps([*step(7, 0), *step(8, 150)])
    assert times.steps == (7, 8)
    assert times.step == pytest.approx(100)
    assert times.ranges == pytest.approx(
        {"input": 5, "forward": 30, "backward": 40, "exchange": 10, "update": 10}
    )
    assert times.rest == pytest.approx(5)
    assert times.gpu is None


def test_what_is_sent_during_other_work_is_hidden_and_the_wait_for_it_exposed() -> None:
    times = measure_steps(step(1, 0))
    assert times.send == pytest.approx(1)
    assert times.hidden == pytest.approx(15)  # from 60 to 75
    assert times.exposed == pytest.approx(10)
    # Until 80 in the exchange, of which the rest is arithmetic; 3 for the flags.
    assert times.waits == pytest.approx({"images": 5, "other ranks": 8})


def test_between_steps_nothing_counts() -> None:
    between = [event("gloo:all_reduce", 110, 140, tid=2), event("input", 120, 130)]
    assert measure_steps([*step(1, 0), *between, *step(2, 150)]) == measure_steps(
        [*step(1, 0), *step(2, 150)]
    )


def test_one_rank_waits_for_images_only() -> None:
    alone = [e for e in step(1, 0) if not e["name"].startswith(("gloo", "send"))]
    times = measure_steps(alone)
    assert times.waits == pytest.approx({"images": 5})
    assert "exchange of gradients" not in render_steps(times)


def test_a_trace_without_steps_is_an_error() -> None:
    with pytest.raises(ValueError, match="no steps"):
        measure_steps([event("forward", 0, 1)])


def gpu_step() -> list[Event]:
    """The host runs ahead: it launches everything in 20 ms, and waits for the GPU at the end."""

    def kernel(name: str, launch: float, start: float, end: float, tid: int = 1) -> list[Event]:
        number = int(launch * 100)
        return [
            event("cudaLaunchKernel", launch, launch + 0.1, "cuda_runtime", tid, number),
            event(name, start, end, "kernel", 7, number),
        ]

    return [
        event("ProfilerStep#3", 0, 50),
        event("input", 0, 1),
        event("forward", 1, 6),
        event("backward", 6, 14),
        event("exchange", 14, 15),
        event("update", 15, 20),
        event("cudaEventSynchronize", 20, 48, "cuda_runtime"),
        event("cudaEventSynchronize", 20, 40, "cuda_runtime", tid=9),  # a loader's
        *kernel("conv", 2, 3, 13),
        *kernel("dgrad", 7, 13, 33, tid=5),  # autograd launches in a thread of its own
        *kernel("ncclDevKernel_AllReduce", 8, 28, 38, tid=5),
        *kernel("sgd", 16, 38, 45),
    ]


def test_on_a_gpu_kernels_belong_to_the_range_in_which_they_were_launched() -> None:
    times = measure_steps(gpu_step())
    assert times.ranges["backward"] == pytest.approx(8)
    assert times.gpu == pytest.approx(
        {"input": 0, "forward": 10, "backward": 20, "exchange": 10, "update": 7}
    )


def test_on_a_gpu_the_exchange_is_hidden_as_far_as_other_kernels_run() -> None:
    times = measure_steps(gpu_step())
    assert (times.hidden, times.exposed) == pytest.approx((5, 5))
    assert times.waits == pytest.approx({"images": 1, "the GPU": 28})


def test_the_table_has_a_row_for_each_range_and_says_what_the_host_waited_for() -> None:
    lines = [
        " ".join(line.split()) for line in render_steps(measure_steps(step(1, 0))).splitlines()
    ]
    assert lines == [
        "range ms/step share",
        "input 5.00 5.0 %",
        "forward 30.00 30.0 %",
        "backward 40.00 40.0 %",
        "exchange 10.00 10.0 %",
        "update 10.00 10.0 %",
        "rest 5.00 5.0 %",
        "step 100.00 100.0 %",
        "exchange of gradients: 15.00 ms behind other work, 10.00 ms exposed; the host took 1.00 "
        "ms to send",
        "the host waited 5.00 ms for images, 8.00 ms for other ranks",
    ]
    on_gpu = render_steps(measure_steps(gpu_step())).splitlines()
    assert on_gpu[0].endswith("ms/step on the GPU")
    assert on_gpu[3].split() == ["backward", "8.00", "16.0", "%", "20.00"]
    assert on_gpu[7].split() == ["step", "50.00", "100.0", "%", "47.00"]
