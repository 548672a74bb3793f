"""Whether a job that starts again would run other code than was submitted."""

import shutil
from pathlib import Path

import pytest

from tests.processes import ROOT
from tests.test_import_rule import MODULES, own_imports
from vggdist.slurm.job import NOT_IN_RANKS, digest_of_code

PACKAGE = ROOT / "vggdist"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return shutil.copytree(PACKAGE, tmp_path / "vggdist")


@pytest.mark.parametrize("name", ["slurm/commands.py", "slurm/settings.py", "cli.py"])
def test_an_edited_help_text_is_no_other_code(copy: Path, name: str) -> None:
    before = digest_of_code(copy)
    assert before == digest_of_code()
    (copy / name).write_text((copy / name).read_text() + "# edited\n")
    assert digest_of_code(copy) == before


@pytest.mark.parametrize("name", ["errors.py", "training/loop.py", "experiments/payloads.py"])
def test_what_a_rank_runs_is(copy: Path, name: str) -> None:
    before = digest_of_code(copy)
    (copy / name).write_text((copy / name).read_text() + "# edited\n")
    assert digest_of_code(copy) != before
    (copy / name).unlink()
    assert digest_of_code(copy) != before


def test_no_rank_imports_what_is_left_out() -> None:
    reached = {"slurm.job", "experiments.payloads", "pretrain", "evaluate"}
    left = list(reached)
    while left:
        new = own_imports(left.pop()) - reached
        reached |= new
        left += new
    files = [MODULES[name].relative_to(PACKAGE) for name in reached]
    assert not [file for file in files if any(map(file.match, NOT_IN_RANKS))]
    assert {"training.loop", "data.decode", "reports.page"} <= reached
