"""An estimate as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from vggdist.model.configurations import configuration_name
from vggdist.planning.estimate import Estimate
from vggdist.terminal import counted, duration, render_table


def render_estimate(estimate: Estimate) -> str:
    """Its tables and notes."""
    parts = (_head, _step, _efficiency, _memory, _micro_batches, _needs)
    return "\n".join(line for part in parts for line in part(estimate))


def _head(estimate: Estimate) -> Iterator[str]:
    config, cluster, work = estimate.config, estimate.cluster, estimate.work
    between = f", {cluster.bits_per_second / 1e9:g} Gb/s between nodes"
    yield (
        f"configuration {configuration_name(config.model.configuration)}, "
        f"{config.data.crop_size} px, {config.resolved_precision}; "
        f"{counted(cluster.nodes, 'node')} of {counted(cluster.ranks_per_node, 'rank')}"
        f"{between if cluster.nodes > 1 else ''}"
    )
    yield (
        f"batch: {config.batch.global_} = {counted(cluster.world_size, 'rank')} x "
        f"{counted(work.accumulation_steps, 'micro batch', 'micro batches')} x "
        f"{counted(work.micro, 'image')}"
    )
    yield f"device of each rank: {cluster.device.name} ({cluster.device.source})\n"


def _step(estimate: Estimate) -> Iterator[str]:
    step, whole = estimate.step, estimate.step_seconds
    parts = {
        "arithmetic": step.compute_seconds,
        "waiting for the slowest rank": step.straggling_seconds,
        "exchange, not hidden": step.exposed_seconds,
        "waiting for data": estimate.supply.data_wait_seconds,
        "all": whole,
    }
    rows = [
        (name, f"{1e3 * seconds:.1f}", f"{100 * seconds / whole:.1f}%")
        for name, seconds in parts.items()
    ]
    yield render_table(("time of a step", "ms", "share"), rows)
    ways = ", ".join(f"{layer} {way}" for layer, way in step.ways.items())
    yield f"speed: {estimate.supply.images_per_second:,.0f} images/s"
    yield (
        f"exchange hidden behind the arithmetic: {1e3 * step.hidden_seconds:.1f} ms; "
        f"{step.sent_bytes / 1e6:,.0f} MB sent by each rank; {ways or 'nothing to exchange'}\n"
    )


def _efficiency(estimate: Estimate) -> Iterator[str]:
    yield "efficiency, % of as many ranks that exchange nothing"
    rows = [
        (
            f"{world_size}{' <' if world_size == estimate.cluster.world_size else ''}",
            *(f"{100 * values[way]:.1f}" for way in ("all_reduce", "factors", "ours")),
        )
        for world_size, values in estimate.efficiency.items()
    ]
    yield render_table(("ranks", "fp32 all-reduce", "factors", "ours"), rows) + "\n"


def _memory(estimate: Estimate) -> Iterator[str]:
    total, there = estimate.memory["total"] / 1e9, estimate.cluster.device.memory_gigabytes
    fits = "fits" if total < there else "DOES NOT FIT; take a smaller micro batch"
    yield f"memory of a rank: {total:.2f} GB of {there:g}, {fits}"
    parts = [
        f"{name.replace('_', ' ')} {size / 1e9:.2f}"
        for name, size in estimate.memory.items()
        if name != "total" and size
    ]
    yield f"  {', '.join(parts)}\n"


def _micro_batches(estimate: Estimate) -> Iterator[str]:
    if not estimate.micro_batches:
        return
    rows = []
    for micro, values in estimate.micro_batches.items():
        gigabytes = values["memory_bytes"] / 1e9
        too_large = gigabytes > estimate.cluster.device.memory_gigabytes
        rows.append(
            (
                f"{micro}{' <' if micro == estimate.work.micro else ''}",
                f"{micro * estimate.cluster.world_size:,}",
                f"{100 * values['efficiency']:.1f}",
                f"{values['images_per_second']:,.0f}",
                f"{gigabytes:.1f}",
                "too large" if too_large else "",
            )
        )
    head = ("micro batch", "global batch", "efficiency, %", "images/s", "GB a rank", "")
    yield render_table(head, rows) + "\n"


def _needs(estimate: Estimate) -> Iterator[str]:
    supply, checkpoints, run = estimate.supply, estimate.checkpoints, estimate.run
    yield (
        f"data: {supply.images_per_second_per_node:,.0f} images/s on each node, which is "
        f"{supply.megabytes_per_second_per_node:,.0f} MB/s from disk and "
        f"{supply.num_cores:.1f} CPU cores for decoding"
    )
    images = estimate.images
    yield (
        f"images: {images.num_train:,} for training, {images.num_val:,} for validation "
        f"({images.note})"
    )
    yield (
        f"run: {run.steps:,} steps, {run.epochs:.2f} epochs, {duration(3600 * run.hours)} "
        f"({run.device_hours:,.1f} GPU hours), evaluations "
        f"{duration(3600 * run.evaluation_hours)} and checkpoints "
        f"{duration(3600 * run.checkpoint_hours)} of it"
    )
    yield (
        f"checkpoints: {checkpoints.gigabytes:.2f} GB, copied in {checkpoints.seconds:.2f} s and "
        f"on the disk after {checkpoints.written_seconds:.1f} s; a failure in "
        f"{checkpoints.hours_between_failures:,.0f} h: least is lost with "
        f"checkpoint.every_steps={checkpoints.every_steps} "
        f"({duration(checkpoints.every_seconds)}), {100 * checkpoints.lost:.2f} %"
    )
    yield from (f"note: {note}" for note in estimate.notes)
