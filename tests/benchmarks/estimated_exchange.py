"""Estimated seconds of a step compared with those measured on two hosts with a limited cable.

    python tests/benchmarks/estimated_exchange.py MACHINE.json EXCHANGE.json ...

MACHINE is of `vggdist bench machine --ranks 2` at 64 px, EXCHANGE of `vggdist bench exchange`. The
estimate knows MACHINE and the cable's rate, and nothing of what EXCHANGE measured. Both want a
machine that does nothing else.

The estimate is about our own exchange. What DDP does besides is added here, from how it works: each
gradient is copied into a bucket, and the large ones, and the hook's 16-bit copies of them, lie in
memory that the system has just given, which ours does not need.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vggdist.config import split_batch
from vggdist.config_file import load_config
from vggdist.model.layer_costs import Layer, count_layers
from vggdist.planning.devices import Device, load_device
from vggdist.planning.links import Cluster, parse_rate
from vggdist.planning.messages import Way, Work
from vggdist.planning.step import StepTime, time_step

WAYS: dict[str, tuple[str, Way]] = {
    "ours": ("vggdist", "auto"),
    "ddp_fp32": ("torch DDP, fp32", "fp32_ring"),
    "ddp_bf16": ("torch DDP, bf16 hook", "all_reduce"),
}
RETURNED_BYTES = 32 << 20
"""Freed blocks from this size on are given back to the system by glibc (mallopt, M_MMAP_THRESHOLD),
smaller ones are kept; next time the large ones are fresh again."""

POOLED_SIDE = 7  # the benchmark pools conv5's maps to 7 x 7, as torchvision does


def estimated(device: Device, setting: dict[str, Any], name: str) -> StepTime:
    """A step of the benchmark's two hosts with a rank each; `name` of `WAYS`."""
    way = WAYS[name][1]
    config = load_config(
        None,
        [
            f"model.configuration={setting['configuration']}",
            f"data.crop_size={setting['crop_size']}",
            f"precision={setting['precision']}",
            f"exchange_precision={setting['exchange_precision']}",
            f"batch.global={2 * setting['images_per_rank']}",
        ],
    )
    layers = count_layers(config, POOLED_SIDE)
    work = Work.of_training(layers, config, split_batch(config.batch, 2))
    step = time_step(work, Cluster(2, 1, device, parse_rate(setting["rate"])), way)
    if name == "ours":
        return step
    more = seconds_of_ddp(device, layers, in_16_bits=name == "ddp_bf16")
    return replace(step, seconds=step.seconds + more)


def seconds_of_ddp(device: Device, layers: Sequence[Layer], *, in_16_bits: bool) -> float:
    """What DDP does to gradients on a CPU beside their exchange."""
    copied = fresh = 0
    for layer in layers:
        gradient = 4 * layer.num_parameters
        copied += 2 * gradient  # read, and written into the bucket
        fresh += gradient * (gradient >= RETURNED_BYTES)
        if in_16_bits:
            copied += gradient  # divided in 16 bits: read and written once more
            fresh += gradient // 2 * (gradient // 2 >= RETURNED_BYTES)
    return copied / device.memory_rate + fresh / 1e9 * device.fresh_seconds_per_gigabyte


def table(device: Device, results: list[dict[str, Any]]) -> str:
    """Measured and estimated, as Markdown."""
    rows = [
        "| cable | exchange | MB sent by a rank, measured | estimated | seconds of a step, "
        "measured | estimated | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for name, (label, _) in WAYS.items():
            if name not in result:
                continue
            step, measured = estimated(device, result["setting"], name), result[name]
            difference = 100 * (step.seconds / measured["seconds_per_step"] - 1)
            fails = " (fails)" if abs(difference) > 15 else ""
            rows.append(
                f"| {result['setting']['rate']} | {label} | "
                f"{measured['megabytes_per_step']:.1f} | {step.sent_bytes / 1e6:.1f} | "
                f"{measured['seconds_per_step']:.2f} | {step.seconds:.2f} | "
                f"{difference:+.0f} %{fails} |"
            )
    return "\n".join(rows)


def main() -> None:
    """Prints the table of the files on the command line."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    machine, *files = sys.argv[1:]
    results = [json.loads(Path(file).read_text(encoding="utf-8")) for file in files]
    print(table(load_device(machine), results))


if __name__ == "__main__":
    main()
