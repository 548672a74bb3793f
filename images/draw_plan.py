"""plan.png: the plan of a training on the hardware of Horovod's record, drawn by `plan` itself."""

import json
from pathlib import Path

from vggdist.config import Config
from vggdist.planning.chart import draw_plan
from vggdist.planning.devices import DEVICES
from vggdist.planning.links import Cluster
from vggdist.planning.plan import make_plan


def draw(path: Path) -> None:
    """Writes the picture; its description is the table of efficiencies."""
    plan = make_plan(Config(), Cluster(128, 4, DEVICES["p100"], 25e9), micro_batch=64)
    efficiency = {
        world_size: {name: round(value, 3) for name, value in one.items()}
        for world_size, one in plan.efficiency.items()
    }
    draw_plan(plan, path, description=json.dumps(efficiency))
