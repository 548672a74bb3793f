"""What `exchange: auto` takes, beside the best of all ways of sending fc6, fc7 and fc8.

Both by the cost model: `auto` decides by the speeds that a training would measure on such machines,
the best way is the one whose simulated step is the shortest. `python tests/planning/best_ways.py`
prints the table of docs/planning.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

from vggdist.config import FULLY_CONNECTED, BatchConfig, Config, split_batch
from vggdist.config_file import load_config
from vggdist.distributed.traffic import layer_traffic
from vggdist.model.layer_costs import count_layers
from vggdist.planning.devices import DEVICES
from vggdist.planning.links import Cluster
from vggdist.planning.messages import Work, choose_ways
from vggdist.planning.step import compute_seconds, simulate_step

WORLDS = tuple(2**power for power in range(1, 11))


@dataclass(frozen=True)
class Network:
    """Machines of a column, as many as a world needs.

    Attributes:
        precision: of the arithmetic and of what is sent.
        micro: images of each rank.
    """

    title: str
    cluster: Cluster
    precision: str
    micro: int


def _network(
    title: str, device: str, ranks_per_node: int, gigabits: int, precision: str, micro: int
) -> Network:
    cluster = Cluster(max(WORLDS), ranks_per_node, DEVICES[device], gigabits * 1e9)
    return Network(title, cluster, precision, micro)


P100 = _network("4 P100 a node, 25 Gb/s", "p100", 4, 25, "bf16", 64)
NETWORKS = (
    _network("2 CPU cores, 1 Gb/s", "cpu", 1, 1, "fp32", 16),
    _network("1 V100 a node, 10 Gb/s", "v100", 1, 10, "fp16", 64),
    P100,
    _network("8 H100 a node, 400 Gb/s", "h100", 8, 400, "bf16", 64),
)


@dataclass(frozen=True)
class Comparison:
    """Efficiencies of a step: one rank's time alone by that of each of many.

    Attributes:
        ways: that `auto` takes.
        fewest_bytes: of the ways with the fewest bytes.
    """

    ways: Mapping[str, str]
    auto: float
    best: float
    fewest_bytes: float

    @property
    def loss(self) -> float:
        return self.best - self.auto


def work_of(config: Config, world_size: int, micro: int) -> Work:
    """A step of one micro batch."""
    batch = BatchConfig.model_validate({"global": micro * world_size, "micro": micro})
    return Work.of_training(count_layers(config), config, split_batch(batch, world_size))


def compare(work: Work, cluster: Cluster) -> Comparison:
    """Tries all ways."""
    alone = compute_seconds(work, cluster)

    def efficiency(ways: Mapping[str, str]) -> float:
        return alone / simulate_step(work, cluster, ways).seconds

    ways = choose_ways(work, cluster, "auto")
    return Comparison(
        ways,
        efficiency(ways),
        max(
            efficiency(dict(zip(FULLY_CONNECTED, choice, strict=True)))
            for choice in product(("all_reduce", "factors"), repeat=len(FULLY_CONNECTED))
        ),
        efficiency(_fewest_bytes(work, cluster.world_size)),
    )


def _fewest_bytes(work: Work, world_size: int) -> dict[str, str]:
    traffic = [
        layer_traffic(
            layer.name,
            *layer.matrix,
            images_per_rank=work.images_per_rank,
            world_size=world_size,
            precision=work.exchange_precision,
            factor_precision=work.factor_precision,
        )
        for layer in work.layers
        if layer.matrix is not None
    ]
    return {
        layer.name: "factors" if layer.factors < layer.all_reduce else "all_reduce"
        for layer in traffic
    }


def compare_all() -> dict[tuple[str, int], Comparison]:
    """By the title of the network and the number of ranks."""
    return {
        (network.title, world_size): compare(
            work_of(
                load_config(None, [f"precision={network.precision}"]), world_size, network.micro
            ),
            network.cluster.of_world(world_size),
        )
        for network in NETWORKS
        for world_size in WORLDS
    }


def table(cells: Mapping[tuple[str, int], Comparison]) -> str:
    """As Markdown: the layers that are sent as factors, efficiency with `auto`, the best one."""
    titles = [network.title for network in NETWORKS]
    rows = [f"| ranks | {' | '.join(titles)} |", "|---" * (1 + len(titles)) + "|"]
    for world_size in WORLDS:
        row = [_cell(cells[title, world_size]) for title in titles]
        rows.append(f"| {world_size} | {' | '.join(row)} |")
    return "\n".join(rows)


def _cell(comparison: Comparison) -> str:
    layers = [name for name in FULLY_CONNECTED if comparison.ways[name] == "factors"]
    names = "all" if len(layers) == len(FULLY_CONNECTED) else ", ".join(layers) or "none"
    return f"{names}: {100 * comparison.auto:.1f} of {100 * comparison.best:.1f}"


def summary(cells: Mapping[tuple[str, int], Comparison]) -> str:
    """What the text below the table says of it."""
    largest = max(comparison.loss for comparison in cells.values())
    p100 = cells[P100.title, 64]
    return (
        f"`auto` loses {100 * largest:.2f} points at most. 64 P100s at 25 Gb/s keep "
        f"{100 * p100.auto:.1f} %, with the fewest bytes {100 * p100.fewest_bytes:.1f} %."
    )


if __name__ == "__main__":
    found = compare_all()
    print(table(found))
    print(summary(found))
