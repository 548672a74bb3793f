"""The progress line: on a terminal and in a log."""

import io

import pytest

from vggdist.data import progress as progress_module
from vggdist.data.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test sets: its last number is the time."""
    times = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: times[-1])
    return times


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
