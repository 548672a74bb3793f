"""The import rule of the house, kept by reading every module's `import` lines."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURE = ROOT / "ARCHITECTURE.md"
PACKAGES = {"artifacts", "layers", "distributed", "model", "data", "evaluation", "training"}

CORE = {
    # words and numbers
    "config": 0,
    "config_file": 0,
    "section": 0,
    "errors": 0,
    "terminal": 0,
    "artifacts.paths": 0,
    "artifacts.files": 0,
    "artifacts.names": 0,
    "artifacts.contents": 0,
    "distributed.entry": 0,
    "distributed.peak": 0,
    "distributed.exchange_time": 0,
    "distributed.traffic": 0,
    "model.configurations": 0,
    "data.geometry": 0,
    "data.color": 0,
    "data.plan": 0,
    # parts
    "artifacts": 1,
    "layers": 1,
    "distributed": 1,
    "model": 2,
    "data": 3,
    "evaluation": 3,
    "training": 4,
    # one rank
    "pretrain": 5,
    "evaluate": 5,
    "predict": 5,
    # people
    "commands": 6,
    "api": 6,
    "cli": 6,
    "__main__": 6,
}
"""A module, or a package for those of its modules that are not named -> its level. A module of the
core imports from its own level and below, and no room."""

ROOMS: dict[str, set[str]] = {
    "prepare": set(),
    "convert": set(),
    "reports": set(),
    "monitoring": set(),
    "doctor": set(),
    "transfer": set(),
    "slurm": set(),
    "experiments": {"slurm", "reports"},
    "planning": set(),
    "profiling": {"planning", "prepare"},
    "launch": {"slurm"},
}
"""A package around the core -> other rooms that it imports. It may import all of the core."""

DOORS = {
    "nvidia": {"data.decode", "data.probe", "profiling.data_baselines"},
    "deepspeed": {"training.engine"},
    "tensorboard": {"training.metrics"},
    "torch.utils.tensorboard": {"training.metrics"},
    "yaml": {"config_file"},
    "pebble": {"prepare.processes"},
    "scipy": {"prepare.devkit"},
    "sklearn": {"prepare.digits", "transfer.linear_classifier"},
    "onnxruntime": {"convert.graphs"},
    "submitit": {"slurm.submit", "slurm.job"},
    "matplotlib": {"planning.chart", "reports.chart", "monitoring.comparison"},
    "jinja2": {"reports.page", "monitoring.comparison"},
}
"""A heavy or dangerous library -> the modules that may import it."""

APART = {
    "data": {"model", "training", "evaluation"},
    "evaluation": {"model", "training", "data"},
}
"""A package -> packages that no module of it may import, whatever the levels."""


def _modules() -> dict[str, Path]:
    files = [*ROOT.glob("vggdist/**/*.py"), *ROOT.glob("launch/**/*.py")]
    names = {}
    for file in files:
        parts = file.relative_to(ROOT).with_suffix("").parts
        if parts[-1] != "__init__":
            names[".".join(parts).removeprefix("vggdist.")] = file
    return names


MODULES = _modules()


def imported(file: Path) -> set[str]:
    """Everything that a file imports anywhere, also inside functions, by its full name."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_imports(module: str) -> set[str]:
    """The modules of this project that a module imports."""
    names = {name.removeprefix("vggdist.") for name in imported(MODULES[module])}
    # `from vggdist.config import Config` names config.Config: its module is what is imported.
    return {
        other for name in names for other in (name, name.rpartition(".")[0]) if other in MODULES
    }


def package(module: str) -> str:
    return module.partition(".")[0]


def level(module: str) -> int:
    for name in (module, package(module)):
        if name in CORE:
            return CORE[name]
    pytest.fail(f"{module} is neither in the core nor in a room: see CORE and ROOMS in this file.")


each_module = pytest.mark.parametrize("module", sorted(MODULES))


def test_modules_are_found() -> None:
    assert {"config", "data.decode", "training.engine", "launch.train"} <= MODULES.keys()
    assert "config" in own_imports("training.engine")
    assert "artifacts.checkpoint" in own_imports("artifacts.run_folder")


@each_module
def test_the_core_imports_no_room_and_nothing_above(module: str) -> None:
    if package(module) in ROOMS:
        return
    others = own_imports(module)
    rooms = {other for other in others if package(other) in ROOMS}
    assert not rooms, f"{module} is of the core and imports {rooms}; move what it needs to the core"
    above = {other for other in others if level(other) > level(module)}
    assert not above, f"{module} (level {level(module)}) imports {above} from above"


@each_module
def test_a_room_imports_the_core_and_only_the_rooms_that_it_names(module: str) -> None:
    room = package(module)
    if room not in ROOMS:
        return
    others = {other for other in own_imports(module) if package(other) in ROOMS.keys() - {room}}
    strange = {other for other in others if package(other) not in ROOMS[room]}
    assert not strange, f"{module} imports {strange}; {room} may import {ROOMS[room] or 'no room'}"
    if not module.startswith("launch."):
        verbs = {other for other in others if other.endswith(".commands")}
        assert not verbs - {"slurm.commands"}, f"{module} imports the verbs of other rooms: {verbs}"


@each_module
def test_data_and_evaluation_stay_apart_from_model_training_and_each_other(module: str) -> None:
    forbidden = APART.get(package(module), set())
    crossed = {
        other for other in own_imports(module) if package(other) in forbidden and level(other) > 0
    }
    assert not crossed, f"{module} must not know {crossed}"


@each_module
def test_nothing_imports_launch(module: str) -> None:
    assert not any(package(name) == "launch" for name in imported(MODULES[module]))


@each_module
def test_each_heavy_library_has_one_door(module: str) -> None:
    for name in imported(MODULES[module]):
        for library, doors in DOORS.items():
            if name == library or name.startswith(f"{library}."):
                assert module in doors, f"{module} imports {name}; its door is {doors}"


def test_there_are_no_cycles() -> None:
    imports = {module: own_imports(module) for module in MODULES}
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError, which names them


def test_packages_do_nothing_when_they_are_imported() -> None:
    for file in ROOT.glob("vggdist/*/**/__init__.py"):
        assert file.read_text().strip() == "", file


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("vggdist.config", "torch"),
        ("vggdist.config_file", "torch"),
        ("vggdist.cli", "torch"),
        ("vggdist.slurm.submit", "torch"),
        ("vggdist.slurm.commands", "submitit"),
        ("vggdist.experiments.runner", "torch"),
        ("vggdist.experiments.status", "torch"),
        ("vggdist.experiments.tables", "torch"),
        ("vggdist.planning.estimate", "torch"),
        ("vggdist.model.summary", "torch"),
        ("vggdist.training.loop", "deepspeed"),
    ],
)
def test_what_is_light_to_import_stays_so(module: str, heavy: str) -> None:
    """In a process of its own, since pytest has imported most of it already."""
    code = f"import sys, {module}; assert {heavy!r} not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=ROOT)


def graph() -> str:
    """The packages and what they import, as Mermaid text; modules at the top are one node."""
    imports: dict[str, set[str]] = {}
    for module in MODULES:
        imports.setdefault(_node(module), set()).update(map(_node, own_imports(module)))
    reached: dict[str, set[str]] = {}
    for node in graphlib.TopologicalSorter({n: o - {n} for n, o in imports.items()}).static_order():
        others = imports.get(node, set()) - {node}
        reached[node] = others.union(*(reached[other] for other in others))
    lines = ["```mermaid", "flowchart TD"]
    for title, names in (("rooms", ROOMS.keys()), ("core", reached.keys() - ROOMS.keys())):
        listing = "; ".join(f'{_id(name)}["{name}"]' for name in sorted(names))
        lines += [f"  subgraph {title}", f"    {listing}", "  end"]
    arrows: dict[str, list[str]] = {}
    for node in sorted(imports):
        others = imports[node] - {node}
        direct = others - set().union(*(reached[other] for other in others))
        if direct:
            arrows.setdefault(" & ".join(map(_id, sorted(direct))), []).append(_id(node))
    lines += [f"  {' & '.join(nodes)} --> {others}" for others, nodes in sorted(arrows.items())]
    return "\n".join([*lines, "```"])


def _node(module: str) -> str:
    if package(module) in ROOMS or (package(module) in PACKAGES and level(module) > 0):
        return package(module)
    return {0: "words and numbers", 5: "one rank", 6: "people"}[level(module)]


def _id(name: str) -> str:
    return name.replace(" ", "_")


def with_graph(text: str) -> str:
    begin, end = "<!-- imports -->\n", "\n<!-- /imports -->"
    return text.partition(begin)[0] + begin + graph() + end + text.partition(end)[2]


def test_the_architecture_shows_the_imports_of_the_code() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    assert text == with_graph(text), "run: python tests/test_import_rule.py"


if __name__ == "__main__":
    ARCHITECTURE.write_text(with_graph(ARCHITECTURE.read_text(encoding="utf-8")), encoding="utf-8")
