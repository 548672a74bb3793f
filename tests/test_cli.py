"""The command line as people type it."""

import errno
import os
import re
from pathlib import Path

import pytest

from tests.conftest import Call
from vggdist.cli import build_parser, parse
from vggdist.commands.arguments import settings_of
from vggdist.commands.completion import commands_of

EVALUATE = ["evaluate", "--data", "images"]


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--scales", "32", "precision=fp32", "device=cpu"],
        ["run", "precision=fp32", "--scales", "32", "device=cpu"],
        ["precision=fp32", "run", "--scales", "32", "device=cpu"],
        ["precision=fp32", "device=cpu", "--scales", "32", "run"],
        ["precision=fp32", "--scales", "32", "run", "device=cpu"],
    ],
)
def test_settings_stand_anywhere_behind_the_verb(words: list[str]) -> None:
    arguments = parse([*EVALUATE, *words])
    assert arguments.network == "run"
    assert arguments.overrides == ["precision=fp32", "device=cpu"]
    assert arguments.scales == (32,)


@pytest.mark.parametrize(
    "words",
    [["run", "--precision", "fp32"], ["--precision=fp32", "run"], ["precision=fp32", "run"]],
)
def test_a_precision_is_an_option_and_a_setting(words: list[str]) -> None:
    assert settings_of(parse([*EVALUATE, *words])) == ["precision=fp32"]
    prediction = parse(["predict", *words, "cat.jpg", "device=cpu"])
    assert (prediction.network, prediction.images) == ("run", [Path("cat.jpg")])
    assert (prediction.precision, prediction.device) == ("fp32", "cpu")


def test_every_command_that_takes_settings_takes_a_precision_as_an_option() -> None:
    for command in commands_of(build_parser(), ""):
        if command.takes_settings:
            assert "--precision" in {name for option in command.options for name in option.names}


@pytest.mark.parametrize("short", ["--rank", "--ran=2"])
def test_ranks_are_never_abbreviated_so_that_no_rank_starts_ranks(
    short: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse([*EVALUATE, "run", short, "2"])
    assert f"unrecognized arguments: {short}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["tran", "--config", "f.yaml"], "'tran' is no verb; did you mean train?"),
        (["train", "--rank", "2"], "vggdist train: error: .* --rank; did you mean --ranks?"),
        (["evaluate", "run", "--scale=32"], "--scale=32; did you mean --scales?"),
        (["evaluate"], "required: WEIGHTS_OR_RUN\n"),
    ],
)
def test_a_misspelt_or_missing_word_is_answered_with_what_was_meant(
    words: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(words)
    assert re.search(error.replace("?", r"\?"), capsys.readouterr().err)


def test_two_networks_are_one_too_many(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([*EVALUATE, "run", "--scales", "32", "other"])
    assert "unrecognized arguments: other" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["~/run", "device=cpu"], ["device=cpu", "~/run"]])
def test_a_network_in_the_home_folder_is_found_wherever_it_stands(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert parse([*EVALUATE, *words]).network == "/home/me/run"
    with pytest.raises(SystemExit):
        parse([*EVALUATE, *(word.replace("~", "~nobody-here") for word in words)])
    assert "argument WEIGHTS_OR_RUN: '~nobody-here/run' begins with ~" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_ends_any_verb_with_a_sentence(
    number: int, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    def full(_: object) -> None:
        raise OSError(number, os.strerror(number), "/data/file")

    monkeypatch.setattr("vggdist.prepare.commands._prepare_digits", full)
    code, _, err = call("prepare", "digits", "--out", "/data")
    assert code == 1
    assert err == (
        f"error: /data/file cannot be written: {os.strerror(number)}. Free space there, and start "
        "the same command again.\n"
    )


def test_another_error_of_the_system_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    def broken(_: object) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr("vggdist.prepare.commands._prepare_digits", broken)
    with pytest.raises(OSError, match="Bad file descriptor"):
        call("prepare", "digits", "--out", "/data")
