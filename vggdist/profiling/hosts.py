"""Two hosts joined by a cable of limited speed, on one machine: network namespaces. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from vggdist.errors import ConfigError, VggdistError
from vggdist.planning.links import parse_rate

_SMALLEST_BURST = 128_000  # bytes; a packet of 64 kB must fit
_NETWORK = "10.213.7"


def bits_per_second(rate: str) -> float | None:
    """`1gbit`, `200mbit` -> the number; `none` -> None: no limit.

    Raises:
        VggdistError: neither.
    """
    if rate == "none":
        return None
    try:
        return parse_rate(rate)
    except ConfigError:
        raise VggdistError(
            f"--rate is {rate!r}; give a number above 0 with kbit, mbit or gbit, such as 1gbit, or "
            "none for no limit."
        ) from None


class Hosts(ExitStack):
    """Hosts 0 and 1, each with one end of a cable; a context that takes them down again.

    Attributes:
        interface: the cable's name on each host.
        address: of host 0.
    """

    interface = "cable"
    address = f"{_NETWORK}.1"

    def __init__(self, rate: str) -> None:
        """Names the hosts; `rate` as for `bits_per_second`.

        Raises:
            VggdistError: no root, no tools, or a rate that is none.
        """
        super().__init__()
        self._bits_per_second = bits_per_second(rate)
        self._names = [f"vggdist-{os.getpid()}-{number}" for number in (0, 1)]
        if os.geteuid() != 0:
            raise VggdistError(
                "two hosts on one machine are network namespaces, which only root can make; run "
                "this command as root (sudo)."
            )
        missing = [
            tool for tool in ("ip", "tc", "unshare", "taskset") if shutil.which(tool) is None
        ]
        if missing:
            raise VggdistError(
                f"{' and '.join(missing)} cannot be found; install iproute2 and util-linux "
                "(Debian: apt-get install iproute2 util-linux)."
            )

    def __enter__(self) -> Self:
        first, second = self._names
        cable = ["name", self.interface]
        with ExitStack() as stack:  # takes down what stands if the rest fails
            for name in self._names:
                _run("ip", "netns", "add", name)
                delete = ["ip", "netns", "delete", name]
                stack.callback(subprocess.run, delete, capture_output=True, check=False)
            _run(
                *["ip", "link", "add", *cable, "netns", first],
                *["type", "veth", "peer", *cable, "netns", second],
            )
            for number, name in enumerate(self._names, start=1):
                inside = ["ip", "-n", name]
                address = f"{_NETWORK}.{number}/24"
                _run(*inside, "address", "add", address, "dev", self.interface)
                for interface in ("lo", self.interface):
                    _run(*inside, "link", "set", interface, "up")
                if (rate := self._bits_per_second) is not None:
                    burst = max(_SMALLEST_BURST, int(rate / 8 / 1000))  # of a millisecond
                    _run(
                        *["tc", "-n", name, "qdisc", "add", "dev", self.interface, "root", "tbf"],
                        *["rate", f"{rate:.0f}bit", "burst", str(burst), "latency", "50ms"],
                    )
            self.push(stack.pop_all())
        return self

    def command(self, host: int, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` on a host, with a name and cores of its own."""
        name = self._names[host]
        cores = sorted(os.sched_getaffinity(0))
        half = cores[host::2] or cores
        own_cores = ["taskset", "--cpu-list", ",".join(map(str, half))]
        own_name = ["unshare", "--uts", "sh", "-c", f'hostname {name} && exec "$@"', "sh"]
        return ["ip", "netns", "exec", name, *own_cores, *own_name, *command]


def bytes_sent(interface: str) -> int:
    """Bytes that have left this host through an interface, frames and all."""
    for line in Path("/proc/net/dev").read_text(encoding="ascii").splitlines():
        name, _, counts = line.strip().partition(":")
        if name == interface:
            return int(counts.split()[8])
    raise VggdistError(f"this host has no network interface {interface}.")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise VggdistError(
            f"`{' '.join(command)}` failed: {done.stderr.strip()}. Two hosts on one machine need "
            "the kernel's network namespaces, veth pairs and the tbf queue."
        )
