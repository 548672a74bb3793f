"""Ranks that `--ranks N` starts end together, whoever ends first."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vggdist.commands import ranks

LAUNCHER = """
import sys
from vggdist.commands.ranks import start_ranks
sys.executable = sys.argv[1]
sys.exit(start_ranks(2))
"""


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_rank_that_fails_ends_the_others_whichever_it_is(
    place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "_END_SECONDS", 0.2)
    commands = [["sleep", "30"]] * 3
    commands[place] = ["sh", "-c", "exit 3"]
    started = [subprocess.Popen(command) for command in commands]
    began_at = time.monotonic()
    try:
        assert ranks._wait(started) == 3
        assert time.monotonic() - began_at < 10
    finally:
        for rank in started:
            rank.kill()
            rank.wait()


def test_a_rank_that_is_killed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ranks, "_END_SECONDS", 0.2)
    started = [subprocess.Popen(["sleep", "30"]) for _ in range(2)]
    started[1].kill()
    try:
        assert ranks._wait(started) == 128 + signal.SIGKILL
    finally:
        started[0].kill()
        started[0].wait()
    assert "rank 1 was ended by SIGKILL" in capsys.readouterr().err


def test_ranks_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    rank = tmp_path / "rank"
    rank.write_text(f"#!/bin/sh\ntouch {tmp_path}/started-$RANK\nexec sleep 30\n")
    rank.chmod(0o755)
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(rank)], stdout=subprocess.PIPE)
    while len(list(tmp_path.glob("started-*"))) < 2:
        time.sleep(0.05)
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=10)  # the ranks hold the pipe: it ends when they have ended
    assert launcher.returncode == 128 + signal.SIGTERM
