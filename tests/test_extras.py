"""Libraries of a room are extras of the package, and a sentence says which one is missing."""

import re
import runpy
import sys
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


def test_a_library_that_the_core_misses_keeps_its_traceback() -> None:
    def compute() -> int:
        exec("import absent", {"__name__": "vggdist.data.decode"})
        return 0

    with pytest.raises(ModuleNotFoundError):
        entry.run(compute)
