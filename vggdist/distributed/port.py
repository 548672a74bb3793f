"""What ranks of this machine need without a launcher: a free port, and each one's variables."""

import socket


def free_port() -> int:
    """A port that nothing is listening on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def local_ranks(num_ranks: int) -> list[dict[str, str]]:
    """The variables of each rank, as a launcher sets them; all meet at a free port."""
    shared = {
        "WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_ranks)]
