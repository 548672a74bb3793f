"""The import rule of the house, kept by reading every module's `import` lines."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LEVELS = {
    # 0: words and numbers
    "config": 0,
    "config_file": 0,
    "errors": 0,
    "entry": 0,
    "paths": 0,
    "names": 0,
    "contents": 0,
    "model.configurations": 0,
    "data.geometry": 0,
    "data.color": 0,
    "data.plan": 0,
    "distributed.traffic": 0,
    # 1: parts
    "layers": 1,
    "distributed": 1,
    # 2: the model
    "model": 2,
    # 3: images in, errors out
    "data": 3,
    "evaluation": 3,
    # 4: training
    "training": 4,
    # 5: one process
    "pretrain": 5,
    "training_data": 5,
    "rank": 5,
    "trained": 5,
    "run_report": 5,
    "evaluate": 5,
    "evaluated_images": 5,
    "compute_posteriors": 5,
    "evaluation_report": 5,
    "features": 5,
    "predict": 5,
    "benchmark": 5,
    "cluster": 5,
    "planning": 5,
    # 6: many processes, people
    "commands": 6,
    "cli": 6,
    "launch": 6,
}
"""A module, or a package for those of its modules that are not named themselves -> its level."""

DOORS = {
    "nvidia": {"data.pipeline", "data.verification.probe", "benchmark.rivals"},
    "deepspeed": {"training.engine"},
    "tensorboard": {"training.metric_log"},
    "torch.utils.tensorboard": {"training.metric_log"},
    "yaml": {"config_file"},
    "pebble": {"data.verification.isolated"},
    "scipy": {"data.preparation.devkit"},
    "submitit": {"cluster.submission", "cluster.job"},
    "matplotlib": {"planning.chart"},
}
"""A heavy or dangerous library -> the modules that may import it."""

APART = {
    "data": {"model", "training", "evaluation", "distributed"},
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


def level(module: str) -> int:
    for name in (module, module.partition(".")[0]):
        if name in LEVELS:
            return LEVELS[name]
    pytest.fail(f"{module} has no level; give it one here and in ARCHITECTURE.md.")


each_module = pytest.mark.parametrize("module", sorted(MODULES))


def test_modules_are_found() -> None:
    assert {"config", "data.pipeline", "training.engine", "launch.train"} <= MODULES.keys()
    assert "config" in own_imports("training.engine")
    assert "training.checkpoint" in own_imports("training.run_folder")


@each_module
def test_a_module_imports_only_from_its_own_level_and_below(module: str) -> None:
    above = {other for other in own_imports(module) if level(other) > level(module)}
    assert not above, f"{module} (level {level(module)}) imports {above} from above"


@each_module
def test_data_and_evaluation_stay_apart_from_model_training_and_each_other(module: str) -> None:
    forbidden = APART.get(module.partition(".")[0], set())
    crossed = {
        other
        for other in own_imports(module)
        if other.partition(".")[0] in forbidden and level(other) > 0
    }
    assert not crossed, f"{module} must not know {crossed}"


@each_module
def test_nothing_imports_launch(module: str) -> None:
    assert not any(name.partition(".")[0] == "launch" for name in imported(MODULES[module]))


@each_module
def test_each_heavy_library_has_one_door(module: str) -> None:
    for name in imported(MODULES[module]):
        for library, doors in DOORS.items():
            if name == library or name.startswith(f"{library}."):
                assert module in doors, f"{module} imports {name}; its door is {doors}"


def test_there_are_no_cycles() -> None:
    graph = {module: own_imports(module) for module in MODULES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names them


def test_packages_do_nothing_when_they_are_imported() -> None:
    for file in ROOT.glob("vggdist/**/__init__.py"):
        assert file.read_text().strip() == "", file


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("vggdist.config", "torch"),
        ("vggdist.config_file", "torch"),
        ("vggdist.cli", "torch"),
        ("vggdist.cluster.submission", "torch"),
        ("vggdist.commands.submission", "submitit"),
        ("vggdist.cluster.experiment", "torch"),
        ("vggdist.cluster.status", "torch"),
        ("vggdist.cluster.tables", "torch"),
        ("vggdist.planning.plan", "torch"),
        ("vggdist.training.loop", "deepspeed"),
    ],
)
def test_what_is_light_to_import_stays_so(module: str, heavy: str) -> None:
    """In a process of its own, since pytest has imported most of it already."""
    code = f"import sys, {module}; assert {heavy!r} not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=ROOT)
