"""What others have published about data-parallel VGG-16, beside what we estimate.

None of these numbers is in the model, but for the rates of one device alone, which the
efficiencies are relative to. `python tests/planning/published.py` prints the tables of
docs/planning.md.
"""

from dataclasses import dataclass

from vggdist.config import Config
from vggdist.model.layer_costs import count_layers
from vggdist.planning.devices import DEVICES, Device
from vggdist.planning.links import Cluster
from vggdist.planning.messages import Work
from vggdist.planning.step import StepTime, time_step

HOROVOD = "Horovod, 4 Pascal a node, 25 Gb/s"
DGX_1 = "TensorFlow, DGX-1, P100"
PIPEDREAM = "PipeDream's BSP, V100, 10 Gb/s"


@dataclass(frozen=True)
class PublishedResult:
    """A published efficiency: images per second by so many times those of one device."""

    who: str
    source: str
    world_size: int
    images_per_rank: int
    efficiency: float
    required: bool = True
    """Whether the estimate has to come within 10 points; the others are shown as they are."""


RESULTS = (
    PublishedResult(HOROVOD, "docs/benchmarks", 512, 64, 0.68),
    PublishedResult(HOROVOD, "README of 2017", 128, 64, 0.79),
    PublishedResult(HOROVOD, "pull request 44", 16, 64, 1787.4 / (16 * 130.9), required=False),
    PublishedResult(DGX_1, "tensorflow.org, Benchmarks", 8, 64, 1081 / (8 * 154)),
    PublishedResult(DGX_1, "tensorflow.org, Benchmarks", 4, 64, 584 / (4 * 154), required=False),
    PublishedResult(DGX_1, "tensorflow.org, Benchmarks", 2, 64, 295 / (2 * 154), required=False),
    PublishedResult(DGX_1, "tensorflow.org, Benchmarks", 8, 32, 820 / (8 * 144), required=False),
    PublishedResult(PIPEDREAM, "arXiv:1806.03377", 8, 32, 1.36 / 8),
)

CLUSTERS = {
    HOROVOD: Cluster(128, 4, DEVICES["p100"], 25e9),
    DGX_1: Cluster(1, 8, DEVICES["p100"], 25e9),
    PIPEDREAM: Cluster(8, 1, DEVICES["v100"], 10e9),
}


def estimated(result: PublishedResult, device: Device | None = None) -> float:
    """The efficiency that we estimate for the cluster of a result, fp32 all-reduce."""
    cluster = CLUSTERS[result.who]
    if device is not None:
        cluster = Cluster(cluster.nodes, cluster.ranks_per_node, device, cluster.bits_per_second)
    step = simulated(cluster, result.world_size, result.images_per_rank, "fp32_ring")
    return step.compute_seconds / step.seconds


def simulated(cluster: Cluster, world_size: int, images_per_rank: int, way: str) -> StepTime:
    """A step of configuration D; the results are of fp32."""
    precision = "fp32" if way == "fp32_ring" else "bf16"
    work = Work(count_layers(Config()), precision, precision, precision, images_per_rank, 1)
    return time_step(work, cluster.of_world(world_size), way)  # type: ignore[arg-type]


def table() -> str:
    """The results as Markdown."""
    rows = [
        "| who | GPUs | images per GPU | published | estimate, fp32 all-reduce | difference |",
        "|---|---|---|---|---|---|",
    ]
    for result in RESULTS:
        estimate = estimated(result)
        difference = 100 * (estimate - result.efficiency)
        fails = " (fails)" if abs(difference) > 10 else ""
        rows.append(
            f"| {result.who} ({result.source}) | {result.world_size} | {result.images_per_rank} | "
            f"{100 * result.efficiency:.1f} % | {100 * estimate:.1f} % | {difference:+.1f}{fails} |"
        )
    return "\n".join(rows)


def table_of_ways() -> str:
    """What each way of exchange keeps on Horovod's hardware, as Markdown."""
    ways = ("fp32_ring", "factors", "all_reduce", "auto")
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
