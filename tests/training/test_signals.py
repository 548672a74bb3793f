"""Signals are sent to this very process."""

import os
import re
import signal
import threading
import time

import pytest

from tests.processes import interrupt_twice
from vggdist.errors import StoppedError
from vggdist.training.signals import SAVING, SIGNALS, StopSignal


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS, ids=[number.name for number in SIGNALS])
def test_a_signal_is_only_a_flag(number: signal.Signals) -> None:
    with StopSignal() as stop:
        assert not stop.requested
        send(number)
        assert stop.requested


def test_under_nohup_a_closed_terminal_stops_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            send(signal.SIGHUP)
            assert not stop.requested
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_before_and_after_signals_act_as_usual() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopSignal():
        assert all(signal.getsignal(number) not in before for number in SIGNALS)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)


def test_handlers_are_put_back_after_an_exception_too() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(RuntimeError), StopSignal():
        raise RuntimeError
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_second_interrupt_does_not_wait_for_the_checkpoint() -> None:
    with StopSignal() as stop:
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert stop.requested


def test_any_number_of_the_schedulers_signals_and_one_interrupt_wait_for_it() -> None:
    """A scheduler says so twice, SIGUSR2 and then SIGTERM; a person's first Ctrl-C may follow."""
    with StopSignal() as stop:
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            send(number)
        assert stop.requested


def test_the_first_signal_is_told_once_with_what_follows(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def told_of(answer: str, *numbers: int) -> str:
        with StopSignal() as stop, stop.answering(answer):
            for number in numbers:
                send(number)
            deadline = time.monotonic() + 30
            while not (told := capfd.readouterr().err) and time.monotonic() < deadline:
                time.sleep(0.01)
        return told + capfd.readouterr().err

    told = told_of(SAVING, signal.SIGUSR2, signal.SIGTERM)
    assert re.fullmatch(r"\d\d:\d\d:\d\d SIGUSR2 received: saving after this step\.\n", told)
    for answer, loss in ((SAVING, ", losing it"), ("stopping soon", "")):
        told = told_of(answer, signal.SIGINT)
        assert told.endswith(f"SIGINT received: {answer}. Ctrl-C again ends at once{loss}.\n")


def test_of_several_ranks_one_speaks(capfd: pytest.CaptureFixture[str]) -> None:
    with StopSignal(speaks=False) as stop:
        send(signal.SIGTERM)
        assert stop.requested
    assert capfd.readouterr().err == ""


# Python's handlers wait for a call into a library, such as a backward pass. This one never ends.
ENDLESS_CALL = """
import ctypes
from vggdist.training.signals import SAVING, StopSignal
library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
with StopSignal() as stop, stop.answering(SAVING):
    library.pthread_mutex_lock(mutex)
    print("begun", flush=True)
    library.pthread_mutex_lock(mutex)
"""


def test_in_a_long_call_a_signal_is_told_at_once_and_a_second_interrupt_ends_it() -> None:
    interrupt_twice(ENDLESS_CALL)


def test_a_signal_that_was_blocked_comes_as_soon_as_it_is_noted() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        # To this thread: another one of a test process may take what this one has blocked.
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)
        with StopSignal() as stop:
            assert stop.requested
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.parametrize("number", SIGNALS, ids=[number.name for number in SIGNALS])
def test_what_may_end_at_once_does(number: signal.Signals) -> None:
    reached = []

    def action() -> None:
        send(number)
        reached.append("the end")

    with StopSignal() as stop:
        assert stop.run(lambda: 7) == 7
        with pytest.raises(StoppedError, match="stopped before there was anything to save"):
            stop.run(action)
        assert stop.requested
        with pytest.raises(StoppedError):  # one that came before
            stop.run(lambda: reached.append("the beginning"))
        send(signal.SIGTERM)  # and afterwards it is only a flag again
    assert reached == []
