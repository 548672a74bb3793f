#!/usr/bin/env python
"""What a training step of D asks of the host under a pretended CUDA, with and without `cuda_graph`.

    python tests/benchmarks/host_time.py

Prints operators and milliseconds of the host, medians of five steps. Pretended tensors cost it more
than true ones, so that only the ratio tells something. Needs g++, and no GPU.
"""

import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.fake_cuda.process import FakeCuda, compile_devices
from tests.fake_cuda.steps import ALONE, Ranks, train
from vggdist.terminal import render_table
from vggdist.training.graph import WARM_UP_STEPS

RANKS = {"one GPU": ALONE, "8 GPUs": Ranks(world_size=8, rank=3)}
REPLAYED_STEP, ROUNDS = WARM_UP_STEPS + 2, 5


def main() -> None:
    """Measures and prints."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        process = FakeCuda(compile_devices(Path(folder)))
        for name, ranks in RANKS.items():
            for graph in ("false", "true"):
                batch = f"batch.global={64 * ranks.world_size}"
                settings = ["precision=bf16", batch, "exchange=all_reduce", f"cuda_graph={graph}"]
                reports = [
                    process.run(train, settings, ranks, watched_step=REPLAYED_STEP)
                    for _ in range(ROUNDS)
                ]
                seconds = statistics.median(report.seconds for report in reports)
                operators = reports[0].operators.total() + reports[0].num_replays
                rows.append((name, graph, str(operators), f"{1000 * seconds:.1f}"))
        process.close()
    print(render_table(("", "cuda_graph", "operators and replays", "ms of the host"), rows))


if __name__ == "__main__":
    main()
