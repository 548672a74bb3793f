"""A rank on one of two hosts: what its collectives make, and what they send to the other host.

Started by `test_collectives.py` as `python -m tests.distributed.on_hosts`; the first rank of a host
counts for the host. Prints one line of JSON.
"""

import json
import time
from collections.abc import Callable

import torch
from torch import Tensor, distributed

from vggdist.distributed import process as world
from vggdist.distributed.collectives import Collectives
from vggdist.profiling.hosts import Hosts, bytes_sent

ELEMENTS = 6_000_001
ROWS, COLUMNS = 16, 50_000
TIMES = 4
"""That a collective is counted."""


def main() -> None:
    process = world.start("cpu")
    results: dict[str, object] = {}
    for name in ("aware", "flat"):
        collectives = Collectives(process.device)
        if name == "flat":
            collectives._between = None
        results[name] = collectives._between is not None
        for dtype in (torch.float32, torch.bfloat16):
            tensor = torch.full((ELEMENTS,), float(process.rank + 1), dtype=dtype)
            rows = torch.full((ROWS, COLUMNS), float(process.rank + 1), dtype=dtype)
            key = f"{name}, {str(dtype).removeprefix('torch.')}"
            all_sums, results[f"all_reduce, {key}"] = with_bytes(summed, collectives, tensor)
            all_rows, results[f"all_gather, {key}"] = with_bytes(gathered, collectives, rows)
            results[f"good, {key}"] = bool(
                (all_sums == 10).all()
                and all_rows.shape == (4 * ROWS, COLUMNS)
                and sorted(all_rows[::ROWS, 0].tolist()) == [1, 2, 3, 4]
            )
    print(json.dumps(results), flush=True)
    world.stop()


def summed(collectives: Collectives, tensor: Tensor) -> Tensor:
    result = tensor.clone()
    collectives.all_reduce(result)()
    return result


def gathered(collectives: Collectives, rows: Tensor) -> Tensor:
    result, wait = collectives.all_gather(rows)
    wait()
    return result


def with_bytes(
    collective: Callable[[Collectives, Tensor], Tensor], collectives: Collectives, own: Tensor
) -> tuple[Tensor, int]:
    """What a collective makes, and the bytes that leave this host for it, the least of `TIMES`.

    Where a host's frames overtake each other, as they do when several cores send them, TCP takes
    some for lost and sends them again: of a few megabytes up to a twelfth, on a busy machine.
    """
    counts = []
    for _ in range(TIMES):
        distributed.barrier()
        before = bytes_sent(Hosts.interface)
        distributed.barrier()
        result = collective(collectives, own)
        distributed.barrier()
        time.sleep(0.2)
        counts.append(bytes_sent(Hosts.interface) - before)
        distributed.barrier()
    return result, min(counts)


if __name__ == "__main__":
    main()
