"""plan.png: what `vggdist plan` draws for the hardware of Horovod's published result."""

import json
from pathlib import Path

from vggdist.config import Config
from vggdist.planning.chart import draw_estimate
from vggdist.planning.devices import DEVICES
from vggdist.planning.estimate import estimate_training
from vggdist.planning.links import Cluster


def draw(path: Path) -> None:
    """Writes the picture; its description is the table of efficiencies."""
    estimate = estimate_training(Config(), Cluster(128, 4, DEVICES["p100"], 25e9), micro_batch=64)
    efficiency = {
        world_size: {name: round(value, 3) for name, value in values.items()}
        for world_size, values in estimate.efficiency.items()
    }
    draw_estimate(estimate, path, description=json.dumps(efficiency))
