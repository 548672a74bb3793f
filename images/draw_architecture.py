"""`architecture.png`: the house, from the imports that stand in the code."""

import ast
import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import drawing as d
from matplotlib.axes import Axes
from matplotlib.patches import Polygon

ROOT = Path(__file__).resolve().parent.parent

FLOORS = {
    6: "people",
    5: "one process",
    4: "training",
    3: "images in,\nposteriors out",
    2: "model",
    1: "parts",
    0: "words and\nnumbers",
}
LEVELS = {
    "launch": 6,
    "vggdist.cli": 6,
    "vggdist.commands": 6,
    "vggdist.compute_posteriors": 5,
    "vggdist.evaluate": 5,
    "vggdist.evaluated_images": 5,
    "vggdist.evaluation_report": 5,
    "vggdist.features": 5,
    "vggdist.planning": 5,
    "vggdist.predict": 5,
    "vggdist.pretrain": 5,
    "vggdist.rank": 5,
    "vggdist.run_report": 5,
    "vggdist.trained": 5,
    "vggdist.training_data": 5,
    "vggdist.benchmark": 5,
    "vggdist.cluster": 5,
    "vggdist.training": 4,
    "vggdist.data": 3,
    "vggdist.evaluation": 3,
    "vggdist.model": 2,
    "vggdist.layers": 1,
    "vggdist.distributed": 1,
    "vggdist.config": 0,
    "vggdist.config_file": 0,
    "vggdist.contents": 0,
    "vggdist.entry": 0,
    "vggdist.errors": 0,
    "vggdist.names": 0,
    "vggdist.paths": 0,
    "vggdist.data.color": 0,
    "vggdist.data.geometry": 0,
    "vggdist.data.plan": 0,
    "vggdist.model.configurations": 0,
}
"""Level of a module or of all modules of a package; the longest name that fits counts."""

CLOSED = {"vggdist.commands", "vggdist.planning"}
"""Packages that are drawn as a room: what is in them is of no interest here."""

DOORS = {
    "nvidia.dali": "DALI",
    "deepspeed": "DeepSpeed",
    "torch.utils.tensorboard": "TensorBoard",
    "onnxruntime": "ONNX",
    "sklearn": "scikit-learn",
    "submitit": "submitit",
    "torchvision": "torchvision",
    "pydantic": "pydantic",
    "yaml": "YAML",
}
"""Heavy libraries that are marked in the rooms that import them."""


@dataclass(frozen=True)
class Place:
    """Where the rooms of a package on one level are drawn, in inches."""

    x: float
    width: float
    columns: int
    color: str


WIDTH = 11.6
LEFT, RIGHT, EDGE = 1.75, 8.2, 11.3
PLACES = {
    ("launch", 6): Place(LEFT, 3.9, 3, d.GRAY),
    ("vggdist", 6): Place(LEFT + 4.1, RIGHT - LEFT - 2.1, 2, d.GRAY),
    ("vggdist", 5): Place(LEFT + 2.6, 3.65, 3, d.GRAY),
    ("vggdist.cluster", 5): Place(LEFT, 2.4, 2, d.ORANGE),
    ("vggdist.benchmark", 5): Place(RIGHT, EDGE - RIGHT, 2, d.TEAL),
    ("vggdist.training", 4): Place(LEFT, 6.2, 5, d.RED),
    ("vggdist.data", 3): Place(LEFT, 3.95, 4, d.BLUE),
    ("vggdist.evaluation", 3): Place(LEFT + 4.15, 3.1, 3, d.ORANGE),
    ("vggdist.model", 2): Place(RIGHT, EDGE - RIGHT, 3, d.PURPLE),
    ("vggdist.layers", 1): Place(RIGHT, EDGE - RIGHT, 2, d.GREEN),
    ("vggdist.distributed", 1): Place(LEFT + 4.15, 1.65, 1, d.GRAY),
    ("vggdist.data", 0): Place(LEFT, 2.85, 3, d.BLUE),
    ("vggdist", 0): Place(LEFT + 3.15, 3.05, 3, d.GRAY),
    ("vggdist.model", 0): Place(RIGHT, EDGE - RIGHT, 1, d.PURPLE),
}
Apartment = tuple[str, int]


def read_imports() -> dict[str, tuple[str, ...]]:
    """Every room of `vggdist` and `launch` -> what it imports: other rooms and doors.

    A room is a module, a package within a package, or a closed package.
    """
    files = sorted((ROOT / "vggdist").rglob("*.py")) + sorted((ROOT / "launch").glob("*.py"))
    modules = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts): file
        for file in files
        if file.name != "__init__.py"
    }
    imports: dict[str, set[str]] = {}
    for module, file in modules.items():
        named: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                named |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        own = {_room(name) for name in named & modules.keys()} - {_room(module)}
        doors = {
            door
            for door in DOORS
            if any(name == door or name.startswith(door + ".") for name in named)
        }
        imports[_room(module)] = imports.get(_room(module), set()) | own | doors
    return {room: tuple(sorted(used)) for room, used in imports.items()}


def _room(module: str) -> str:
    """vggdist.data.preparation for all modules in it."""
    names = module.split(".")
    package = ".".join(names[:2])
    return package if package in CLOSED else ".".join(names[:3])


def level(module: str) -> int:
    """Which floor a module is on."""
    names = module.split(".")
    for length in range(len(names), 0, -1):
        if ".".join(names[:length]) in LEVELS:
            return LEVELS[".".join(names[:length])]
    raise ValueError(f"{module} has no level; give it one in LEVELS of images/draw_architecture.py")


def apartment(module: str) -> Apartment:
    """The package of a module, and its floor."""
    return module.rpartition(".")[0], level(module)


def find_arrows(imports: dict[str, tuple[str, ...]]) -> list[tuple[Apartment, Apartment]]:
    """Imports between apartments, without those that follow from a chain of others.

    Raises:
        ValueError: a module imports from a higher level.
    """
    edges = set()
    for module, used in imports.items():
        for other in used:
            if other not in imports:
                continue
            if level(other) > level(module):
                raise ValueError(
                    f"{module} (level {level(module)}) imports {other}, which is above"
                )
            if apartment(other) != apartment(module):
                edges.add((apartment(module), apartment(other)))
    reach = set(edges)
    nodes = sorted({node for edge in edges for node in edge})
    for middle, start, end in product(nodes, nodes, nodes):
        if (start, middle) in reach and (middle, end) in reach:
            reach.add((start, end))
    return sorted(
        (start, end)
        for start, end in edges
        if not any((start, middle) in reach and (middle, end) in reach for middle in nodes)
    )


ROOM, ROOM_GAP, HEAD, FOOT, STOREY_GAP, ROOF = 0.34, 0.06, 0.29, 0.09, 0.36, 0.5
ROUTES = {
    # start and end of an arrow between apartments that do not stand above each other: where it
    # leaves, where it arrives (inches), and how far down the gap below its start it turns
    (("vggdist", 6), ("vggdist.cluster", 5)): (LEFT + 4.6, LEFT + 1.2, 0.5),
    (("vggdist.training", 4), ("vggdist.model", 2)): (LEFT + 6.0, RIGHT + 1.55, 0.5),
    (("vggdist.evaluation", 3), ("vggdist.data", 0)): (LEFT + 4.4, LEFT + 2.5, 0.5),
    (("vggdist.benchmark", 5), ("vggdist.training", 4)): (RIGHT + 0.35, LEFT + 5.6, 0.7),
    (("vggdist.model", 2), ("vggdist", 0)): (RIGHT + 0.35, LEFT + 6.0, 0.5),
}


def draw(path: Path) -> None:
    """Draws the house; the picture's Description holds its rooms and arrows."""
    imports = read_imports()
    arrows = find_arrows(imports)
    rooms: dict[Apartment, list[str]] = {}
    for module in imports:
        rooms.setdefault(apartment(module), []).append(module)
    for missing in rooms.keys() - PLACES.keys():
        raise ValueError(f"{missing} has no place; give it one in images/draw_architecture.py")
    bottoms, tops = _floors(rooms)
    height = tops[6] + STOREY_GAP / 2 + ROOF + 0.78
    figure, axes = d.canvas(WIDTH, height)
    d.text(axes, 0.15, height - 0.3, "The house", size=17, bold=True, across="left")
    d.text(
        axes,
        0.15,
        height - 0.58,
        "Levels are floors, modules are rooms. A module imports from its own floor or from below.",
        size=9.5,
        color=d.MUTED,
        across="left",
    )
    _draw_floors(axes, bottoms, tops)
    for (package, floor), modules in rooms.items():
        _draw_apartment(axes, package, modules, PLACES[package, floor], bottoms[floor], imports)
    for start, end in arrows:
        _draw_arrow(axes, start, end, rooms, bottoms)
    _draw_legend(axes, height - 0.3)
    facts = {"imports": imports, "arrows": arrows}
    d.save(figure, path, json.dumps(facts, sort_keys=True))


def _rows(place: Place, modules: list[str]) -> int:
    return -(-len(modules) // place.columns)


def _height(place: Place, modules: list[str]) -> float:
    rows = _rows(place, modules)
    return HEAD + rows * ROOM + (rows - 1) * ROOM_GAP + FOOT


def _floors(rooms: dict[Apartment, list[str]]) -> tuple[dict[int, float], dict[int, float]]:
    """Lower and upper end of each floor, inches."""
    bottoms, tops, y = {}, {}, 0.28
    for floor in sorted(FLOORS):
        tallest = max(_height(PLACES[a], rooms[a]) for a in rooms if a[1] == floor)
        bottoms[floor], tops[floor] = y, y + tallest
        y += tallest + STOREY_GAP
    return bottoms, tops


def _draw_floors(axes: Axes, bottoms: dict[int, float], tops: dict[int, float]) -> None:
    half, left, right = STOREY_GAP / 2, LEFT - 0.12, EDGE + 0.12
    for floor, name in FLOORS.items():
        low, high = bottoms[floor] - half, tops[floor] + half
        shade = "#eef1f6" if floor % 2 else "#f6f7fa"
        axes.fill_between([left, right], low, high, color=shade, linewidth=0, zorder=0)
        d.text(axes, 0.32, (low + high) / 2, str(floor), size=17, bold=True, color="#aab2c0")
        d.text(axes, 0.55, (low + high) / 2, name, size=9, color=d.MUTED, across="left")
    eaves, y = 0.1, tops[6] + half
    roof = [(left - eaves, y), (right + eaves, y), (right - 1.2, y + ROOF), (left + 1.2, y + ROOF)]
    axes.add_patch(Polygon(roof, facecolor="#dde2eb", edgecolor="none", zorder=0))


def _draw_apartment(
    axes: Axes,
    package: str,
    modules: list[str],
    place: Place,
    bottom: float,
    imports: dict[str, tuple[str, ...]],
) -> None:
    height = _height(place, modules)
    d.box(
        axes,
        place.x,
        bottom,
        place.width,
        height,
        fill=d.tint(place.color, 0.13),
        edge=d.tint(place.color, 0.6),
    )
    d.text(
        axes,
        place.x + 0.1,
        bottom + height - HEAD / 2 - 0.01,
        package.replace(".", "/") + "/",
        size=8.6,
        bold=True,
        color=place.color,
        across="left",
    )
    width = (place.width - 0.16 - (place.columns - 1) * ROOM_GAP) / place.columns
    for number, module in enumerate(modules):
        row, column = divmod(number, place.columns)
        x = place.x + 0.08 + column * (width + ROOM_GAP)
        y = bottom + height - HEAD - (row + 1) * ROOM - row * ROOM_GAP
        d.box(axes, x, y, width, ROOM, edge=d.tint(place.color, 0.35), line=0.8, radius=0.04)
        doors = ", ".join(DOORS[used] for used in imports[module] if used in DOORS)
        middle = (x + width / 2, y + ROOM / 2 - 0.045)
        is_package = (ROOT / module.replace(".", "/")).is_dir()
        name = module.rpartition(".")[2] + "/" * is_package
        d.text(axes, middle[0], middle[1] + (0.07 if doors else 0.0), name, size=8.6, up="baseline")
        if doors:
            y = middle[1] - 0.07
            d.text(axes, middle[0], y, doors, size=6.6, color=place.color, up="baseline")


def _draw_arrow(
    axes: Axes,
    start: Apartment,
    end: Apartment,
    rooms: dict[Apartment, list[str]],
    bottoms: dict[int, float],
) -> None:
    one, other = PLACES[start], PLACES[end]
    low = bottoms[start[1]]
    high = bottoms[end[1]] + _height(other, rooms[end])
    if start[1] == end[1]:
        y = low + min(_height(one, rooms[start]), _height(other, rooms[end])) / 2
        ends = (one.x + one.width, other.x) if one.x < other.x else (one.x, other.x + other.width)
        d.arrow(axes, (ends[0], y), (ends[1], y))
    elif (start, end) in ROUTES:
        leaves, arrives, share = ROUTES[start, end]
        turn = low - share * STOREY_GAP
        d.arrow(axes, (leaves, low), (leaves, turn), (arrives, turn), (arrives, high))
    else:
        x = (max(one.x, other.x) + min(one.x + one.width, other.x + other.width)) / 2
        d.arrow(axes, (x, low), (x, high))


def _draw_legend(axes: Axes, y: float) -> None:
    x = RIGHT - 0.25
    d.arrow(axes, (x, y), (x + 0.42, y))
    words = "imports; what follows from others is left out"
    d.text(axes, x + 0.54, y, words, size=8.4, color=d.MUTED, across="left")
    y -= 0.29
    d.box(axes, x, y - 0.13, 0.42, 0.26, line=0.8, radius=0.04)
    d.text(axes, x + 0.21, y, "YAML", size=6.4, color=d.GRAY)
    words = "a large library that the room imports"
    d.text(axes, x + 0.54, y, words, size=8.4, color=d.MUTED, across="left")
