"""Each check on this machine as it is, and with something broken."""

import json
import shutil
import socket
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import MakeTree
from vggdist import cli
from vggdist.doctor import hardware, ranks, software
from vggdist.doctor.finding import Finding, run_checks
from vggdist.errors import ConfigError, VggdistError

NO_GPU = "device is auto, but no driver answers."


def problems(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.is_problem]


@pytest.mark.slow
@pytest.mark.multi_process
def test_where_trainings_run_no_check_finds_a_problem(
    make_tree: MakeTree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        make_tree(tmp_path / "data" / split, {"a": 5, "b": 4})
    words = ["doctor", "--data", str(tmp_path / "data"), "--folder", str(tmp_path / "runs")]
    arguments = cli.parse([*words, "--json", str(tmp_path / "found.json")])
    assert arguments.run(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("Trainings can run here.\n")
    assert "2 ranks add 17 MB with gloo" in printed
    assert "9 images of 2 classes" in printed
    found = json.loads((tmp_path / "found.json").read_text())["findings"]
    subjects = ["Python", "packages", "processor", "GPUs", "precision", "decoder", "ranks"]
    assert list(dict.fromkeys(one["subject"] for one in found)) == [
        *subjects,
        "SLURM",
        "disk",
        "data",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "found.json"]


def test_a_problem_is_the_exit_code_and_the_other_checks_are_made(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> torch.device:
        raise ConfigError(NO_GPU)

    def no_ranks(_: int) -> list[Finding]:
        return [Finding("2 ranks add numbers")]

    monkeypatch.setattr(hardware, "choose_device", refuse)
    monkeypatch.setattr(ranks, "ranks", no_ranks)
    arguments = cli.parse(["doctor", "--folder", str(tmp_path)])
    assert arguments.run(arguments) == VggdistError.exit_code
    printed = capsys.readouterr().out
    assert f"BAD   GPUs      {NO_GPU}\n" in printed
    assert printed.count(NO_GPU) == 1
    assert "ok    decoder   DALI decodes JPEGs on cpu\n" in printed
    assert printed.endswith("1 of these keep trainings from working.\n")


def test_a_check_that_cannot_even_be_made_is_a_problem_with_its_own_line() -> None:
    def broken() -> list[Finding]:
        raise ImportError("libcudart.so.13:\n cannot open shared object file")

    ((subject, finding),) = run_checks({"GPUs": broken})
    assert subject == "GPUs"
    assert finding.is_problem
    assert finding.text == "ImportError: libcudart.so.13: cannot open shared object file"


def test_packages_that_are_missing_or_too_old_are_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    version = metadata.version

    def changed(name: str) -> str:
        if name == "rich":
            raise metadata.PackageNotFoundError(name)
        return "0.1" if name == "deepspeed" else version(name)

    assert problems(list(software.packages())) == []
    monkeypatch.setattr(metadata, "version", changed)
    old, missing = sorted(problems(list(software.packages())), key=lambda one: one.text)
    assert old.text.startswith("deepspeed is 0.1, and >=")
    assert old.text.endswith(" is needed")
    assert missing.text == "rich is missing"
    assert missing.hint.endswith("-m pip install 'rich>=13.0'")


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("echo 'gpu* 4 x 64 CPUs, 512000 MB, gpu:8, 1-00:00:00'", "partition gpu* 4 x 64 CPUs"),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", "Unable to contact slurm contro"),
        ("sleep 9", "no answer in 0 s"),
    ],
)
def test_what_slurm_says_is_shown(
    script: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sinfo = tmp_path / "sinfo"
    sinfo.write_text(f"#!/bin/sh\n{script}\n")
    sinfo.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(software, "_PATIENCE_SECONDS", 0.4 if "sleep" in script else 30.0)
    (finding,) = software.slurm()
    assert finding.text.startswith(("partition", "SLURM does not answer"))
    assert text in finding.text
    assert not finding.is_problem, "a training on this machine needs no SLURM"


def test_a_full_disk_is_a_warning_and_one_that_cannot_be_written_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (finding,) = hardware.disk(tmp_path / "new" / "runs")
    assert (finding.kind, finding.hint) == ("good", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"], "nothing stays"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1e9, total=1e12))
    (finding,) = hardware.disk(tmp_path)
    assert finding.hint.startswith("3 checkpoints of D take 3.6 GB; free space")

    def full(_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hardware, "replacing", full)
    (finding,) = hardware.disk(tmp_path)
    assert finding.is_problem
    assert "cannot be written: No space left on device" in finding.text


def test_bad_images_among_those_that_are_tried_are_told(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    root = make_tree(tmp_path / "photos", {"a": 3, "b": 3})
    (root / "a" / "001.jpg").write_bytes(b"no image")
    _, read = hardware.data(str(root))
    assert read.hint.startswith("1 of them cannot be used (")
    assert read.hint.endswith(f"run `vggdist check {root}` before a training.")


@pytest.mark.multi_process
def test_ranks_that_do_not_meet_or_fail_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(ranks, "_PATIENCE_SECONDS", 0.2)
    name, late = ranks.ranks(2)
    assert name.kind == "warning"
    assert "has no address" in name.text
    assert late.text == "2 ranks have not found each other in 0 s"
    monkeypatch.setattr(ranks, "_PATIENCE_SECONDS", 60.0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PYTHONPATH", "/nowhere", prepend=":")
    monkeypatch.setattr(ranks.sys, "executable", "/bin/false")
    *_, failed = ranks.ranks(2)
    assert failed.text == "a rank ended with code 1: it said nothing"
