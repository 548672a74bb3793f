"""What a step's time goes to, by the trace of a profile: a table."""

from __future__ import annotations

import bisect
import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vggdist.terminal import render_table
from vggdist.training.ranges import RANGES, SEND, STEP

Spans = list[tuple[float, float]]
"""Starts and ends in microseconds, in order, none overlapping another."""

_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
_CUDA_CALLS = ("cuda_runtime", "cuda_driver")


@dataclass(frozen=True)
class StepTimes:
    """Milliseconds of a step, on average over the steps of a trace.

    Attributes:
        steps: their numbers.
        step: from a step's begin to its end, on the host.
        ranges: name -> of the host, in each of `RANGES`; they do not overlap.
        send: of the host, within backward and exchange, for starting collectives.
        hidden: in which gradients were on their way while something else was computed.
        exposed: by which the exchange made the step longer, arithmetic on factors included.
        waits: what the host waited for -> how long.
        gpu: name of a range -> in which the GPU worked on what was started in it, the exchange
            apart; None without a GPU.
    """

    steps: tuple[int, ...]
    step: float
    ranges: dict[str, float]
    send: float
    hidden: float
    exposed: float
    waits: dict[str, float]
    gpu: dict[str, float] | None

    @property
    def rest(self) -> float:
        """What has no name: sums of losses, flags, the log."""
        return self.step - sum(self.ranges.values())


def read_trace(path: Path) -> list[dict[str, Any]]:
    """The events of a trace in Chrome's format.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not whole.
    """
    with gzip.open(path, "rt", encoding="utf-8") as file:
        events: list[dict[str, Any]] = json.load(file)["traceEvents"]
    return events


def measure_steps(events: Iterable[Mapping[str, Any]]) -> StepTimes:
    """Sums up the ranges that `training/ranges.py` names, and what ran during them.

    Raises:
        ValueError: there is no step among the events.
    """
    whole = [event for event in events if event.get("ph") == "X"]
    marks = [event for event in whole if _is_range(event) and event["name"].startswith(STEP)]
    if not marks:
        raise ValueError("the trace has no steps")
    thread, steps = marks[0]["tid"], _spans(marks)
    own = [event for event in whole if event["tid"] == thread]

    def named(name: str) -> Spans:
        found = _spans(event for event in own if _is_range(event) and event["name"] == name)
        return _common(found, steps)

    ranges = {name: named(name) for name in RANGES}
    kernels = [event for event in whole if event.get("cat") in _ON_GPU]
    sending = [event for event in kernels if _is_nccl(event)] if kernels else whole
    in_flight = _common(_spans(event for event in sending if _is_collective(event)), steps)
    computed = [event for event in kernels if not _is_nccl(event)]
    if kernels:
        hidden = _length(_common(in_flight, _spans(computed)))
        exposed = _length(in_flight) - hidden
    else:
        others = _spans_of(span for name in RANGES if name != "exchange" for span in ranges[name])
        hidden = _length(_common(in_flight, others))
        exposed = _length(ranges["exchange"])
    waiting = _spans(
        event
        for event in own
        if event.get("cat") in _CUDA_CALLS and event["name"].endswith("Synchronize")
    )
    waits = {"images": _length(ranges["input"])}
    if kernels:
        waits["the GPU"] = _length(_common(waiting, steps))
    elif in_flight:  # in the exchange, or for the step's flags
        waits["other ranks"] = _length(in_flight) - hidden

    def per_step(microseconds: float) -> float:
        return microseconds / 1000 / len(marks)

    of_gpu = _time_of_gpu(whole, computed, ranges) | {"exchange": _length(in_flight)}
    return StepTimes(
        steps=tuple(sorted(int(mark["name"].removeprefix(STEP)) for mark in marks)),
        step=per_step(_length(steps)),
        ranges={name: per_step(_length(spans)) for name, spans in ranges.items()},
        send=per_step(sum(e["dur"] for e in whole if _is_range(e) and e["name"] == SEND)),
        hidden=per_step(hidden),
        exposed=per_step(exposed),
        waits={name: per_step(length) for name, length in waits.items()},
        gpu={name: per_step(of_gpu[name]) for name in RANGES} if kernels else None,
    )


def render_steps(times: StepTimes) -> str:
    """The table, and sentences about the exchange and about waiting."""
    host = {**times.ranges, "rest": times.rest, "step": times.step}
    rows = []
    for name, milliseconds in host.items():
        row = [name, f"{milliseconds:.2f}", f"{100 * milliseconds / times.step:.1f} %"]
        if times.gpu is not None:
            gpu = sum(times.gpu.values()) if name == "step" else times.gpu.get(name)
            row.append("" if gpu is None else f"{gpu:.2f}")
        rows.append(row)
    head = ("range", "ms/step", "share", *(["ms/step on the GPU"] if times.gpu else []))
    lines = [render_table(head, rows)]
    if times.send:
        lines.append(
            f"exchange of gradients: {times.hidden:.2f} ms behind other work, {times.exposed:.2f} "
            f"ms exposed; the host took {times.send:.2f} ms to send"
        )
    waits = ", ".join(f"{length:.2f} ms for {name}" for name, length in times.waits.items())
    lines.append(f"the host waited {waits}")
    return "\n".join(lines)


def _is_range(event: Mapping[str, Any]) -> bool:
    return event.get("cat") == "user_annotation"


def _is_collective(event: Mapping[str, Any]) -> bool:
    """One that is on its way: gloo's, which torch follows to their end, or NCCL's kernel."""
    return _is_nccl(event) or (_is_range(event) and event["name"].startswith("gloo:"))


def _is_nccl(event: Mapping[str, Any]) -> bool:
    return event.get("cat") == "kernel" and event["name"].startswith("nccl")


def _time_of_gpu(
    events: Iterable[Mapping[str, Any]],
    kernels: Sequence[Mapping[str, Any]],
    ranges: Mapping[str, Spans],
) -> dict[str, float]:
    """Range -> microseconds of the kernels that any thread launched while it lasted.

    By time and not by thread, since autograd launches the backward pass in a thread of its own.
    """
    launched_at = {
        event["args"]["correlation"]: event["ts"]
        for event in events
        if event.get("cat") in _CUDA_CALLS and "correlation" in event.get("args", {})
    }
    times = dict.fromkeys(ranges, 0.0)
    for kernel in kernels:
        launch = launched_at.get(kernel["args"].get("correlation"))
        for name, spans in ranges.items():
            if launch is not None and _has(spans, launch):
                times[name] += kernel["dur"]
    return times


def _spans(events: Iterable[Mapping[str, Any]]) -> Spans:
    return _spans_of((event["ts"], event["ts"] + event["dur"]) for event in events)


def _spans_of(pairs: Iterable[tuple[float, float]]) -> Spans:
    """Merges what overlaps."""
    merged: Spans = []
    for start, end in sorted(pairs):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _common(these: Spans, those: Spans) -> Spans:
    """Where spans of both lists overlap."""
    found: Spans = []
    numbers = [0, 0]
    while numbers[0] < len(these) and numbers[1] < len(those):
        a, b = these[numbers[0]], those[numbers[1]]
        start, end = max(a[0], b[0]), min(a[1], b[1])
        if start < end:
            found.append((start, end))
        numbers[a[1] > b[1]] += 1
    return found


def _has(spans: Spans, moment: float) -> bool:
    number = bisect.bisect_right(spans, (moment, float("inf"))) - 1
    return number >= 0 and moment < spans[number][1]


def _length(spans: Spans) -> float:
    return sum(end - start for start, end in spans)
