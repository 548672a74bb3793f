"""Home folders, quotes for a shell, and outputs that would be written over inputs."""

import argparse
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Call
from vggdist import cli
from vggdist.artifacts.paths import expand_home, quote
from vggdist.commands.arguments import check_outputs, user_path, user_path_text
from vggdist.config_file import make_config
from vggdist.errors import ConfigError

ODD_NAMES = [
    *("a b", "a #b", "~a", "a~", "100%", "it's", 'say "hi"', "Größe", "Gro\u0308ße", "a\nb"),
    *("a\\b", "$HOME", "`id`", "a;b", "*", "[a]", "{a}", "(a)", "!a", "&", "x" * 255, "ß" * 127),
    *("a\tb", "a\x1b[1m", "\udcf6\udce4"),
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_quoted_path_is_one_word_of_a_shell(name: str) -> None:
    told = subprocess.check_output(["bash", "-c", f"printf %s {quote(name)}"])
    assert told == os.fsencode(name)
    assert quote(name).isprintable()


def test_a_plain_path_is_not_quoted() -> None:
    assert quote(Path("/data/vgg-16_a.b=1/x,y")) == "/data/vgg-16_a.b=1/x,y"


def test_a_quoted_path_shows_what_a_terminal_hides() -> None:
    assert quote("/data/cat /1.jpg") == "'/data/cat /1.jpg'"
    assert quote("/data/a\tb") == r"$'/data/a\x09b'"
    assert quote("/data/caf\u00e9") == "'/data/caf\u00e9'"
    assert quote("/data/cafe\u0301's") == r"$'/data/cafe\xcc\x81\x27s'"


def test_a_tilde_is_a_home_folder_only_where_a_shell_takes_it_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_home("~/a") == "/home/me/a"
    assert expand_home("~root/a") == os.path.expanduser("~root/a") != "~root/a"
    for path in ("a~", "a/~", "./~a", "a~b/c"):
        assert expand_home(path) == path
    for path, problem in (("~nobody-here/a", "no such user"), ("", "is no path"), ("a\0", "path")):
        with pytest.raises(ValueError, match=problem):
            expand_home(path)


Parsers = Iterator[tuple[str, argparse.ArgumentParser]]


def leaves(parser: argparse.ArgumentParser, verb: str = "") -> Parsers:
    """Every verb with its own parser."""
    below = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    for action in below:
        for name, inner in action.choices.items():
            yield from leaves(inner, f"{verb} {name}".strip())
    if not below:
        yield verb, parser


VERBS = dict(leaves(cli.build_parser()))


def test_every_path_of_the_command_line_is_expanded_and_has_a_role() -> None:
    for verb, parser in VERBS.items():
        roles = {role.dest for role in parser.get_default("paths")}
        for action in parser._actions:
            assert action.type is not Path, f"{verb} {action.dest} does not expand ~"
            is_path = action.type in (user_path, user_path_text)
            assert is_path == (action.dest in roles), f"{verb} {action.dest}"


# A verb, what it reads, and an output that would harm it. DATA is a data set, IN a file.
REFUSED = [
    ("import IN.safetensors --out IN.safetensors", "is what is read"),
    ("import IN.safetensors --out linked.safetensors", "is what is read"),
    ("import IN.safetensors --out hard.safetensors", "is what is read"),
    ("import IN.safetensors --out DATA/../IN.safetensors", "is what is read"),
    ("import a.pth --classes IN.safetensors --out IN.safetensors", "is what is read"),
    ("import a.pth --out b.pth", "does not end in .safetensors"),
    ("import a.pth --out b", "does not end in .safetensors"),
    ("import a.pth --out b.safetensors --json IN.safetensors", "does not end in .json"),
    ("export IN.safetensors --format safetensors --out IN.safetensors", "is what is read"),
    ("export RUN --format onnx --out RUN/checkpoints/step-1/a.onnx", "kept for the training"),
    ("export RUN --format onnx --out RUN", "is what is read"),
    ("export RUN --format onnx --out a.onnx --json RUN/result.json", "kept for the training"),
    ("predict IN.safetensors DATA/val/a/1.png --out DATA/val/a/1.png", "is what is read"),
    ("predict IN.safetensors DATA --out DATA/sheet.png", "whose images are read"),
    ("predict RUN DATA --out RUN/predictions.png", "kept for the training"),
    ("predict IN.safetensors a.png --out sheet.npz", "does not end in .png"),
    ("features IN.safetensors --data DATA --out DATA/f.npz", "whose images are read"),
    ("features IN.safetensors --data DATA --out f.pth", "does not end in .npz"),
    ("evaluate IN.safetensors --data DATA --out DATA/val", "whose images are read"),
    ("evaluate IN.safetensors --data DATA --json DATA/e.json", "whose images are read"),
    ("evaluate RUN --data DATA --out RUN", "is what is read"),
    ("report folder --out folder", "is what is read"),
    ("report IN.json --json IN.json", "is what is read"),
    ("transfer IN.json --json IN.json", "is what is read"),
    ("check DATA --json DATA/c.json", "whose images are read"),
    ("prepare folder DATA --out DATA", "is what is read"),
    ("prepare folder DATA --out DATA/train/small", "whose images are read"),
    ("prepare imagenet --train IN.json --val b --devkit c --out IN.json", "is what is read"),
    ("plan --nodes 1 --gpus-per-node 1 --network 1gbit --device IN.json --json IN.json", "is what"),
    ("plan --nodes 1 --gpus-per-node 1 --network 1gbit --device cpu --out a.pdf", "end in .png"),
    ("summary --config IN.json --json IN.json", "is what is read"),
    ("summary @IN.json --json IN.json", "is what is read"),
    ("submit --dry-run data.root=DATA --json DATA/s.json", "whose images are read"),
    ("experiment run E.yaml --dry-run data=DATA --json DATA/e.json", "whose images are read"),
    ("experiment status E.yaml data=DATA --json DATA/e.json", "whose images are read"),
    ("doctor --data DATA --json DATA/d.json", "whose images are read"),
    ("runs RUN --json RUN/result.json", "is kept for the training"),
    ("compare RUN --json RUN/result.json", "is kept for the training"),
    ("compare RUN --out RUN/predictions.png", "is kept for the training"),
    ("compare RUN --out c.pdf", "does not end in .png or .html"),
    ("bench data --data DATA --json DATA/b.json", "whose images are read"),
    ("bench step data.root=DATA --json DATA/b.json", "whose images are read"),
    ("bench evaluation --data DATA --json DATA/b.json", "whose images are read"),
    ("bench exchange @IN.json --json IN.json", "is what is read"),
    ("bench machine --config IN.json --out IN.json", "is what is read"),
    ("tune data --data DATA --out DATA/t.txt", "whose images are read"),
    ("tune data --data DATA @IN.txt --out IN.txt", "is what is read"),
    ("tune data --data DATA --out t.json", "does not end in .txt"),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: data set, run folder and files of the table, all without sense."""
    (tmp_path / "RUN" / "checkpoints" / "step-1").mkdir(parents=True)
    (tmp_path / "RUN" / "config.yaml").write_text("")
    (tmp_path / "folder").mkdir()
    for split in ("train", "val"):
        (tmp_path / "DATA" / split / "a").mkdir(parents=True)
        (tmp_path / "DATA" / split / "a" / "1.png").write_bytes(b"image")
    for name in ("IN.safetensors", "IN.json", "IN.txt"):
        (tmp_path / name).write_bytes(b"{}")
    (tmp_path / "linked.safetensors").symlink_to("IN.safetensors")
    os.link(tmp_path / "IN.safetensors", tmp_path / "hard.safetensors")
    (tmp_path / "E.yaml").write_text("folder: it\nstages: {a: {config: IN.json}}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.parametrize(("command", "problem"), REFUSED)
def test_no_command_writes_over_or_into_what_it_reads(
    command: str,
    problem: str,
    folder: Path,
    call: Call,
) -> None:
    before = contents(folder)
    code, out, err = call(*command.split())
    assert (code, out) == (2, "")
    assert err.startswith("error: --")
    assert problem in err
    assert contents(folder) == before


def test_every_verb_that_writes_is_in_the_table() -> None:
    tried = {
        verb for verb in VERBS for command, _ in REFUSED if f"{command} ".startswith(f"{verb} ")
    }
    assert tried | {"prepare digits", "train", "completion"} == set(
        VERBS
    )  # which have no such outputs


@pytest.mark.parametrize("out", ["RUN/report", "RUN/errors.json", "other/config.yaml", "DATA2"])
def test_beside_what_is_read_everything_may_be_written(
    out: str, folder: Path, parsed: Callable[..., argparse.Namespace]
) -> None:
    check_outputs(parsed("evaluate", "RUN", "--data", "DATA", "--out", out))


def test_a_result_may_go_to_the_terminal(
    folder: Path, parsed: Callable[..., argparse.Namespace]
) -> None:
    check_outputs(parsed("check", "DATA", "--json", "/dev/stdout"))


@pytest.fixture
def parsed() -> Callable[..., argparse.Namespace]:
    return lambda *words: cli.parse(words)


@pytest.mark.parametrize("key", ["run.folder", "data.local_folder"])
@pytest.mark.parametrize("where", ["DATA", "DATA/train", "DATA/val/a/b", "link/train/a"])
def test_no_training_writes_among_its_images(key: str, where: str, folder: Path) -> None:
    (folder / "link").symlink_to("DATA")
    section, name = key.split(".")
    values = {"data": {"root": "DATA"}, "run": {"folder": "elsewhere"}}
    values.setdefault(section, {})[name] = where
    with pytest.raises(ConfigError, match=f"{key} {where} lies among the images of data.root DATA"):
        make_config(values)
    values[section][name] = "DATA/runs/a"  # where nothing is read
    make_config(values)
