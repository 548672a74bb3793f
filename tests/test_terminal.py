"""What people see of long work, on a terminal and in a log."""

import io
import logging

import pytest

import vggdist.terminal
from vggdist.terminal import Progress, StatusLine, TrainingProgress, counted, duration

VALUES = {"loss": 1.23456, "top1_error": 0.5, "images_per_second": 99.95, "data_wait": 0.25}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """Each renewal of the line."""
        return self.getvalue().split("\r\x1b[K")[1:]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test sets: its last number is the time."""
    times = [0.0]
    monkeypatch.setattr(vggdist.terminal.time, "monotonic", lambda: times[-1])
    return times


def test_without_a_terminal_a_line_of_the_log_every_half_minute_is_all(
    caplog: pytest.LogCaptureFixture, clock: list[float]
) -> None:
    """The first and the last step have one; the log file, at DEBUG, has all."""
    stream = io.StringIO()
    progress = TrainingProgress(10, stream)
    with caplog.at_level(logging.DEBUG, "vggdist"):
        for step, seconds in ((1, 0.0), (4, 20.0), (5, 31.0), (8, 50.0), (10, 51.0)):
            clock.append(seconds)
            assert not progress.is_due
            progress.log(step, step / 10, VALUES, 93.4)
    assert stream.getvalue() == ""
    assert caplog.messages[1] == (
        "step 4/10  left 0:01:33  loss 1.2346  top-1 error 50.0 %  100.0 images/s  data wait 25 %  "
        "epoch 0.40"
    )
    told = [record.levelno == logging.INFO for record in caplog.records]
    assert told == [True, False, True, False, True]


def test_where_the_peak_is_known_the_line_says_how_much_of_it_is_used(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "vggdist"):
        values = {**VALUES, "model_flop_utilization": 0.618}
        TrainingProgress(10, io.StringIO()).log(2, 0.2, values, 93.4)
    assert "  100.0 images/s (62 % of the peak)  data wait 25 %" in caplog.text


def test_on_a_terminal_one_line_renews_itself(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    terminal = Terminal()
    progress = TrainingProgress(10, terminal)
    progress.log(2, 0.2, VALUES, 93.4)
    assert not progress.is_due, "too soon after"
    clock.append(0.3)
    assert progress.is_due
    progress.show(3, 0.3, VALUES | {"loss": 1.0}, 83.2)
    first, second = terminal.lines()
    assert first.startswith("step 2/10  left 0:01:33  loss 1.2346")
    assert second.startswith("step 3/10  left 0:01:23  loss 1.0000")
    assert second.endswith("epoch 0.30")
    assert "\n" not in terminal.getvalue()


def test_one_rank_of_several_draws_the_line() -> None:
    terminal = Terminal()
    TrainingProgress(10, terminal, speaks=False).log(2, 0.2, VALUES, 93.4)
    assert terminal.getvalue() == ""


def test_the_line_never_wraps_since_a_wrapped_line_cannot_be_renewed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    terminal = Terminal()
    TrainingProgress(10, terminal).log(2, 0.2, VALUES, 93.4)
    (line,) = terminal.lines()
    assert len(line) == 79


def test_numbers_that_are_not_there_yet_are_zero(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "vggdist"):
        TrainingProgress(10, io.StringIO()).log(
            1, 0.1, {"loss": float("nan"), "top1_error": 1.0}, 0.0
        )
    assert "loss nan  top-1 error 100.0 %  0.0 images/s  data wait 0 %" in caplog.text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0:00:00"),
        (59.4, "0:00:59"),
        (59.6, "0:01:00"),
        (93.4, "0:01:33"),
        (3600.0, "1:00:00"),
        (86399.0, "23:59:59"),
        (86400.0, "1d 0:00:00"),
        (200000.0, "2d 7:33:20"),
    ],
)
def test_durations_are_days_and_a_clock(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_log_gets_a_line_every_thirty_seconds_and_one_at_the_end(clock):
    stream = io.StringIO()
    progress = Progress(total=4000, done=1000, stream=stream)
    for second in range(1, 71):
        clock.append(second)
        progress.advance(10)
    progress.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "1,310 of 4,000 images, 10 images/s, 0:04:29 left"  # 2,690 at 10 a second
    assert len(lines) == 3


def test_a_moment_has_no_rate() -> None:
    stream = io.StringIO()
    progress = Progress(total=3, stream=stream)
    progress.advance(3)
    progress.close()
    assert stream.getvalue() == "3 of 3 images\n"


def test_a_log_gets_a_state_every_half_minute_and_no_more(clock):
    stream = io.StringIO()
    status = StatusLine(stream)
    for second in range(70):
        clock.append(second)
        status.show(f"round {second} of 70")
    status.clear()
    assert stream.getvalue() == "round 31 of 70\nround 62 of 70\n"


def test_counts_have_their_plural() -> None:
    assert counted(1, "rank") == "1 rank"
    assert counted(0, "image") == "0 images"
    assert counted(1200, "micro batch", "micro batches") == "1,200 micro batches"


def test_a_terminal_gets_one_line_that_renews_itself(clock):
    stream = Terminal()
    progress = Progress(total=20, stream=stream)
    for tenth in range(20):
        clock.append(tenth / 10)
        progress.advance()
    progress.close()
    shown = stream.getvalue()
    assert shown.count("\n") == 1
    assert shown.endswith("20 of 20 images, 11 images/s\n")
    assert 5 <= shown.count("\r\x1b[K") <= 11


def test_a_line_is_never_wider_than_the_terminal(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    stream = Terminal()
    clock.append(1.0)
    progress = Progress(total=10**9, stream=stream)
    progress.advance(5)
    progress.close()
    assert all(len(line.strip("\n")) < 30 for line in stream.getvalue().split("\r\x1b[K"))
