"""Commands that a test runs in processes of their own, as users run them."""

import os
import subprocess
from pathlib import Path

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
