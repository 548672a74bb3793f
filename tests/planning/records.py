"""What others have published about data-parallel VGG-16, beside what a plan says of it.

None of these numbers is in the plan's model, but for the rates of one device alone, which the
efficiencies are relative to. `python tests/planning/records.py` prints the tables of
docs/planning.md.
"""

from dataclasses import dataclass

from vggdist.config import Config
from vggdist.planning.devices import DEVICES, Device
from vggdist.planning.exchange import Work
from vggdist.planning.links import Cluster
from vggdist.planning.network import plan_layers
from vggdist.planning.step import StepTime, time_step

HOROVOD = "Horovod, 4 Pascal a node, 25 Gb/s"
DGX_1 = "TensorFlow, DGX-1, P100"
PIPEDREAM = "PipeDream's BSP, V100, 10 Gb/s"


@dataclass(frozen=True)
class Record:
    """A published efficiency: images per second by so many times those of one device."""

    who: str
    source: str
    world_size: int
    images_per_rank: int
    efficiency: float
    required: bool = True
    """Whether the plan has to come within 10 points; the others are shown as they are."""


RECORDS = (
    Record(HOROVOD, "docs/benchmarks", 512, 64, 0.68),
    Record(HOROVOD, "README of 2017", 128, 64, 0.79),
    Record(HOROVOD, "pull request 44", 16, 64, 1787.4 / (16 * 130.9), required=False),
    Record(DGX_1, "tensorflow.org, Benchmarks", 8, 64, 1081 / (8 * 154)),
    Record(DGX_1, "tensorflow.org, Benchmarks", 4, 64, 584 / (4 * 154), required=False),
    Record(DGX_1, "tensorflow.org, Benchmarks", 2, 64, 295 / (2 * 154), required=False),
    Record(DGX_1, "tensorflow.org, Benchmarks", 8, 32, 820 / (8 * 144), required=False),
    Record(PIPEDREAM, "arXiv:1806.03377", 8, 32, 1.36 / 8),
)

CLUSTERS = {
    HOROVOD: Cluster(128, 4, DEVICES["p100"], 25e9),
    DGX_1: Cluster(1, 8, DEVICES["p100"], 25e9),
    PIPEDREAM: Cluster(8, 1, DEVICES["v100"], 10e9),
}


def planned(record: Record, device: Device | None = None) -> float:
    """The efficiency that a plan has for a record's cluster, fp32 all-reduce."""
    cluster = CLUSTERS[record.who]
    if device is not None:
        cluster = Cluster(cluster.nodes, cluster.ranks_per_node, device, cluster.bits_per_second)
    step = simulated(cluster, record.world_size, record.images_per_rank, "record")
    return step.compute_seconds / step.seconds


def simulated(cluster: Cluster, world_size: int, images_per_rank: int, way: str) -> StepTime:
    """A step of configuration D; the records are of fp32."""
    precision = "fp32" if way == "record" else "bf16"
    work = Work(plan_layers(Config()), precision, precision, precision, images_per_rank, 1)
    return time_step(work, cluster.of_world(world_size), way)  # type: ignore[arg-type]


def table() -> str:
    """The records as Markdown."""
    rows = [
        "| who | GPUs | images per GPU | published | plan, fp32 all-reduce | difference |",
        "|---|---|---|---|---|---|",
    ]
    for record in RECORDS:
        plan = planned(record)
        difference = 100 * (plan - record.efficiency)
        fails = " (fails)" if abs(difference) > 10 else ""
        rows.append(
            f"| {record.who} ({record.source}) | {record.world_size} | {record.images_per_rank} | "
            f"{100 * record.efficiency:.1f} % | {100 * plan:.1f} % | {difference:+.1f}{fails} |"
        )
    return "\n".join(rows)


def table_of_ways() -> str:
    """What each way of exchange keeps on Horovod's hardware, as Markdown."""
    ways = ("record", "factors", "all_reduce", "auto")
    rows = [
        "| GPUs | fp32 all-reduce | factors | 16-bit all-reduce | auto |",
        "|---|---|---|---|---|",
    ]
    for world_size in (4, 8, 16, 32, 64, 128, 512, 1024):
        steps = [simulated(CLUSTERS[HOROVOD], world_size, 64, way) for way in ways]
        shares = [f"{100 * step.compute_seconds / step.seconds:.1f}" for step in steps]
        rows.append(f"| {world_size} | {' | '.join(shares)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
    print(table_of_ways())
