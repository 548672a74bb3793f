"""Commands that a test runs in processes of their own, as users run them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from vggdist.errors import EXIT_INTERRUPTED

ROOT = Path(__file__).parents[1]


def run(*command: str, timeout: float = 280, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in the project's root, whatever its exit code.

    Args:
        timeout: seconds.
        variables: of the environment, on top of this process's.
    """
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def interrupt_twice(script: str) -> None:
    """Runs Python that prints `begun` and never ends by itself: a first SIGINT must be told at
    once, and a second one must end it."""
    command, pipe = [sys.executable, "-c", script], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        assert "SIGINT received: saving after this step." in process.stderr.readline()
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == EXIT_INTERRUPTED
