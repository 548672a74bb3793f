"""A plan as text for a terminal."""

from __future__ import annotations

from vggdist.planning.plan import Plan
from vggdist.terminal import duration


def render_plan(plan: Plan) -> str:
    """The tables of a plan, and its notes."""
    return "\n".join(
        [
            *_head(plan),
            "",
            *_step(plan),
            "",
            *_efficiency(plan),
            "",
            *_memory(plan),
            "",
            *_micro_batches(plan),
            *_needs(plan),
            *(f"note: {note}" for note in plan.notes),
        ]
    )


def _head(plan: Plan) -> list[str]:
    config, cluster, work = plan.config, plan.cluster, plan.work
    name = config.model.configuration
    return [
        f"configuration {name if isinstance(name, str) else 'custom'}, {config.data.crop_size} px, "
        f"{config.resolved_precision}; {cluster.nodes} nodes x {cluster.ranks_per_node} "
        f"{cluster.device.name}, {cluster.bits_per_second / 1e9:g} Gb/s between nodes",
        f"batch: {config.batch.global_} = {work.micro} x {work.accumulation_steps} accumulation "
        f"steps x {cluster.world_size} ranks",
        f"device: {cluster.device.source}",
    ]


def _step(plan: Plan) -> list[str]:
    step = plan.step
    parts = {
        "arithmetic": step.compute_seconds,
        "waiting for the slowest rank": step.straggling_seconds,
        "exchange, not hidden": step.exposed_seconds,
        "waiting for data": plan.supply.data_wait_seconds,
    }
    rows = [f"{'time of a step':<32}{'ms':>10}{'share':>9}"]
    for name, seconds in parts.items():
        share = 100 * seconds / plan.step_seconds
        rows.append(f"{name:<32}{1e3 * seconds:>10.1f}{share:>8.1f}%")
    ways = ", ".join(f"{layer} {way}" for layer, way in step.ways.items())
    return [
        *rows,
        f"{'all':<32}{1e3 * plan.step_seconds:>10.1f}   "
        f"{plan.supply.images_per_second:,.0f} images/s",
        f"exchange hidden behind the arithmetic: {1e3 * step.hidden_seconds:.1f} ms; "
        f"{step.sent_bytes / 1e6:,.0f} MB sent by each rank; {ways or 'nothing to exchange'}",
    ]


def _efficiency(plan: Plan) -> list[str]:
    rows = [
        "efficiency, % of as many ranks that exchange nothing",
        f"{'ranks':>8}{'fp32 all-reduce':>18}{'factors':>12}{'ours':>12}",
    ]
    for world_size, one in plan.efficiency.items():
        mark = " <" if world_size == plan.cluster.world_size else ""
        rows.append(
            f"{world_size:>8}{100 * one['all_reduce']:>18.1f}{100 * one['factors']:>12.1f}"
            f"{100 * one['ours']:>12.1f}{mark}"
        )
    return rows


def _memory(plan: Plan) -> list[str]:
    parts = [
        f"{name.replace('_', ' ')} {size / 1e9:.2f}"
        for name, size in plan.memory.items()
        if name != "total" and size
    ]
    total, there = plan.memory["total"] / 1e9, plan.cluster.device.memory_gigabytes
    fits = "fits" if total < there else "DOES NOT FIT; take a smaller micro batch"
    return [
        f"memory of a rank: {total:.2f} GB of {there:g}, {fits}",
        f"  {', '.join(parts)}",
    ]


def _micro_batches(plan: Plan) -> list[str]:
    if not plan.micro_batches:
        return []
    there = plan.cluster.device.memory_gigabytes
    rows = [
        f"{'micro batch':>12}{'global batch':>14}{'efficiency, %':>15}{'images/s':>12}"
        f"{'GB a rank':>11}"
    ]
    for micro, one in plan.micro_batches.items():
        gigabytes = one["memory_bytes"] / 1e9
        marks = " <" * (micro == plan.work.micro) + " too large" * (gigabytes > there)
        rows.append(
            f"{micro:>12}{micro * plan.cluster.world_size:>14,}{100 * one['efficiency']:>15.1f}"
            f"{one['images_per_second']:>12,.0f}{gigabytes:>11.1f}{marks}"
        )
    return [*rows, ""]


def _needs(plan: Plan) -> list[str]:
    supply, checkpoints, run = plan.supply, plan.checkpoints, plan.run
    return [
        f"data: {supply.images_per_second_per_node:,.0f} images/s on each node, which is "
        f"{supply.megabytes_per_second_per_node:,.0f} MB/s from disk and "
        f"{supply.num_cores:.1f} CPU cores for decoding",
        f"run: {run.steps:,} steps, {run.epochs:.1f} epochs, {duration(3600 * run.hours)} "
        f"({run.device_hours:,.1f} GPU hours), evaluations "
        f"{duration(3600 * run.evaluation_hours)} and checkpoints "
        f"{duration(3600 * run.checkpoint_hours)} of it",
        f"checkpoints: {checkpoints.gigabytes:.2f} GB in {checkpoints.seconds:.1f} s; a failure in "
        f"{checkpoints.hours_between_failures:,.0f} h: least is lost with "
        f"checkpoint.every_steps={checkpoints.every_steps} "
        f"({duration(checkpoints.every_seconds)}), {100 * checkpoints.lost:.2f} %",
    ]
