"""Folders, files and classes of every name, from the import of weights to the report."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import Call
from tests.convert.third_party_networks import TINY, TinyVGG
from tests.ranks import train_in_ranks
from vggdist.artifacts.paths import quote

ROOT = Path(__file__).parents[1]
SIGNS = "a #1 ~b%c'd\"eßf\u0301[g]{h}\n-$HOME`i`;*\\"
LONG = "ü" * 127 + "x"  # 255 bytes, the most that a file system takes
NAMES = {"signs": SIGNS, "tilde": "~root", "long": LONG}


def named(name: str, suffix: str = "") -> str:
    """The name with a suffix, no longer than a file system takes."""
    stem = name
    while len((stem + suffix).encode(errors="surrogateescape")) > 255:
        stem = stem[1:]
    return stem + suffix


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return NAMES[request.param]


@pytest.fixture
def folder(name: str, tmp_path: Path, tiny_dataset: Path) -> Path:
    """A folder of that name with a data set of that name and weights in a file of that name."""
    folder = tmp_path / name
    shutil.copytree(tiny_dataset, folder / named(name, "-data"))
    torch.manual_seed(0)
    network = TinyVGG()
    network.classifier[6] = torch.nn.Linear(12, 3)
    torch.save(network.state_dict(), folder / named(name, ".pth"))
    return folder


def without_quoted(folder: Path, text: str) -> str:
    """A text without the paths in a folder, and an experiment's name, quoted for a shell."""
    text = re.sub(re.escape(quote(folder)[:-1]) + "[^'\n]*'", "", text)
    return text.replace(quote(named(folder.name, "-2.yaml").removesuffix(".yaml")), "")


@pytest.mark.slow
def test_every_command_takes_every_name(name: str, folder: Path, call: Call) -> None:
    data = folder / named(name, "-data")
    weights, sheet = folder / named(name, ".safetensors"), folder / named(name, ".png")
    report, features = folder / named(name, "-report"), folder / named(name, ".npz")
    settings = folder / named(name, ".yaml")
    settings.write_text(f"model: {{configuration: {TINY}}}\n")
    experiment = folder / named(name, "-2.yaml")
    experiment.write_text(
        "stages:\n  a: {config: net.yaml, set: {data: {crop_size: 32}, model: {num_classes: 3}}}\n"
    )
    (folder / "net.yaml").write_text(settings.read_text())
    overrides = folder / named(name, ".txt")
    overrides.write_text(f"model.configuration={TINY}\n")
    exported = folder / named(name, "-exported.safetensors")
    posteriors = folder / named(name, "-posteriors")
    words = ["device=cpu", "precision=fp32"]
    for command in (
        ["check", data, "--jobs", 1],
        ["prepare", "folder", data, "--out", folder / named(name, "-packed")],
        ["summary", "--config", settings, "data.crop_size=32"],
        ["import", folder / named(name, ".pth"), "--out", weights, f"@{overrides}"],
        ["predict", weights, data / "val", "--out", sheet, "--precision", "fp32"],
        ["export", weights, "--format", "safetensors", "--out", exported],
        ["evaluate", weights, "--data", data, "--scales", 36, "--out", posteriors, *words],
        ["report", posteriors, "--out", report],
        ["features", weights, "--data", data, "--scales", 36, "--out", features, *words],
        ["plan", "--nodes", 1, "--gpus-per-node", 1, "--network", "1gbit", "--device", "cpu",
         "--out", folder / named(name, "-plan.png")],
        ["submit", "--dry-run", f"data.root={data}", f"run.folder={folder / named(name, '-run')}"],
        ["experiment", "run", experiment, "--dry-run", f"folder={folder / 'it'}", f"data={data}"],
        ["experiment", "status", experiment, f"folder={folder / 'it'}", f"data={data}"],
    ):  # fmt: skip
        code, out, err = call(*command, "--json", folder / named(name, ".json"))
        said = out + err
        if command[0] == "submit" and (not name.isprintable() or "%" in name):
            assert code == 2
            assert "which sbatch reads as something else; choose another run.folder" in said
        else:
            assert code == 0, (command, said)
            assert (folder / named(name, ".json")).stat().st_size
        words_of_ours = said.partition("# configuration")[0]  # what follows is YAML and a script
        assert name[:8] not in without_quoted(folder, words_of_ours), said
    assert sheet.stat().st_size
    assert (report / "report.html").stat().st_size


@pytest.mark.slow
@pytest.mark.multi_process
def test_a_training_reads_and_writes_folders_of_every_name(
    name: str, folder: Path, tiny_network: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    run = folder / named(name, "-run")
    words = [*tiny_network, f"data.root={folder / named(name, '-data')}", f"run.folder={run}"]
    said = ""
    for steps in (1, 2):
        codes = train_in_ranks(1, [*words, f"schedule.num_steps={steps}"])
        said += "".join(capfd.readouterr())
        assert codes == [0], said
    assert f"tensorboard --logdir {quote(run / 'tensorboard')} " in said
    assert f"continuing from step 1 of {quote(run)}\n" in said
    assert name[:8] not in without_quoted(folder, said)
    assert json.loads((run / "result.json").read_text())["steps"] == 2
