"""The two hosts themselves: what tests and measurements on them rest on."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.netns.conftest import require
from tests.netns.hosts import ROOT, Host, two_hosts, what_is_missing

pytestmark = pytest.mark.netns

RECEIVE = """
import socket
with socket.create_server(("", 5000)) as server:
    print("listening", flush=True)
    other, _ = server.accept()
    while other.recv(1 << 20):
        pass
    other.sendall(b"done")
"""
SEND = """
import socket, time
with socket.create_connection(("node2", 5000)) as other:
    started_at = time.monotonic()
    other.sendall(bytes(2_500_000))
    other.shutdown(socket.SHUT_WR)
    assert other.recv(4) == b"done"
    print(time.monotonic() - started_at)
"""


def _commands_with(word: str) -> list[str]:
    """Commands on this machine, hosts included, in which the word is one of their words."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            words = file.read_bytes().decode(errors="replace").split("\0")
            found += [" ".join(words)] if word in words else []
    return found


def _wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def send(one: Host, other: Host) -> float:
    """Seconds for 2.5 MB from one host to the other, by name."""
    receiver = other.start("python", "-c", RECEIVE)
    assert receiver.stdout is not None
    assert receiver.stdout.readline() == "listening\n"
    sent = one.run("python", "-c", SEND)
    assert sent.returncode == 0, sent.stderr
    return float(sent.stdout)


def test_the_cable_counts_bytes_each_way_and_keeps_to_its_rate() -> None:
    require(what_is_missing())
    with two_hosts(rate="40mbit") as (node1, node2):
        seconds = send(node1, node2)
        # Packets have up to 1448 bytes in 1514; a receiver acknowledges at least every 64 kB.
        assert 2_500_000 < node1.num_bytes_sent() < 2_800_000
        assert 2_000 < node2.num_bytes_sent() < 250_000
    # 20 Mbit less the bucket of 128 kB, which passes at once.
    assert seconds > 0.45


def test_a_cable_without_a_rate_is_fast(hosts: tuple[Host, Host]) -> None:
    assert min(send(*hosts) for _ in range(3)) < 0.45


def test_a_host_has_a_name_of_its_own_and_the_project_in_front_of_it(
    hosts: tuple[Host, Host],
) -> None:
    for host in hosts:
        printed = host.run("sh", "-c", "hostname; pwd; hostname -I")
        assert printed.stdout.split() == [host.name, str(ROOT), host.address], printed.stderr


def test_a_host_sees_and_ends_only_its_own_processes(hosts: tuple[Host, Host]) -> None:
    outside = subprocess.Popen(["sleep", "98765"])
    inside = hosts[0].start("sleep", "98765")
    try:
        _wait_for(lambda: hosts[0].processes("98765") != [])
        assert outside.pid not in hosts[0].processes("98765")
        assert hosts[1].processes("98765") == []
        assert hosts[1].run("pkill", "-f", "sleep 98765").returncode == 1
        assert hosts[0].run("pkill", "-f", "sleep 98765").returncode == 0
        assert inside.wait(timeout=10) == -signal.SIGTERM
        assert outside.poll() is None
    finally:
        outside.kill()
        outside.wait()


def test_nothing_is_left_of_hosts_that_have_stopped_or_lost_their_test() -> None:
    require(what_is_missing())
    with two_hosts() as (node1, node2):
        for host in (node1, node2):
            host.start("sh", "-c", "setsid sleep 87654 & wait")
        _wait_for(lambda: len(_commands_with("87654")) == 2)
    assert _commands_with("87654") == []

    script = (
        "import os, signal\n"
        "from tests.netns.hosts import two_hosts\n"
        "with two_hosts() as (node1, _):\n"
        "    node1.start('sleep', '76543')\n"
        "    while len(node1.processes('76543')) < 1: pass\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    _wait_for(lambda: _commands_with("76543") == [])
