"""Ranks that `--ranks N` starts end together, whoever ends first, and get each signal once."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vggdist.commands import ranks
from vggdist.commands.ranks import Ranks
from vggdist.errors import EXIT_INTERRUPTED

LAUNCHER = """
import sys
from vggdist.commands.ranks import start_ranks
sys.executable = sys.argv[1]
sys.exit(start_ranks(2, save=sys.argv[2:] == ["save"]))
"""
NOTES_SIGNALS = """
for name in INT TERM HUP; do trap "echo $name >> {folder}/signals-$RANK" $name; done
echo $$ > {folder}/started-$RANK
while [ ! -e {folder}/end ]; do sleep 0.05; done
"""
"""A rank that ends when it is told to, and notes the signals until then."""


@pytest.fixture
def launcher(tmp_path: Path) -> Callable[[str, str], list[str]]:
    """Starts ranks of a shell script."""

    def command(script: str, *words: str) -> list[str]:
        rank = tmp_path / "rank"
        rank.write_text(f"#!/bin/sh\n{script.format(folder=tmp_path)}\n")
        rank.chmod(0o755)
        return [sys.executable, "-c", LAUNCHER, str(rank), *words]

    return command


def wait_for(folder: Path, pattern: str, number: int = 2) -> list[Path]:
    """Files that ranks write, once all are there and not empty."""
    ends_at = time.monotonic() + 30
    while time.monotonic() < ends_at:
        found = [path for path in sorted(folder.glob(pattern)) if path.read_text()]
        if len(found) == number:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{number} files {pattern} are not there")


def state(pid: int) -> str:
    """A process as the kernel sees it: T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_rank_that_fails_ends_the_others_whichever_it_is(
    place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "_END_SECONDS", 0.2)
    started = Ranks(["sh", "-c", f"[ $RANK = {place} ] && exit 3; exec sleep 30"], 3)
    began_at = time.monotonic()
    try:
        assert started.wait() == 3
        assert time.monotonic() - began_at < 10
    finally:
        started.kill()


def test_a_rank_that_is_killed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ranks, "_END_SECONDS", 0.2)
    started = Ranks(["sh", "-c", "[ $RANK = 1 ] && kill -9 $$; exec sleep 30"], 2)
    try:
        assert started.wait() == 128 + signal.SIGKILL
    finally:
        started.kill()
    assert "rank 1 was ended by SIGKILL" in capsys.readouterr().err


def test_ranks_end_with_the_process_that_started_them(
    tmp_path: Path, launcher: Callable[..., list[str]]
) -> None:
    command = launcher("echo $$ > {folder}/started-$RANK; exec sleep 30")
    starter = subprocess.Popen(command, stdout=subprocess.PIPE)
    wait_for(tmp_path, "started-*")
    starter.send_signal(signal.SIGTERM)
    starter.communicate(timeout=10)  # the ranks hold the pipe: it ends when they have ended
    assert starter.returncode == 128 + signal.SIGTERM


def test_ranks_are_told_to_stop_when_who_started_them_is_killed(
    tmp_path: Path, launcher: Callable[..., list[str]]
) -> None:
    starter = subprocess.Popen(launcher(NOTES_SIGNALS, "save"))
    wait_for(tmp_path, "started-*")
    starter.kill()
    starter.wait()
    told = wait_for(tmp_path, "signals-*")
    (tmp_path / "end").touch()
    assert [path.read_text() for path in told] == ["TERM\n"] * 2


def test_a_key_pressed_and_a_signal_to_all_reach_each_rank_once(
    tmp_path: Path, launcher: Callable[..., list[str]]
) -> None:
    """And a second Ctrl-C does not wait for ranks that go on."""
    pid, terminal = pty.fork()
    if pid == 0:  # the child's terminal is the other end
        command = launcher(NOTES_SIGNALS, "save")
        os.execv(command[0], command)
    wait_for(tmp_path, "started-*")
    os.write(terminal, b"\x03")
    told = wait_for(tmp_path, "signals-*")
    os.killpg(pid, signal.SIGTERM)
    while any("TERM" not in path.read_text() for path in told):
        time.sleep(0.02)
    assert [path.read_text() for path in told] == ["INT\nTERM\n"] * 2
    os.write(terminal, b"\x03")
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == EXIT_INTERRUPTED
    assert [path.read_text() for path in told] == ["INT\nTERM\nINT\n"] * 2
    os.close(terminal)


def test_ctrl_z_stops_the_ranks_too_until_the_training_continues(
    tmp_path: Path, launcher: Callable[..., list[str]]
) -> None:
    starter = subprocess.Popen(launcher("echo $$ > {folder}/started-$RANK; exec sleep 30", "save"))
    pids = [int(path.read_text()) for path in wait_for(tmp_path, "started-*")]
    starter.send_signal(signal.SIGTSTP)
    while [state(pid) for pid in (starter.pid, *pids)] != ["T"] * 3:
        time.sleep(0.02)
    starter.send_signal(signal.SIGCONT)
    while "T" in [state(pid) for pid in pids]:
        time.sleep(0.02)
    starter.terminate()
    assert starter.wait(timeout=10) == 128 + signal.SIGTERM
