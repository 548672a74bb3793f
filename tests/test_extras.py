"""Libraries of a room are extras of the package, and a sentence says which one is missing."""

import re
import runpy
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import setuptools

from tests.conftest import Call
from tests.test_import_rule import MODULES, ROOMS, ROOT, imported
from vggdist.distributed import entry
from vggdist.errors import EXTRAS, ConfigError

MODULE_OF = {"scikit-learn": "sklearn"}
"""Library -> what is imported, where that is not its name."""


@pytest.fixture
def extras(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Extra -> what is imported of the libraries that setup.py lists for it."""
    told: dict[str, dict[str, list[str]]] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **settings: told.update(settings))
    runpy.run_path(str(ROOT / "setup.py"))
    names = {
        extra: [re.split("[<>=]", library)[0] for library in libraries]
        for extra, libraries in told["extras_require"].items()
    }
    return {extra: [MODULE_OF.get(n, n) for n in libraries] for extra, libraries in names.items()}


def test_every_room_has_an_extra_and_all_of_them_are_one_more(extras: dict[str, list[str]]) -> None:
    assert extras.keys() - {"all", "dev"} == set(EXTRAS) == ROOMS.keys() - {"launch"}
    assert set(extras["all"]) == {name for extra in EXTRAS for name in extras[extra]}


def test_a_library_of_rooms_is_imported_only_there(extras: dict[str, list[str]]) -> None:
    for library in extras["all"]:
        for module, file in MODULES.items():
            if any(name.partition(".")[0] == library for name in imported(file)):
                assert library in extras.get(module.partition(".")[0], ()), (module, library)


def test_a_room_lists_the_libraries_of_the_rooms_that_it_imports(
    extras: dict[str, list[str]],
) -> None:
    for room in EXTRAS:
        for needed in ROOMS[room]:
            assert set(extras[needed]) <= set(extras[room]), (room, needed)


PLAN = [
    *("plan", "model.configuration=A", "--nodes", "1", "--gpus-per-node", "1"),
    *("--device", "v100", "--network", "1gbit", "--out"),
]


@pytest.mark.parametrize(
    ("library", "importer", "words"),
    [
        ("sklearn.datasets", "prepare.digits", ["prepare", "digits", "--out", "OUT"]),
        ("matplotlib.figure", "planning.chart", [*PLAN, "OUT.png"]),
        ("jinja2", "reports.page", ["report", "OUT"]),
        ("submitit", "slurm.submit", ["submit", "--local", "run.folder=OUT"]),
    ],
)
def test_a_missing_library_is_a_sentence_that_says_what_to_install(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: Call,
    library: str,
    importer: str,
    words: list[str],
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"vggdist.{importer}", raising=False)
    out = str(tmp_path / "out")
    code, _, err = call(*(word.replace("OUT", out) for word in words))
    assert code == ConfigError.exit_code
    assert err == (
        f"error: the library {library.partition('.')[0]} is not installed; install all that this "
        f"command needs with pip install 'vggdist[{importer.partition('.')[0]}]'.\n"
    )


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """This Python, without any library."""
    venv.create(tmp_path / "bare", symlinks=True, with_pip=False)
    return tmp_path / "bare" / "bin" / "python"


def run_bare(python: Path, copy: Path, *words: str) -> str:
    """What a command says outside of the environment, in a copy of the project."""
    done = subprocess.run(
        [python, "-E", *words], cwd=copy, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == ConfigError.exit_code
    return done.stderr


def test_outside_of_the_environment_a_sentence_says_how_to_activate_it(
    bare: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "a copy"
    for folder in ("vggdist", "launch"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    lacks = rf"error: {re.escape(str(bare))} lacks the library \w+, which vggdist needs. "
    installed = (
        "Activate the environment in which vggdist was installed, or install it in this one."
    )
    assert re.fullmatch(f"{lacks}{installed}\n", run_bare(bare, copy, "-m", "vggdist", "submit"))

    (copy / "Makefile").touch()
    activate = f"source '{copy}/.venv/bin/activate'\n"
    made = f"Make the environment with `make setup` in '{copy}', and activate it: {activate}"
    for words in (["launch/train.py"], ["launch/evaluate.py", "run"], ["launch/submit.py"]):
        assert re.fullmatch(lacks + re.escape(made), run_bare(bare, copy, *words))

    (copy / ".venv" / "bin").mkdir(parents=True)
    (copy / ".venv" / "bin" / "activate").touch()
    found = re.escape(f"Activate the environment first: {activate}")
    assert re.fullmatch(lacks + found, run_bare(bare, copy, "launch/train.py"))


def test_an_old_python_is_told_before_anything_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    assert entry.run(pytest.fail) == ConfigError.exit_code
    assert (
        f"error: {sys.executable} is Python 3.9, and vggdist needs 3.11 or newer. "
        in capsys.readouterr().err
    )


def test_a_module_of_ours_that_is_missing_keeps_its_traceback() -> None:
    def compute() -> int:
        exec("import vggdist.absent", {"__name__": "vggdist.data.decode"})
        return 0

    with pytest.raises(ModuleNotFoundError):
        entry.run(compute)
