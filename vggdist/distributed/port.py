"""A free port of this machine, for ranks without a launcher."""

import socket


def free_port() -> int:
    """A port that nothing is listening on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
