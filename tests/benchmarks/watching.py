"""What it costs a training to be watched: curves, norms by layer, histograms, readings of the host.

    python tests/benchmarks/watching.py [--images N] [--rounds N] [section.key=value ...]

One rank trains on noise. Each part is timed while it works, several times, and the median is set
against the median step, at the intervals of the configuration; --images is the size of the training
set, which says how many steps an epoch has. On a CPU the time is the process's own, so that other
work on the machine does not count; on a GPU it is the clock's, with the device's work done.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from vggdist.config import split_batch, steps_of_epochs
from vggdist.config_file import load_config
from vggdist.model.initialization import build_initialized
from vggdist.profiling.loops import synthetic_batch
from vggdist.profiling.timing import open_bench
from vggdist.terminal import render_table
from vggdist.training import engine as engine_module
from vggdist.training.metrics import MetricLog
from vggdist.training.step import Meter, train_step
from vggdist.training.system import SystemReadings
from vggdist.training.zero import build_engine

LIMIT = 0.005
VALUES = dict.fromkeys(("loss", "top1_error", "top5_error", "learning_rate", "data_wait"), 0.1)


class Stopwatch:
    """Times functions by name."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {}

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed_work(*args: Any) -> Any:
            started_at = self._now()
            result = work(*args)
            self.seconds.setdefault(name, []).append(self._now() - started_at)
            return result

        return timed_work

    def medians(self) -> Mapping[str, float]:
        # The first one is of cold caches, and of descriptions that are written once.
        return {name: statistics.median(times[1:]) for name, times in self.seconds.items()}

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args()
    config = load_config(None, arguments.overrides)
    with open_bench(config) as bench, tempfile.TemporaryDirectory() as folder:
        config, process = bench.config, bench.process
        split = split_batch(config.batch, process.world_size)
        network = build_initialized(config.model, config.data.crop_size, config.seed)
        engine = build_engine(network, config, split, process)
        watch, meter = Stopwatch(process.device), Meter(process.device)
        batches = [synthetic_batch(config, split.micro, process.device)] * split.accumulation_steps
        step = watch.timed("step", lambda: train_step(engine, batches, meter))
        plain = (engine._measure_norms, engine_module.histograms)
        log, system = MetricLog(Path(folder), 0), SystemReadings(process.device)
        norms = watch.timed("norms of weights and their change", engine.layer_norms)
        read = watch.timed("readings of host and device", system.read)
        write = watch.timed("a point of all curves", log.write)
        draw = watch.timed("histograms of weights", engine.weight_histograms)
        keep = watch.timed("writing the histograms", log.write_histograms)
        for number in range(1, arguments.rounds + 2):
            engine.measure_norm = engine.measure_histograms = False
            step()
            engine._measure_norms = watch.timed("norms of gradients", plain[0])
            engine_module.histograms = watch.timed("histograms of gradients", plain[1])
            engine.measure_norm = engine.measure_histograms = True
            train_step(engine, batches, meter)
            engine_module.histograms = plain[1]
            write("train", number, 0.1, VALUES, read() | norms())
            keep("weights", draw(), number)
        log.__exit__()
    medians = dict(watch.medians())
    of_step = medians.pop("step")
    per_epochs = config.log.histogram_every_epochs
    rare = steps_of_epochs(per_epochs, arguments.images, config.batch.global_)
    rows, together = [], 0.0
    for name, seconds in medians.items():
        interval = rare if "histogram" in name else config.log.every_steps
        share = seconds / interval / of_step
        together += share
        rows.append((name, f"{1e3 * seconds:.2f}", f"{interval:,}", f"{100 * share:.4f} %"))
    rows.append(("together", "", "", f"{100 * together:.4f} %"))
    print(render_table(("part", "ms", "every so many steps", "of a step"), rows))
    print(f"a step of {config.batch.global_} images: {1e3 * of_step:.1f} ms, on {process.device}")
    if together > LIMIT:
        raise SystemExit(f"that is more than {100 * LIMIT} % of a step")


if __name__ == "__main__":
    main()
