"""Shells complete the command line; bash is asked as a person asks it, with Tab in a terminal."""

import contextlib
import os
import pty
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Call
from vggdist.cli import VERBS
from vggdist.config import KNOBS

ALL = "\x1b*"
"""The keys with which readline inserts every possible completion."""


@pytest.fixture
def bash(call: Call, tmp_path: Path) -> Callable[[str], list[str]]:
    """Types a line in bash, and returns the words that `vggdist` would be given."""
    (tmp_path / "script").write_text(call("completion", "bash")[1])
    for name in ("flowers.yaml", "readme.txt"):
        (tmp_path / name).touch()
    (tmp_path / "my photos").mkdir()

    def ask(line: str) -> list[str]:
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            ["/bin/bash", "--norc", "--noprofile", "-i"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=tmp_path,
            # No program can be found, so that the shell answers by itself.
            env={"PATH": "", "TERM": "dumb", "HISTFILE": ""},
            start_new_session=True,
        ):
            os.close(theirs)
            begin = "source script; vggdist() { printf '%s\\n' \"$@\" > words; }\n"
            os.write(ours, f"{begin}vggdist {line}\nexit\n".encode())
            with contextlib.suppress(OSError):  # the end of a terminal
                while os.read(ours, 4096):
                    pass
            os.close(ours)
        return (tmp_path / "words").read_text().splitlines()

    return ask


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ev\t", "evaluate"),
        ("bench ex\t", "bench exchange"),
        ("completion z\t", "completion zsh"),
        ("evaluate --sp\t va\t", "evaluate --split val"),
        ("export run --format onn\t", "export run --format onnx"),
        ("train pre\tb\t", "train precision=bf16"),
        ("train opti\tna\tla\t", "train optimizer.name=lars"),
        ("summary --configuration A-\t", "summary --configuration A-LRN"),
        ("plan precision=f\t32", "plan precision=fp32"),
    ],
)
def test_bash_completes_what_was_begun(
    bash: Callable[[str], list[str]], line: str, words: str
) -> None:
    assert bash(line) == words.split()


def test_bash_completes_files_where_files_are_meant(bash: Callable[[str], list[str]]) -> None:
    assert bash("train --config f\t data.root=my\t") == [
        *("train", "--config", "flowers.yaml", "data.root=my photos/")
    ]
    assert bash(f"train --config {ALL}") == ["train", "--config", "flowers.yaml", "my photos"]
    assert bash("predict net re\t") == ["predict", "net", "readme.txt"]
    assert bash(f"train optimizer.learning_rate={ALL}") == ["train", "optimizer.learning_rate="]


def test_bash_lists_verbs_options_and_keys(bash: Callable[[str], list[str]]) -> None:
    assert sorted(bash(ALL)) == sorted(VERBS)
    assert {"--config", "--help", "--print-config", "--ranks"} <= set(bash(f"train --{ALL}"))
    keys = {key for key in KNOBS if key.startswith("schedule.")}
    assert set(bash(f"train schedule.{ALL}")[1:]) == {f"{key}=" for key in keys}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_has_every_verb_and_every_key_with_the_words_that_it_takes(
    shell: str, call: Call
) -> None:
    code, script, _ = call("completion", shell)
    assert code == 0
    for word in (*VERBS, *(f"{key}=" for key in KNOBS), "exchange=factors", "data.flip=false"):
        assert f" {word}" in script
