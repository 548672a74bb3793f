"""Starts several ranks of a command on this machine, without a launcher."""

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from types import FrameType

from vggdist.commands.arguments import positive
from vggdist.distributed.port import local_ranks
from vggdist.errors import EXIT_INTERRUPTED, EXIT_STOPPED, DistributedError
from vggdist.terminal import fresh_line

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_END_SECONDS = 10.0  # for ranks to end by themselves after one has failed
_INTERRUPTED_SECONDS = 2.0  # the same after one was ended by Ctrl-C


def add_ranks(parser: argparse.ArgumentParser, shared: str) -> None:
    """--ranks; `shared`: what the processes divide among themselves."""
    parser.add_argument(
        "--ranks",
        type=positive,
        default=1,
        metavar="N",
        help=f"processes on this machine that share {shared}, each on a GPU of its own or on a "
        "share of the CPU cores (default: 1)",
    )


def start_ranks(num_ranks: int, save: bool = False) -> int:
    """Runs this process's own command line in `num_ranks` ranks; returns the exit code when all
    have ended.

    If a rank fails, the others are ended; the exit code is that of the failed rank.

    Args:
        num_ranks: processes.
        save: whether signals are handed on to the ranks, which save their work before they end.
            Otherwise SIGTERM and Ctrl-C end them.
    """
    ranks = Ranks([sys.executable, "-m", "vggdist", *_without_ranks(sys.argv[1:])], num_ranks)
    try:
        if save:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP):
                if signal.getsignal(number) != signal.SIG_IGN:  # nohup, or a script's background
                    signal.signal(number, ranks.hand_on)
        else:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        signal.signal(signal.SIGTSTP, ranks.suspend)
        return ranks.wait()
    finally:
        ranks.kill()


class Ranks:
    """Processes that end together.

    Each has a session of its own. A terminal, or who signals a group of processes, so reaches only
    this process, which hands a signal on to each rank exactly once.

    Args:
        command: of every rank.
        num_ranks: processes.
    """

    def __init__(self, command: Sequence[str], num_ranks: int) -> None:
        self._handed_on: list[int] = []
        self._processes = [
            subprocess.Popen(
                command,
                env=os.environ | variables,
                start_new_session=True,
                preexec_fn=partial(_end_with_parent, os.getpid()),  # noqa: PLW1509 (no threads)
            )
            for variables in local_ranks(num_ranks)
        ]

    def hand_on(self, number: int, _: FrameType | None) -> None:
        """A signal's handler: sends it to every rank."""
        self._handed_on.append(number)
        self._send(number)

    def suspend(self, *_: object) -> None:
        """The handler of Ctrl-Z: the ranks stop, and continue, with this process."""
        self._send(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._send(signal.SIGCONT)

    def wait(self) -> int:
        """Returns when all ranks have succeeded, or some time after one has failed."""
        ranks, deadline = self._processes, float("inf")
        while time.monotonic() < deadline and None in (ends := [rank.poll() for rank in ranks]):
            time.sleep(0.05)
            interrupted = EXIT_INTERRUPTED in ends or self._handed_on.count(signal.SIGINT) > 1
            if interrupted or any(end not in (None, 0, EXIT_STOPPED) for end in ends):
                seconds = _INTERRUPTED_SECONDS if interrupted else _END_SECONDS
                deadline = min(deadline, time.monotonic() + seconds)
        for number, rank in enumerate(ranks):
            ended_by = -(rank.returncode or 0)
            if ended_by > 0 and ended_by not in self._handed_on:
                sys.stderr.write(
                    f"{fresh_line(sys.stderr)}error: rank {number} was ended by "
                    f"{signal.Signals(ended_by).name}, and so were the others. SIGKILL often means "
                    "that memory was short. Start the same command again.\n"
                )
        # Ended by a signal: the shell's code for it.
        codes = [code if code >= 0 else 128 - code for rank in ranks if (code := rank.returncode)]
        own = [code for code in codes if code != DistributedError.exit_code]
        # None has ended by itself soon enough after a second Ctrl-C.
        unfinished = [EXIT_INTERRUPTED for rank in ranks if rank.returncode is None]
        return (own or codes or unfinished or [0])[0]

    def kill(self) -> None:
        """Ends the ranks that have not ended by themselves."""
        for rank in self._processes:
            rank.kill()
            rank.wait()

    def _send(self, number: int) -> None:
        for rank in self._processes:
            rank.send_signal(number)


def _end_with_parent(parent: int) -> None:
    """In a rank before its command: it gets SIGTERM when the process that started it is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the call above
        os._exit(1)


def _without_ranks(words: list[str]) -> list[str]:
    """The command line without `--ranks N` or `--ranks=N`."""
    kept, rest = [], iter(words)
    for word in rest:
        if word == "--ranks":
            next(rest, None)
        elif not word.startswith("--ranks="):
            kept.append(word)
    return kept
