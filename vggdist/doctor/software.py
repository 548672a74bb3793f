"""Checks of Python, packages and SLURM."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

from vggdist.doctor.finding import Finding

PROJECT = "vggdist"
SHOWN = ("torch", "deepspeed", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "tensorboard")
"""Packages whose versions stand in every question about a problem."""
_PATIENCE_SECONDS = 10.0


def python() -> Iterator[Finding]:
    """The interpreter and the system."""
    found = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.platform == "linux":
        yield Finding(f"{found}, {sys.executable}")
    else:
        yield Finding(found, "DALI needs Linux; on Windows, WSL 2 is one.", is_problem=True)


def packages() -> Iterator[Finding]:
    """Whether the packages that are needed are there, in versions that work."""
    try:
        needed = [Requirement(text) for text in metadata.requires(PROJECT) or ()]
    except metadata.PackageNotFoundError:
        hint = "Run `make setup`, or `pip install -e .` in the project's folder."
        yield Finding(f"{PROJECT} itself is not installed in this Python", hint, is_problem=True)
        return
    found: dict[str, str] = {}
    for requirement in needed:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found[requirement.name] = version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Finding(f"{requirement.name} is missing", _install(requirement), is_problem=True)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            text = f"{requirement.name} is {version}, and {requirement.specifier} is needed"
            yield Finding(text, _install(requirement), is_problem=True)
    shown = [f"{name} {found[name]}" for name in SHOWN if name in found]
    yield Finding(f"{PROJECT} {metadata.version(PROJECT)}, {', '.join(shown)}")


def slurm() -> Iterator[Finding]:
    """Whether this is a login node of a cluster, and its partitions."""
    if shutil.which("sinfo") is None:
        yield Finding("none here; `vggdist submit --local` runs the same jobs on this machine")
        return
    words = ("sinfo", "--noheader", "--format=%P %D x %c CPUs, %m MB, %G, %l")
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        done = subprocess.CompletedProcess(words, 1, "", f"no answer in {_PATIENCE_SECONDS:.0f} s")
    if done.returncode:
        # The last line is the reason; those before it are attempts.
        told = [f"sinfo ended with code {done.returncode}", *done.stderr.split("\n")]
        reason = [line.strip() for line in told if line.strip()][-1]
        hint = "Ask the cluster's administrators; trainings on this machine alone need no SLURM."
        yield Finding(f"SLURM does not answer: {reason}", hint)
        return
    for line in done.stdout.splitlines():
        yield Finding(f"partition {line.strip()}")


def _install(requirement: Requirement) -> str:
    return f"{sys.executable} -m pip install '{requirement.name}{requirement.specifier}'"
