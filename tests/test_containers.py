"""The recipes of container images: Dockerfile and Apptainer's definition."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
SECTIONS = dict(
    re.findall(
        r"^%(\w+)\n(.*?)(?=^%|\Z)",
        (ROOT / "vggdist.def").read_text(encoding="utf-8").replace("\\\n", " "),
        flags=re.MULTILINE | re.DOTALL,
    )
)


def words(command: str) -> list[str]:
    """Of a command, however the recipe names the argument CUDA."""
    return command.replace("${CUDA}", "{{ CUDA }}").split()


def test_both_recipes_take_the_same_steps() -> None:
    in_docker = [
        words(command)
        for run in re.findall(r"^RUN (.*)$", DOCKERFILE, flags=re.MULTILINE)
        for command in run.split(" && ")
    ]
    in_apptainer = [words(line) for line in SECTIONS["post"].splitlines() if line]
    assert in_docker == [command for command in in_apptainer if command[0] != "cd"]
    assert "ARG CUDA=13\n" in DOCKERFILE
    assert SECTIONS["arguments"].strip() == "CUDA=13"


def test_what_a_recipe_copies_is_in_the_repository() -> None:
    copied = [line.split()[0] for line in SECTIONS["files"].splitlines() if line.strip()]
    copied += [
        source
        for sources in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, flags=re.MULTILINE)
        for source in sources.split()
    ]
    assert len(copied) > 10
    assert [source for source in copied if not (ROOT / source).exists()] == []


def test_an_image_has_what_its_commands_need() -> None:
    copied = {line.split()[0] for line in SECTIONS["files"].splitlines() if line.strip()}
    assert copied >= {"configs", "launch", "vggdist"}
    setup = re.search(r"^\$\(VENV\)/\.with-cuda.*?: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert setup is not None
    assert copied >= {"Makefile", *setup[1].split()}
