"""Starts several ranks of a command on this machine, without a launcher."""

import argparse
import os
import signal
import subprocess
import sys
import time
from types import FrameType

from vggdist.commands.arguments import positive
from vggdist.distributed.port import local_ranks
from vggdist.errors import EXIT_STOPPED, DistributedError

_END_SECONDS = 10.0  # for ranks to end by themselves after one has failed


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
    """Runs this process's own command line in `num_ranks` ranks; returns the exit code.

    If a rank fails, the others are ended; the exit code is that of the failed rank.

    Args:
        num_ranks: processes.
        save: whether signals are passed to the ranks, which save their work before they end.
            Otherwise SIGTERM and Ctrl-C end them.
    """
    command = [sys.executable, "-m", "vggdist", *_without_ranks(sys.argv[1:])]
    ranks = [
        subprocess.Popen(command, env=os.environ | variables)
        for variables in local_ranks(num_ranks)
    ]

    def hand_on(number: int, _: FrameType | None) -> None:
        for rank in ranks:
            rank.send_signal(number)

    if save:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal also sends it to the ranks
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP):
            signal.signal(number, hand_on)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return _wait(ranks)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int:
    """Returns when all ranks have succeeded, or some time after one has failed."""
    deadline = float("inf")
    while time.monotonic() < deadline and None in (ends := [rank.poll() for rank in ranks]):
        time.sleep(0.05)
        if deadline == float("inf") and any(end not in (None, 0, EXIT_STOPPED) for end in ends):
            deadline = time.monotonic() + _END_SECONDS
    for number, rank in enumerate(ranks):
        if (rank.returncode or 0) < 0:
            name = signal.Signals(-rank.returncode).name
            sys.stderr.write(
                f"error: rank {number} was ended by {name}, and so were the others. SIGKILL often "
                "means that memory was short. Start the same command again.\n"
            )
    # Ended by a signal: the shell's code for it.
    codes = [code if code >= 0 else 128 - code for rank in ranks if (code := rank.returncode)]
    own = [code for code in codes if code != DistributedError.exit_code]
    return (own or codes or [0])[0]


def _without_ranks(words: list[str]) -> list[str]:
    """The command line without `--ranks N` or `--ranks=N`."""
    kept, rest = [], iter(words)
    for word in rest:
        if word == "--ranks":
            next(rest, None)
        elif not word.startswith("--ranks="):
            kept.append(word)
    return kept
