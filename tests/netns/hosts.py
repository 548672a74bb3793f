"""Two hosts on this machine, joined by a cable of any speed, for tests.

Each host is a set of namespaces: a network, a host name, mounts and process numbers of its own.
Files, users, processor and memory are the machine's. The namespaces have no names outside, and one
process holds each set, so nothing is left when that ends, however it ends.

    with two_hosts(rate="1gbit") as (node1, node2):
        print(node2.run("hostname").stdout)
        print(node2.num_bytes_sent())
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATH = ":".join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin", "/sbin"])

ADDRESSES = {"node1": "10.77.0.1", "node2": "10.77.0.2"}
"""The networks are the hosts' own, so nothing outside can be meant by these."""
INTERFACE = "cable0"
STOP_SECONDS = 20.0

UNSHARE = ("unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child")
ENTER = ("nsenter", "--net", "--uts", "--mount", "--pid", "--wd")

# `pkill`, with which the deepspeed launcher cleans up, must not see the machine's other processes;
# so /proc is the host's own. And where SIGCHLD is ignored the kernel buries the dead: the first
# process inherits all that lose their parents.
FIRST_PROCESS = """
set -e
read -r pid rest < /proc/self/stat
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
printf %s "$2" > /run/hosts
mount --bind /run/hosts /etc/hosts
hostname "$1"
ip link set lo up
echo "$pid"
exec env --ignore-signal=CHLD cat
"""


def what_is_missing() -> str | None:
    """Why there can be no hosts here, as a sentence; None where there can."""
    if os.geteuid() != 0:
        return "hosts in network namespaces need root."
    if shutil.which("ip", path=PATH) is None:
        return "hosts in network namespaces need ip; install Debian's package iproute2."
    if subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode != 0:
        return "no namespaces can be made here; a container must be a privileged one."
    return None


class Host:
    """One of the two."""

    def __init__(self, name: str) -> None:
        """Starts the process that holds the namespaces."""
        self.name = name
        self.address = ADDRESSES[name]
        # The own name means a loopback address, as on Debian.
        names = ADDRESSES | {"localhost": "127.0.0.1", name: "127.0.1.1"}
        hosts_file = "".join(f"{address} {known}\n" for known, address in names.items())
        self._first = subprocess.Popen(
            [*UNSHARE, "sh", "-c", FIRST_PROCESS, "sh", name, hosts_file],
            cwd=ROOT,
            env=os.environ | {"PATH": PATH},
            stdin=subprocess.PIPE,  # closed by `close`, or by the end of this process
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for pytest, which then stops the hosts
        )
        self._started: list[subprocess.Popen[str]] = []
        assert self._first.stdout is not None
        self.pid = self._first.stdout.readline().strip()
        assert self.pid, f"{name} did not start; its error is among what was printed."

    def close(self) -> None:
        """Ends this host and every process on it."""
        self._first.communicate(timeout=STOP_SECONDS)
        for process in self._started:
            process.communicate(timeout=STOP_SECONDS)

    def command(self, *command: str) -> list[str]:
        """The command that runs `command` on this host, in the project's root."""
        return [*ENTER, f"--target={self.pid}", *command]

    def start(self, *command: str, **variables: str) -> subprocess.Popen[str]:
        """Starts a command on this host; `processes` finds it, if a signal is to be sent to it.

        Args:
            variables: of the environment.
        """
        process = subprocess.Popen(
            self.command(*command),
            env=os.environ | {"PATH": PATH} | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def run(
        self, *command: str, timeout: float = 100.0, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command on this host.

        Args:
            timeout: seconds, after which the test fails.
            variables: of the environment.
        """
        with self.start(*command, **variables) as process:
            try:
                printed = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(command, process.returncode, *printed)

    def processes(self, word: str = "") -> list[int]:
        """Ids, as seen from outside, of this host's processes with this word in their commands."""
        own = os.readlink(f"/proc/{self.pid}/ns/pid")
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if os.readlink(folder / "ns/pid") == own and (not word or word in words):
                    found.append(int(folder.name))
        return found

    def num_bytes_sent(self) -> int:
        """Bytes that have left this host so far, headers of frames included."""
        for line in Path(f"/proc/{self.pid}/net/dev").read_text().splitlines():
            interface, _, counters = line.partition(":")
            if interface.strip() == INTERFACE:
                return int(counters.split()[8])
        raise AssertionError(f"{self.name} has no {INTERFACE}")


@contextlib.contextmanager
def two_hosts(rate: str | None = None) -> Iterator[tuple[Host, Host]]:
    """Two hosts, `node1` and `node2`, which know each other by name.

    As each takes its own name for a loopback address, gloo needs GLOO_SOCKET_IFNAME=`INTERFACE`.

    Args:
        rate: what the cable carries each way, as tc writes it: `1gbit`; None: as much as it can.
    """
    with contextlib.ExitStack() as stack:
        one, other = (stack.enter_context(contextlib.closing(Host(name))) for name in ADDRESSES)
        _join(one, other, rate)
        yield one, other


def _join(one: Host, other: Host, rate: str | None) -> None:
    ends = ["netns", one.pid, "type", "veth", "peer", "name", INTERFACE, "netns", other.pid]
    _require(["ip", "link", "add", INTERFACE, *ends])
    for host in (one, other):
        address = f"{host.address}/24"
        _require(host.command("ip", "address", "add", address, "dev", INTERFACE))
        _require(host.command("ip", "link", "set", INTERFACE, "up"))
        if rate is not None:
            bucket = ["rate", rate, "burst", "128kb", "latency", "50ms"]
            _require(host.command("tc", "qdisc", "add", "dev", INTERFACE, "root", "tbf", *bucket))


def _require(command: list[str]) -> None:
    done = subprocess.run(
        command, env=os.environ | {"PATH": PATH}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
