"""The oracle is a clock that the waits turn."""

import time

import pytest
import torch

from vggdist.distributed.collectives import WaitClock


def test_the_time_of_waits_is_summed_until_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0

    def wait() -> None:
        nonlocal now
        now += 2.0

    monkeypatch.setattr(time, "monotonic", lambda: now)
    clock = WaitClock(torch.device("cpu"))
    waits = [clock.timed(wait) for _ in range(3)]
    assert clock.take() == 0.0  # nobody has waited yet
    for timed in waits:
        timed()
        now += 10.0  # the computation
    assert clock.take() == 6.0
    assert clock.take() == 0.0
