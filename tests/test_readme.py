"""What the documents say is so: commands parse, files exist, the tree is whole."""

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from vggdist import errors
from vggdist.cli import parse
from vggdist.commands.evaluation import add_arguments
from vggdist.config_file import load_config, make_config

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/gpu.md")
README = (ROOT / "README.md").read_text(encoding="utf-8")
OTHER_PROGRAMS = {"source", "export", "tensorboard", "pytest", ".venv/bin/pre-commit"}


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def _commands() -> Iterator[tuple[str, str]]:
    """(document, command) for every line of the documents' sh blocks and the configs' comments."""
    for name in DOCUMENTS:
        for block in _blocks((ROOT / name).read_text(encoding="utf-8"), "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip() and not line.startswith("#"):
                    yield name, line.strip()
    for file in sorted((ROOT / "configs").glob("**/*.yaml")):
        for line in file.read_text(encoding="utf-8").splitlines():
            if re.match(r"#   (deepspeed|torchrun|python|vggdist) ", line):
                yield file.name, line.removeprefix("#").strip()


COMMANDS = [
    pytest.param(command, id=f"{document}: {command[:60]}") for document, command in _commands()
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_in_the_documents_can_be_run(command: str) -> None:
    words = shlex.split(command.removeprefix("sudo "), comments=True)
    program = words[0]
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(targets)
    elif program == "vggdist":
        parse(words[1:])
    elif "launch/train.py" in words:
        _check_training(words[words.index("launch/train.py") + 1 :])
    elif "launch/evaluate.py" in words:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        parser.parse_intermixed_args(words[words.index("launch/evaluate.py") + 1 :])
    elif program == "python":
        assert (ROOT / words[1]).is_file()
    else:
        assert program in OTHER_PROGRAMS


def _check_training(arguments: list[str]) -> None:
    """Loads the configuration of a `launch/train.py` command."""
    file, overrides = None, []
    rest = iter(arguments)
    for word in rest:
        if word == "--config":
            file = ROOT / next(rest)
        elif word != "--print-config":
            overrides.append(word)
    load_config(file, overrides)


def test_the_documents_have_the_two_commands_and_the_three_ways_to_start() -> None:
    commands = [command for document, command in _commands() if document == "README.md"]
    assert commands[:2] == ["make quickstart", "make test"]
    started = {command.split()[0] for command in commands if "launch/train.py" in command}
    assert started == {"deepspeed", "torchrun", "python"}


@pytest.mark.parametrize("block", _blocks(README, "yaml"))
def test_yaml_in_the_readme_is_a_configuration(block: str) -> None:
    make_config(yaml.safe_load(block))


def _tree() -> set[str]:
    """Paths in the README's tree, folders with a slash at the end."""
    section = README.partition("## What is where")[2]
    paths, folders = set(), [""]
    for line in _blocks(section, "text")[0].splitlines():
        depth = (len(line) - len(line.lstrip(" "))) // 2
        path = folders[depth] + line.split()[0]
        paths.add(path)
        if path.endswith("/"):
            folders[depth + 1 :] = [path]
    return paths


def test_every_path_in_the_readme_s_tree_exists() -> None:
    for path in _tree():
        assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file(), path


def test_every_file_of_the_project_is_in_the_readme_s_tree() -> None:
    patterns = ("vggdist/**/*.py", "launch/*.py", "configs/**/*.yaml", "images/*.py")
    files = {
        str(file.relative_to(ROOT))
        for pattern in patterns
        for file in ROOT.glob(pattern)
        if file.name != "__init__.py"
    }
    assert sorted(files - _tree()) == []


def test_every_line_of_the_readme_s_tree_says_what_the_file_is() -> None:
    section = README.partition("## What is where")[2]
    for line in _blocks(section, "text")[0].splitlines():
        assert len(line.split()) > 1 or line.strip().endswith("/"), line


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_pictures_in_the_documents_exist(name: str) -> None:
    path = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_the_readme_lists_every_exit_code() -> None:
    codes = {one.exit_code for one in errors.VggdistError.__subclasses__()}
    codes |= {0, errors.VggdistError.exit_code, errors.EXIT_STOPPED, errors.EXIT_NOT_REQUEUED}
    section = README.partition("**Exit codes.**")[2].partition("## ")[0]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)} == codes


def test_the_architecture_can_be_read_in_one_sitting() -> None:
    assert len((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines()) < 150


def test_the_architecture_names_every_module_in_its_level_table() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = text.partition("| level |")[2].partition("\n\n")[0]
    for file in ROOT.glob("vggdist/**/*.py"):
        if file.name != "__init__.py":
            path = file.relative_to(ROOT / "vggdist").as_posix()
            assert f"`{path}`" in table or f"`{file.stem}`" in table, path


def test_every_test_that_the_architecture_names_exists() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for path in re.findall(r"`(tests/[^`]*)`", text):
        assert (ROOT / path).exists(), path
