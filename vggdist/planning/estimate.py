"""A training on a cluster in numbers, before anything is started; no data and no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from vggdist.config import BatchConfig, BatchSplit, Config, split_batch
from vggdist.data.count import ImageCounts
from vggdist.errors import ConfigError
from vggdist.model.fitting import fitting_split
from vggdist.model.layer_costs import count_layers
from vggdist.model.memory import count_memory
from vggdist.planning.links import Cluster
from vggdist.planning.messages import Way, Work
from vggdist.planning.run import (
    Checkpoints,
    Run,
    Supply,
    estimate_checkpoints,
    estimate_run,
    estimate_supply,
)
from vggdist.planning.step import StepTime, compute_seconds, time_step

LARGEST_WORLD = 1024
MICRO_BATCHES = (16, 32, 64, 128, 256, 512)
WAYS: dict[str, Way] = {"all_reduce": "fp32_ring", "factors": "factors", "ours": "auto"}
"""Name in the table of efficiencies -> how gradients are sent."""


@dataclass(frozen=True)
class Estimate:
    """What a training would take.

    Attributes:
        step: as `Config.exchange` has it, without the wait for data.
        ways: the step by the names of `WAYS`.
        efficiency: by the number of ranks and the names of `WAYS`: images per second by so many
            times those of one rank alone. Worlds that cannot share the batch are left out.
        memory: bytes on each rank, by what they are for.
        micro_batches: what other micro batches would give on as many ranks, the global batch
            following: efficiency, images per second, bytes on each rank. Empty where the global
            batch is the configuration's.
        notes: what a reader should know of the figures.
    """

    config: Config
    cluster: Cluster
    work: Work
    step: StepTime
    ways: dict[str, StepTime]
    efficiency: dict[int, dict[str, float]]
    memory: dict[str, int]
    micro_batches: dict[int, dict[str, float]]
    supply: Supply
    checkpoints: Checkpoints
    images: ImageCounts
    run: Run
    notes: tuple[str, ...]

    @property
    def step_seconds(self) -> float:
        """With the wait for data."""
        return self.step.seconds + self.supply.data_wait_seconds

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        step, cluster = self.step, self.cluster
        return {
            "configuration": self.config.model.configuration,
            "crop_size": self.config.data.crop_size,
            "precision": self.config.resolved_precision,
            "device": {"name": cluster.device.name, "source": cluster.device.source},
            "network_gigabits_per_second": cluster.bits_per_second / 1e9,
            "nodes": cluster.nodes,
            "gpus_per_node": cluster.ranks_per_node,
            "world_size": cluster.world_size,
            "micro_batch": self.work.micro,
            "accumulation_steps": self.work.accumulation_steps,
            "global_batch": self.config.batch.global_,
            "step": {
                "seconds": self.step_seconds,
                "compute_seconds": step.compute_seconds,
                "straggling_seconds": step.straggling_seconds,
                "exchange_hidden_seconds": step.hidden_seconds,
                "exchange_exposed_seconds": step.exposed_seconds,
                "data_wait_seconds": self.supply.data_wait_seconds,
                "megabytes_sent_per_rank": step.sent_bytes / 1e6,
            },
            "exchange": step.ways,
            "efficiency": {str(world): values for world, values in self.efficiency.items()},
            "memory_bytes": self.memory,
            "micro_batches": {str(micro): values for micro, values in self.micro_batches.items()},
            "data": asdict(self.supply),
            "checkpoint": asdict(self.checkpoints),
            "images": asdict(self.images),
            "run": asdict(self.run),
            "notes": list(self.notes),
        }


def estimate_training(
    config: Config,
    cluster: Cluster,
    *,
    micro_batch: int | None = None,
    images: ImageCounts = ImageCounts(),  # noqa: B008 (frozen)
    num_cores: int | None = None,
) -> Estimate:
    """Estimates what a training would take.

    Args:
        config: the training; `data.root` is not looked at, and `precision: auto` is the fastest
            that the device has a figure for.
        cluster: where it would run.
        micro_batch: images on each rank and step, from which the global batch follows; none: the
            configuration's batch, shared by the ranks.
        images: how many there are.
        num_cores: CPU cores of a node; none: as the device says, else enough.

    Raises:
        ConfigError: the batch cannot be shared, or DeepSpeed exchanges the gradients.
    """
    if config.zero_stage:
        raise ConfigError(
            f"zero_stage is {config.zero_stage}, at which DeepSpeed exchanges gradients; `vggdist "
            "plan` knows our own exchange only, so set zero_stage=0."
        )
    if config.precision == "auto":
        config = config.model_copy(update={"precision": cluster.device.fastest_precision})
    layers = count_layers(config)

    def work_of(world_size: int) -> Work:
        batch = _batch(config, micro_batch, world_size)
        return Work.of_training(layers, config, _split(config, batch, world_size, cluster))

    work = work_of(cluster.world_size)
    batch = _batch(config, micro_batch, cluster.world_size)
    config = config.model_copy(update={"batch": batch})
    step = time_step(work, cluster, config.exchange)
    supply = estimate_supply(work.images_per_rank, cluster, step.seconds, num_cores)
    seconds = step.seconds + supply.data_wait_seconds
    checkpoints = estimate_checkpoints(work.layers, cluster.device, cluster.world_size, seconds)
    return Estimate(
        config=config,
        cluster=cluster,
        work=work,
        step=step,
        ways={name: time_step(work, cluster, way) for name, way in WAYS.items()},
        efficiency=dict(_efficiencies(work_of, cluster)),
        memory=count_memory(config, work.split(cluster.world_size), step.ways),
        micro_batches={} if micro_batch is None else _try_micro_batches(config, work, cluster),
        supply=supply,
        checkpoints=checkpoints,
        images=images,
        run=estimate_run(config, cluster.world_size, images, seconds, checkpoints.seconds),
        notes=tuple(_notes(config, cluster, supply, num_cores)),
    )


def _try_micro_batches(config: Config, work: Work, cluster: Cluster) -> dict[int, dict[str, float]]:
    """Larger ones hide more of the exchange, and take more memory."""
    tried = {}
    for micro in sorted({*MICRO_BATCHES, work.micro}):
        tried_work = replace(work, micro=micro)
        step = time_step(tried_work, cluster, config.exchange)
        memory = count_memory(config, tried_work.split(cluster.world_size), step.ways)
        tried[micro] = {
            "efficiency": step.compute_seconds / step.seconds,
            "images_per_second": micro * cluster.world_size / step.seconds,
            "memory_bytes": memory["total"],
        }
    return tried


def _split(config: Config, batch: BatchConfig, world_size: int, cluster: Cluster) -> BatchSplit:
    """As the training would divide its batch there."""
    config = config.model_copy(update={"batch": batch})
    device = cluster.device
    if device.cores_compute or not config.micro_follows_memory:
        return split_batch(batch, world_size)
    return fitting_split(config, world_size, 1e9 * device.memory_gigabytes)


def _batch(config: Config, micro_batch: int | None, world_size: int) -> BatchConfig:
    """The configuration's, or `micro_batch` images on each rank."""
    if micro_batch is None:
        return config.batch
    sizes = {"global_": micro_batch * world_size, "micro": micro_batch}
    return config.batch.model_copy(update=sizes)


def _efficiencies(
    work_of: Callable[[int], Work], cluster: Cluster
) -> Iterator[tuple[int, dict[str, float]]]:
    """Worlds from one rank up that can share the batch, and each way's efficiency there."""
    alone = work_of(1)
    rate = alone.images_per_rank / compute_seconds(alone, cluster)
    worlds = {1 << power for power in range(LARGEST_WORLD.bit_length())}
    for world_size in sorted(worlds | {cluster.world_size}):
        try:
            work = work_of(world_size)
        except ConfigError:
            continue
        machines = cluster.of_world(world_size)
        rates = {
            name: work.images_per_rank / time_step(work, machines, way).seconds
            for name, way in WAYS.items()
        }
        yield world_size, {name: own / rate for name, own in rates.items()}


def _notes(
    config: Config, cluster: Cluster, supply: Supply, num_cores: int | None
) -> Iterator[str]:
    device, precision = cluster.device, config.resolved_precision
    _, measured = device.teraflops(precision)
    if measured != precision:
        yield (
            f"{device.name} has no figure for {precision}; arithmetic counts as {measured}, "
            f"gradients are sent as in {precision}."
        )
    if num_cores is None and device.num_cores is None:
        yield (
            f"Data wait counts as none: that takes {supply.num_cores:.1f} CPU cores a node for "
            "decoding; say how many there are with --cores-per-node."
        )
