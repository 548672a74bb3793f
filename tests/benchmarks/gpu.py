#!/usr/bin/env python
"""Measures this machine's first GPU and writes every number to gpu.json; prints a Markdown table.

    python tests/benchmarks/gpu.py --data /data/imagenet
    python tests/benchmarks/gpu.py --device cpu --quick

Configuration D in the precision that the GPU computes natively, at micro batches 64 and 256: a
training step beside a bare PyTorch loop and a tuned one, the peak of memory, the step with
`compile` and with `cuda_graph`, the loader alone and both together; the loader at several shares of
the hardware decoder; dense and multi-crop evaluation; the pauses for checkpoints and evaluations;
and, with several GPUs, the exchange of gradients. The rows of the table are in the form of
docs/performance.md's. Some ten minutes.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks import pauses
from tests.machine import describe, driver, name_of
from tests.ranks import FORKS
from vggdist.config import split_batch
from vggdist.config_file import load_config
from vggdist.distributed import process as world
from vggdist.distributed.precision import resolve_precision
from vggdist.model.initialization import build_initialized
from vggdist.profiling.evaluation import measure_evaluation
from vggdist.profiling.images import TimedImages, open_training_images
from vggdist.profiling.loops import BareLoop, OurLoop, synthetic_batch
from vggdist.profiling.memory import held_bytes, peak_growth
from vggdist.profiling.sample import save_photo
from vggdist.profiling.step import measure_step
from vggdist.profiling.timing import open_bench, take_turns
from vggdist.training.graph import WARM_UP_STEPS

Result = dict[str, Any]
SETTINGS: dict[str, dict[str, bool]] = {
    "as it is": {},
    "compile": {"compile": True},
    "cuda_graph": {"cuda_graph": True},
    "both": {"compile": True, "cuda_graph": True},
}
COMMAND = "make bench-gpu"


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    overrides: tuple[str, ...] = ()
    """Of configuration D."""
    micros: tuple[int, ...] = (64, 256)
    shares: tuple[float, ...] = (0.65, 0.0, 0.35, 0.9, 1.0)
    """Of the hardware decoder, the default first."""
    rounds: int = 9
    loader_seconds: float = 3.0
    scale: int = 256
    """Q of the evaluation."""
    num_photos: int = 256
    shapes: tuple[tuple[int, int], ...] = ((500, 375), (375, 500), (500, 333))
    """Width and height of the made photos."""


QUICK = Size(
    overrides=(
        "model.configuration=[[3-8],[3-16]]",
        "model.fc_width=32",
        "data.crop_size=32",
        "data.train_scale_min=32",
        "data.train_scale_max=48",
    ),
    micros=(2, 4),
    shares=(0.65, 1.0),
    rounds=1,
    loader_seconds=0.1,
    scale=40,
    num_photos=8,
    shapes=((100, 75), (75, 100)),
)


def make_photos(folder: Path, size: Size) -> Path:
    """Class folders with one class of made photos."""
    for number in range(size.num_photos):
        shape = size.shapes[number % len(size.shapes)]
        save_photo(folder / "train" / "photos" / f"{number:03d}.jpg", *shape, seed=number)
    return folder


def settings(device: str, root: Path, size: Size, micro: int) -> list[str]:
    """Overrides of a training of one rank without accumulation."""
    batch = [f"batch.global={micro}", f"batch.micro={micro}"]
    return [*size.overrides, f"device={device}", f"data.root={root}", *batch]


def measure_training(overrides: Sequence[str], rounds: int) -> Result:
    """What `vggdist bench step` measures, and the peak of memory of each loop."""
    # One after the other in processes of their own: DeepSpeed knows one world in its life.
    step = in_own_process(measure_step, load_config(None, overrides), rounds)
    return step | {"peak_gigabytes": in_own_process(measure_memory, overrides)}


def measure_memory(overrides: Sequence[str]) -> dict[str, float]:
    """Loop -> GB that torch holds at the peak of a step, weights and momentum included.

    Of the GPU, or of the process, where it is an estimate.
    """
    config = load_config(None, overrides)
    peaks = {}
    with world.joined(config.device) as process:
        config, _ = resolve_precision(config, process)
        split = split_batch(config.batch, 1)
        batches = [synthetic_batch(config, split.micro, process.device)]

        def bare() -> BareLoop:
            network = build_initialized(config.model, config.data.crop_size, config.seed)
            return BareLoop(network, config, process.device)

        for name, build in {
            "bare": bare,
            "vggdist": lambda: OurLoop(config, split, process),
        }.items():
            before = held_bytes(process.device)
            loop = build()
            loop.step(batches)
            growth = peak_growth(lambda loop=loop: loop.step(batches), process.device)
            peaks[name] = (held_bytes(process.device) - before) / 1e9 + growth / 1e3
            del loop
            gc.collect()
    return peaks


def measure_settings(overrides: Sequence[str], rounds: int) -> Result:
    """Seconds of a training step with each of `SETTINGS`, in turn."""
    with open_bench(load_config(None, overrides)) as bench:
        batches = [synthetic_batch(bench.config, bench.split.micro, bench.process.device)]

        def way(name: str, changes: dict[str, bool]) -> Callable[[], dict[str, float]]:
            config = bench.config.model_copy(update=changes)
            loop = OurLoop(config, bench.split, bench.process)
            for _ in range(WARM_UP_STEPS + 1):
                loop.step(batches)
            return lambda: {name: bench.seconds(lambda: loop.step(batches))}

        ways = {name: way(name, changes) for name, changes in SETTINGS.items()}
        turns = take_turns(ways, rounds, bench.status)
        return {
            "configuration": bench.config.model.configuration,
            "crop_size": bench.config.data.crop_size,
            "precision": bench.config.resolved_precision,
            "micro_batch": bench.split.micro,
            "seconds": {
                name: statistics.median(row[name] for row in rows) for name, rows in turns.items()
            },
        }


def measure_loader(overrides: Sequence[str], shares: Sequence[float], seconds: float) -> Result:
    """Images per second of the loader alone at each share, and the memory that it takes."""
    rates, memory = {}, {}
    config = load_config(None, overrides)
    with world.joined(config.device) as process:
        config, _ = resolve_precision(config, process)
        split, images = split_batch(config.batch, 1), open_training_images(config)
        for share in shares:
            data = config.data.model_copy(update={"hardware_decoder_share": share})
            used = used_bytes(process.device)
            with TimedImages(
                images, config.model_copy(update={"data": data}), split, process
            ) as batches:
                batches.drain()
                num_batches, began_at = 0, time.perf_counter()
                while num_batches < 2 or time.perf_counter() < began_at + seconds:
                    next(batches)
                    num_batches += 1
                rates[f"{share:g}"] = num_batches * split.micro / (time.perf_counter() - began_at)
                memory[f"{share:g}"] = (used_bytes(process.device) - used) / 1e9
        cores = process.num_cores
    # DALI's pool keeps what a loader gives back, so that the first alone shows what one takes.
    return {
        "micro_batch": split.micro,
        "images_per_second": rates,
        "gigabytes": memory[f"{shares[0]:g}"],
        "cores": cores,
    }


def used_bytes(device: torch.device) -> int:
    """Of the GPU, by anybody; of this process without one."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total - free
    return held_bytes(device)


def measure_exchange(overrides: Sequence[str], rounds: int, num_gpus: int) -> Result:
    """`vggdist bench step` on all GPUs, gradients all-reduced or as factors."""
    found = {}
    for exchange in ("all_reduce", "factors"):
        with tempfile.NamedTemporaryFile(suffix=".json") as out:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command += ["--nproc-per-node", str(num_gpus), "-m", "vggdist.cli", "bench", "step"]
            command += ["--rounds", str(rounds), "--json", out.name, *overrides]
            # The table that it prints is not ours.
            subprocess.run([*command, f"exchange={exchange}"], check=True, stdout=sys.stderr)
            found[exchange] = json.loads(Path(out.name).read_text())
    return found


def in_own_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Its result; the GPU's memory is free again afterwards."""
    # No fork uses CUDA once its parent has asked for a GPU.
    context = get_context("spawn") if torch.cuda.is_available() else FORKS
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def measure_all(device: str, root: Path, size: Size) -> Result:
    """Everything; what fails is an error in its place."""
    num_gpus = torch.cuda.device_count() if device == "cuda" else 0
    works: dict[str, Callable[[], Result]] = {}
    for number, micro in enumerate(size.micros):
        given = settings(device, root, size, micro)
        shares = size.shares if number == 0 else size.shares[:1]
        works[f"training, micro batch {micro}"] = partial(measure_training, given, size.rounds)
        if number == 0:  # where the host has most to do for each image
            works[f"settings, micro batch {micro}"] = partial(
                in_own_process, measure_settings, given, size.rounds
            )
        works[f"loader, micro batch {micro}"] = partial(
            in_own_process, measure_loader, given, shares, size.loader_seconds
        )
    first = settings(device, root, size, size.micros[0])
    works["evaluation"] = partial(
        in_own_process,
        measure_evaluation,
        load_config(None, first),
        root,
        size.scale,
        size.rounds,
    )
    works["pauses"] = partial(
        pauses.measure_pauses, first, size.rounds, 1, size.num_photos, size.shapes
    )
    if num_gpus > 1:
        several = [*first, f"batch.global={size.micros[0] * num_gpus}"]
        works["exchange"] = partial(measure_exchange, several, size.rounds, num_gpus)
    measured: Result = {}
    for name, work in works.items():
        sys.stderr.write(f"-- {name}\n")
        try:
            measured[name] = work()
        except Exception:
            measured[name] = {"error": traceback.format_exc()}
            sys.stderr.write(measured[name]["error"])
    return measured


def rows(measured: Result) -> list[tuple[str, str]]:
    """Results and numbers, as docs/performance.md has them."""
    found = []
    for name, result in measured.items():
        if "error" in result:
            found.append((name, f"failed: {result['error'].strip().splitlines()[-1]}"))
        elif name.startswith("training"):
            found += training_rows(result)
        elif name.startswith("settings"):
            found.append(settings_row(result))
        elif name.startswith("loader"):
            found += loader_rows(result)
        elif name == "evaluation":
            found += evaluation_rows(result)
        elif name == "pauses":
            found += pauses.rows(result)
        else:
            found += exchange_rows(result)
    return found


def training_rows(result: Result) -> list[tuple[str, str]]:
    micro = result["micro_batch"]
    what = f"({network_of(result)}, micro batch {micro}, one rank)"
    ours, bare, tuned = (result[f"{name}_seconds"] for name in ("vggdist", "bare", "tuned"))
    loops = f"{micro / ours:.0f} / {micro / bare:.0f}"
    name = "images/s of a training step, vggdist / bare PyTorch loop"
    if tuned is not None:
        loops += f" / {micro / tuned:.0f}"
        name += " / the same with " + ", ".join(result["tuned_settings"])
    together = [result[f"{part}_images_per_second"] for part in ("loader", "step", "together")]
    peaks = result["peak_gigabytes"]
    return [
        (f"{name} {what}", f"{loops}; vggdist / bare {bare / ours:.2f}"),
        (
            f"model FLOP utilization of a training step {what}",
            f"{100 * result['model_flop_utilization']:.1f} % of {result['peak']}",
        ),
        (
            f"images/s, loader alone / step alone / both together {what}",
            " / ".join(f"{rate:.0f}" for rate in together)
            + f"; data wait {100 * result['data_wait']:.0f} %",
        ),
        (
            f"peak memory of a training step, vggdist / bare PyTorch loop {what}",
            f"{peaks['vggdist']:.1f} / {peaks['bare']:.1f} GB",
        ),
    ]


def settings_row(result: Result) -> tuple[str, str]:
    micro, seconds = result["micro_batch"], result["seconds"]
    return (
        f"images/s of a training step: {' / '.join(seconds)} ({network_of(result)}, micro batch "
        f"{micro}, one rank)",
        " / ".join(f"{micro / own:.0f}" for own in seconds.values()),
    )


def loader_rows(result: Result) -> list[tuple[str, str]]:
    rates = sorted(result["images_per_second"].items())
    what = f"(micro batch {result['micro_batch']}, {result['cores']} cores)"
    shares = ", ".join(share for share, _ in rates)
    first = next(iter(result["images_per_second"]))
    return [
        (
            f"images/s of the loader alone, hardware decoder's share {shares} {what}",
            ", ".join(f"{rate:.0f}" for _, rate in rates),
        ),
        (f"memory of the loader, share {first} {what}", f"{result['gigabytes']:.1f} GB"),
    ]


def evaluation_rows(result: Result) -> list[tuple[str, str]]:
    what = f"({result['configuration']}, Q = {result['scale']}, {result['precision']})"
    return [
        (
            f"dense evaluation, vggdist / one image and its mirror image at a time {what}",
            f"{1 / result['dense']:.0f} / {1 / result['one_at_a_time']:.0f} images/s = "
            f"{result['ratios']['one_at_a_time']:.2f}",
        ),
        (
            f"multi-crop, shared layers / each crop by itself {what}",
            f"{result['ratios']['multi_crop_plain']:.2f}",
        ),
        (
            "memory of a dense pass: measured, expected",
            f"{result['peak_growth_megabytes']:.0f} MB, {result['expected_megabytes']:.0f} MB",
        ),
    ]


def exchange_rows(result: Result) -> list[tuple[str, str]]:
    found = []
    for exchange, one in result.items():
        found.append(
            (
                f"images/s of a training step on {one['world_size']} GPUs, exchange={exchange} / "
                f"without exchange ({network_of(one)}, micro batch {one['micro_batch']})",
                f"{one['step_images_per_second']:.0f} / {one['no_exchange_images_per_second']:.0f}",
            )
        )
    return found


def network_of(result: Result) -> str:
    return f"{result['configuration']}, {result['crop_size']} px, {result['precision']}"


def table(measured: Result, machine: str, day: str) -> str:
    """Markdown in the columns of docs/performance.md."""
    lines = ["| result | number | machine | date | command |", "|---|---|---|---|---|"]
    lines += [
        f"| {result} | {number} | {machine} | {day} | `{COMMAND}` |"
        for result, number in rows(measured)
    ]
    return "\n".join(lines)


def main() -> int:
    """Measures, writes, prints; 1 where something failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, metavar="ROOT", help="images (default: 256 made photos)"
    )
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), metavar="FILE")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a tiny network, 8 photos and one round: shows that everything runs, in a minute, and "
        "measures nothing worth knowing",
    )
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            "there is no NVIDIA GPU that torch can use here; --device cpu tries the script"
        )
    size = QUICK if arguments.quick else Size()
    device = (
        torch.device(arguments.device, 0) if arguments.device == "cuda" else torch.device("cpu")
    )
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.data or make_photos(Path(folder), size)
        measured = measure_all(arguments.device, root, size)
    day = date.today().isoformat()
    report = {
        "date": day,
        "machine": describe(device),
        "images": str(arguments.data or f"{size.num_photos} made photos"),
        "quick": arguments.quick,
        "measured": measured,
    }
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    machine = f"{name_of(device)}, driver {driver()}"
    print(table(measured, machine, day))
    sys.stderr.write(f"Every number is in {arguments.out}.\n")
    return int(any("error" in result for result in measured.values()))


if __name__ == "__main__":
    sys.exit(main())
