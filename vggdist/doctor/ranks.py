"""Checks whether ranks on this machine reach each other: real processes, a real all-reduce.

`python -m vggdist.doctor.ranks` is one of these ranks.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

from vggdist.distributed.port import local_ranks
from vggdist.doctor.finding import Finding

_ELEMENTS = 1 << 22
_ROUNDS = 5
_PATIENCE_SECONDS = 120.0


def ranks(num_ranks: int) -> Iterator[Finding]:
    """The host's name, and a sum over ranks."""
    host = socket.gethostname()
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        hint = (
            f"Add a line with an address and {host} to /etc/hosts, or set GLOO_SOCKET_IFNAME to "
            "the network's interface (`ip address` lists them)."
        )
        yield Finding(f"the name of this machine, {host}, has no address", hint)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "vggdist.doctor.ranks"],
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for variables in local_ranks(num_ranks)
    ]
    deadline = time.monotonic() + _PATIENCE_SECONDS
    try:
        told = [
            process.communicate(timeout=max(0.1, deadline - time.monotonic()))
            for process in processes
        ]
    except subprocess.TimeoutExpired:
        hint = (
            "A firewall or a wrong interface may be the reason: NCCL_DEBUG=INFO shows what NCCL "
            "tries, GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME choose the interface."
        )
        text = f"{num_ranks} ranks have not found each other in {_PATIENCE_SECONDS:.0f} s"
        yield Finding(text, hint, is_problem=True)
        return
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, (printed, errors) in zip(processes, told, strict=True):
        if process.returncode:
            last = (errors.strip().splitlines() or ["it said nothing"])[-1]
            text = f"a rank ended with code {process.returncode}: {last}"
            yield Finding(text, "docs/troubleshooting.md has the usual reasons.", is_problem=True)
            return
        if printed:
            yield Finding(printed.strip())


def main() -> None:
    """One rank: adds tensors with the others, and the main one prints how fast."""
    import torch

    from vggdist.distributed import process as world

    with world.joined() as process:
        values = torch.ones(_ELEMENTS, device=process.device)
        world.sum_over_ranks(values)
        began_at = time.monotonic()
        for _ in range(_ROUNDS):
            values.fill_(1.0)
            total = float(world.sum_over_ranks(values)[-1])
        seconds = (time.monotonic() - began_at) / _ROUNDS
        assert total == process.world_size, "the sum is wrong"
        if process.is_main:
            backend = torch.distributed.get_backend()
            sys.stdout.write(
                f"{process.world_size} ranks add {values.nbytes / 1e6:.0f} MB with {backend} in "
                f"{1e3 * seconds:.0f} ms\n"
            )


if __name__ == "__main__":
    main()
