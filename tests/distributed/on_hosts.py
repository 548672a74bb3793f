"""A rank on one of two hosts: what its collectives make, and what they send to the other host.

Started by `test_collectives.py` as `python -m tests.distributed.on_hosts`; the first rank of a host
counts for the host. Prints one line of JSON.
"""

import json
import time
from typing import Self

import torch
from torch import distributed

from vggdist.benchmark.hosts import Hosts, bytes_sent
from vggdist.distributed import process as world
from vggdist.distributed.collectives import Collectives

ELEMENTS = 6_000_001
ROWS, COLUMNS = 16, 50_000


def main() -> None:
    process = world.start("cpu")
    results: dict[str, object] = {"nodes": None}
    for name in ("aware", "flat"):
        collectives = Collectives(process.device)
        results["nodes"] = collectives.nodes
        if name == "flat":
            collectives._between = None
        for dtype in (torch.float32, torch.bfloat16):
            tensor = torch.full((ELEMENTS,), float(process.rank + 1), dtype=dtype)
            rows = torch.full((ROWS, COLUMNS), float(process.rank + 1), dtype=dtype)
            key = f"{name}, {str(dtype).removeprefix('torch.')}"
            with Sent() as summed:
                collectives.all_reduce(tensor)()
            with Sent() as gathering:
                gathered, wait = collectives.all_gather(rows)
                wait()
            results[f"all_reduce, {key}"] = summed.bytes
            results[f"all_gather, {key}"] = gathering.bytes
            results[f"good, {key}"] = bool(
                (tensor == 10).all()
                and gathered.shape == (4 * ROWS, COLUMNS)
                and sorted(gathered[::ROWS, 0].tolist()) == [1, 2, 3, 4]
            )
    print(json.dumps(results), flush=True)
    world.stop()


class Sent:
    """A context that counts the bytes that leave this host meanwhile."""

    bytes = 0

    def __enter__(self) -> Self:
        distributed.barrier()
        self._before = bytes_sent(Hosts.interface)
        distributed.barrier()
        return self

    def __exit__(self, *error: object) -> None:
        distributed.barrier()
        time.sleep(0.2)
        self.bytes = bytes_sent(Hosts.interface) - self._before
        distributed.barrier()


if __name__ == "__main__":
    main()
