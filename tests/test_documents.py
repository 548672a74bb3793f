"""What the documents say is so: commands parse, links lead somewhere, keys exist."""

import argparse
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from vggdist import errors
from vggdist.cli import build_parser, parse
from vggdist.commands.evaluation import add_arguments
from vggdist.config import Config
from vggdist.config_file import flatten, load_config, make_config
from vggdist.slurm.commands import add_arguments as add_submission

ROOT = Path(__file__).resolve().parent.parent
PAGES = tuple(sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")))
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", *PAGES)
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
OTHER_PROGRAMS = {"source", "export", "tensorboard", "pytest", ".venv/bin/pre-commit"}
KEYS = flatten(Config().model_dump())


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def _prose(text: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def _commands() -> Iterator[tuple[str, str]]:
    """(document, command) for every line of the documents' sh blocks and the configs' comments."""
    for name in DOCUMENTS:
        for block in _blocks(TEXTS[name], "sh"):
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
    elif program in {"docker", "apptainer"} and words[1] == "build":
        pass  # tests/test_containers.py reads the recipes
    elif "vggdist" in words:  # behind -m, --module or the name of an image
        parse(words[len(words) - words[::-1].index("vggdist") :])
    elif "launch/train.py" in words:
        _check_training(words[words.index("launch/train.py") + 1 :])
    elif "launch/evaluate.py" in words:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        parser.parse_intermixed_args(words[words.index("launch/evaluate.py") + 1 :])
    elif "launch/submit.py" in words:
        parser = argparse.ArgumentParser()
        add_submission(parser)
        parser.parse_intermixed_args(words[words.index("launch/submit.py") + 1 :])
    elif program == "python":
        assert (ROOT / words[1]).is_file()
    else:
        assert program in OTHER_PROGRAMS


def _mentions() -> list[str]:
    """Commands in the text of the documents, which may lack arguments."""
    found = (re.findall(r"`(?:sudo )?(vggdist [^`]+)`", _prose(text)) for text in TEXTS.values())
    return sorted({" ".join(command.split()) for commands in found for command in commands})


@pytest.mark.parametrize("command", _mentions())
def test_a_command_that_the_text_mentions_exists_with_its_options(command: str) -> None:
    parser = build_parser()
    words = shlex.split(command)
    for word in words[1:]:
        below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        if not below or word in ("--help", "COMMAND"):
            break
        assert word in below[0].choices
        parser = below[0].choices[word]
    options = {option for action in parser._actions for option in action.option_strings}
    assert {word for word in words if word.startswith("-")} <= options


def _check_training(arguments: list[str]) -> None:
    """Loads the configuration of a `launch/train.py` command."""
    file, overrides = None, []
    rest = iter(arguments)
    for word in rest:
        if word == "--config":
            file = ROOT / next(rest)
        elif word != "--print-config" and not word.startswith("@"):
            overrides.append(word)
    load_config(file, overrides)


def test_the_readme_begins_with_the_two_commands() -> None:
    commands = [command for document, command in _commands() if document == "README.md"]
    assert commands[:2] == ["make quickstart", "make test"]


def test_the_page_about_launching_has_the_three_ways_to_start() -> None:
    commands = [command for document, command in _commands() if document == "docs/launching.md"]
    trained = (
        command for command in commands if re.search(r"launch/train.py|vggdist train", command)
    )
    assert {command.split()[0] for command in trained} == {"deepspeed", "torchrun", "vggdist"}


def test_the_readme_can_be_read_in_one_sitting() -> None:
    assert len(TEXTS["README.md"].splitlines()) < 250


def test_the_readme_s_results_are_rows_of_the_page_about_performance() -> None:
    rows = re.findall(r"^\| .*`.* \|$", TEXTS["README.md"].partition("## Results")[2], re.MULTILINE)
    assert len(rows) == 4
    for row in rows:
        assert row in TEXTS["docs/performance.md"]


def _yaml_blocks() -> Iterator[object]:
    for name in DOCUMENTS:
        yield from (pytest.param(block, id=name) for block in _blocks(TEXTS[name], "yaml"))


@pytest.mark.parametrize("block", _yaml_blocks())
def test_yaml_in_the_documents_is_a_configuration(block: str) -> None:
    make_config(yaml.safe_load(block))


def _anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", _prose(path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_pictures_and_anchors_in_the_documents_exist(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(\s*([^)]+)\)", _prose(TEXTS[name])):
        path, _, anchor = target.partition("#")
        if path.startswith("https://"):
            continue
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in _anchors(file), target


@pytest.mark.parametrize("name", DOCUMENTS)
def test_keys_that_the_documents_name_exist(name: str) -> None:
    sections = "|".join({key.partition(".")[0] for key in KEYS if "." in key})
    for key in re.findall(rf"(?<![\w./-])(?:{sections})\.[a-z_]+\b", TEXTS[name]):
        assert key in KEYS or key.endswith((".py", ".txt", ".md")), key
    for key in re.findall(r"`([a-z_]+)=[^`]*`", TEXTS[name]):
        assert key in KEYS or key in {"key", "glorot"}, key  # glorot=true is an experiment's


@pytest.mark.parametrize("name", PAGES)
def test_files_that_the_pages_name_exist(name: str) -> None:
    for path in re.findall(r"`((?:configs|launch|tests|vggdist)/[\w/.]+)`", TEXTS[name]):
        assert (ROOT / path).exists(), path


def test_every_page_is_linked_from_the_start_page() -> None:
    linked = set(re.findall(r"\]\(([a-z-]+\.md)\)", TEXTS["docs/index.md"]))
    assert {f"docs/{page}" for page in linked} | {"docs/index.md"} == set(PAGES)


def test_the_reference_of_keys_and_commands_is_that_of_the_code() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for page, text in generate.pages().items():
        assert page.read_text(encoding="utf-8") == text, f"{page} is out of date: make reference"


def test_the_page_about_launching_lists_every_exit_code() -> None:
    codes = {one.exit_code for one in errors.VggdistError.__subclasses__()}
    codes |= {0, errors.VggdistError.exit_code, errors.EXIT_INTERRUPTED}
    codes |= {errors.EXIT_STOPPED, errors.EXIT_NOT_REQUEUED}
    section = TEXTS["docs/launching.md"].partition("## Exit codes")[2].partition("## ")[0]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)} == codes


def test_the_architecture_can_be_read_in_one_sitting() -> None:
    assert len(TEXTS["ARCHITECTURE.md"].splitlines()) < 150


def test_every_test_that_the_architecture_names_exists() -> None:
    for path in re.findall(r"`(tests/[^`]*)`", TEXTS["ARCHITECTURE.md"]):
        assert (ROOT / path).exists(), path
