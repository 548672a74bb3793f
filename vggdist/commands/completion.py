"""The verb completion: scripts with which bash, zsh and fish complete the command line.

A script holds all verbs, options, keys and values as they are when it is written, so that a shell
answers in milliseconds, also where Python starts slowly from a network's disk.
"""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from shlex import join, quote
from typing import Any, Literal, Union, get_args, get_origin

from vggdist.config import Config
from vggdist.config_file import takes_text
from vggdist.model.configurations import TABLE_1
from vggdist.section import Section, section_of

FILES, YAML = "<files>", "<yaml>"
"""In place of words: a file or a folder, or a file that ends in .yaml."""
SHELLS = ("bash", "zsh", "fish")
DESCRIPTION = """\
Prints a script with which a shell completes verbs, options, files, and keys of the configuration
with their values. Keep it in a file that the shell reads:

  bash  ~/.local/share/bash-completion/completions/vggdist, or any file that ~/.bashrc sources
  zsh   ~/.zfunc/_vggdist, with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc
  fish  ~/.config/fish/completions/vggdist.fish

After an update of vggdist, write it anew.
"""


def add_verbs(verbs: Any) -> None:
    """Adds this verb to the command line."""
    parser = verbs.add_parser(
        "completion",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=DESCRIPTION,
        epilog="example: vggdist completion bash",
    )
    parser.add_argument("shell", choices=SHELLS, help="for which shell")
    parser.set_defaults(run=_run, paths=())


def _run(arguments: argparse.Namespace) -> None:
    from vggdist.cli import build_parser

    sys.stdout.write(render_script(build_parser(), arguments.shell))


@dataclass(frozen=True)
class Option:
    """An option, and what may follow it."""

    names: tuple[str, ...]
    help: str
    takes_value: bool
    values: tuple[str, ...]
    """Words, or `FILES` or `YAML`; empty: anything."""


@dataclass(frozen=True)
class Command:
    """What may stand behind some words of the command line."""

    words: str
    """Such as `bench data`; empty: none yet."""
    verbs: dict[str, str]
    """Verb, or another word that must stand here -> its help."""
    options: tuple[Option, ...]
    takes_files: bool
    takes_settings: bool


def render_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for one of `SHELLS`; `parser` has all verbs with their arguments."""
    commands = tuple(commands_of(parser, ""))
    if shell == "fish":
        return _fish(commands)
    wrapper = {"bash": _BASH, "zsh": _ZSH}[shell]
    return wrapper.replace("@FIND@", _find(commands))


def commands_of(parser: argparse.ArgumentParser, words: str) -> Iterator[Command]:
    """This parser's, and those below it."""
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    below = [action for action in shown if isinstance(action, argparse._SubParsersAction)]
    paths = {role.dest for role in parser.get_default("paths") or ()}
    positional = [action for action in shown if not action.option_strings]
    verbs = {word: "" for action in positional for word in action.choices or ()}
    helps = {choice.dest: choice.help or "" for sub in below for choice in sub._choices_actions}
    yield Command(
        words,
        verbs | helps,
        tuple(
            Option(
                tuple(action.option_strings),
                (action.help or "") % {**vars(action), "prog": parser.prog},
                action.nargs != 0,
                tuple(_values_of_option(action, paths)),
            )
            for action in shown
            if action.option_strings
        ),
        takes_files=any(action.dest in paths for action in positional),
        takes_settings=any(action.metavar == "section.key=value" for action in positional),
    )
    for sub in below:
        for name, child in sub.choices.items():
            yield from commands_of(child, f"{words} {name}".lstrip())


def _values_of_option(action: argparse.Action, paths: set[str]) -> Iterable[str]:
    if action.choices is not None:
        return map(str, action.choices)
    if action.dest == "configuration":
        return TABLE_1
    if action.dest in paths:
        return [YAML if action.dest in ("config", "cluster") else FILES]
    return []


def settings() -> dict[str, tuple[str, ...]]:
    """`section.key` -> its values, as of an `Option`."""
    return dict(_settings(Config, ()))


def _settings(
    section: type[Section], names: tuple[str, ...]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name, field in section.model_fields.items():
        path = *names, field.alias or name
        key, below = ".".join(path), section_of(field)
        if below is not None:
            yield from _settings(below, path)
        elif takes_text(Config, path):
            yield key, (FILES,)
        else:
            yield key, tuple(TABLE_1 if key == "model.configuration" else _words(field.annotation))


def _words(kind: Any) -> Iterator[str]:
    """The values of a type that has but a few, as they are typed."""
    if get_origin(kind) is Literal:
        yield from map(str, get_args(kind))
    elif get_origin(kind) in (Union, types.UnionType):
        yield from (word for part in get_args(kind) for word in _words(part))
    elif kind is bool:
        yield from ("true", "false")


# What bash and zsh share: both read it, and it keeps to what they have in common. It is given the
# words behind `vggdist`, the last of which is being typed, and prints what may stand in its place.
_FIND = """\
_vggdist_find() {
    local words="" previous=""
    while [ $# -gt 1 ]; do
        previous="$1"
        case "${words:+$words }$1" in
            @CONTEXTS@) words="${words:+$words }$1" ;;
        esac
        shift
    done
    case "$words $previous" in
@VALUES@
    esac
    case "$1" in
        -*) case "$words" in
@OPTIONS@
        esac; return ;;
    esac
    case "$words" in
@VERBS@
        @FILES@) [ -n "$1" ] || { echo '<files>'; return; } ;;
    esac
    case "$words" in
        @SETTINGS@) case "$1" in
@KEYS@
            *=*) return ;;
            *.*) printf '%s\\n' @KNOBS@ ;;
            *) printf '%s\\n' @SECTIONS@ ;;
        esac ;;
    esac
    echo '<files>'
}
"""

_BASH = """\
# Completes vggdist in bash; written by `vggdist completion bash`.
@FIND@
_vggdist() {
    local line="${COMP_LINE:0:COMP_POINT}" words current answers word
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    current="${words[-1]}"
    answers="$(_vggdist_find "${words[@]:1}")"
    COMPREPLY=()
    local IFS=$'\\n'
    for word in $answers; do
        case "$word" in
            '<files>') [[ ${#COMPREPLY[@]} -gt 0 ]] || compopt -o default +o nospace ;;
            '<yaml>')
                compopt -o filenames +o nospace
                COMPREPLY=($(compgen -d -- "$current"; compgen -f -X '!*.y*ml' -- "$current")) ;;
            "$current"*)
                # readline puts it in the place of what stands behind the last `=` alone.
                [[ $current == *=* && $COMP_WORDBREAKS == *=* ]] && word="${word#*=}"
                [[ $word == *[.=] ]] || word+=" "
                COMPREPLY+=("$word") ;;
        esac
    done
}
complete -o nospace -F _vggdist vggdist
"""

_ZSH = """\
#compdef vggdist
# Completes vggdist in zsh; written by `vggdist completion zsh`.
@FIND@
_vggdist() {
    local word
    local -a answers whole begun
    answers=("${(@f)$(_vggdist_find "${(@)words[2,CURRENT-1]}" "$PREFIX")}")
    for word in $answers; do
        case "$word" in
            '<files>') ;;
            '<yaml>') _files -g '*.y*ml'; return ;;
            *[.=]) begun+=("$word") ;;
            *) whole+=("$word") ;;
        esac
    done
    compadd -S '' -a begun && return
    compadd -a whole && return
    [[ ${answers[-1]} == '<files>' ]] || return
    compset -P '*='
    _files
}
if [[ $funcstack[1] == _vggdist ]]; then _vggdist "$@"; else compdef _vggdist vggdist; fi
"""


def _find(commands: Iterable[Command]) -> str:
    values = [
        _case([f"{command.words} {name}" for name in option.names], option.values)
        for command in commands
        for option in command.options
        if option.takes_value
    ]
    keys = settings()
    parts = {
        "CONTEXTS": _pattern(command.words for command in commands if command.words),
        "VALUES": values,
        "OPTIONS": [
            _case([command.words], [name for option in command.options for name in option.names])
            for command in commands
        ],
        "VERBS": [_case([command.words], command.verbs) for command in commands if command.verbs],
        "FILES": _pattern(command.words for command in commands if command.takes_files),
        "SETTINGS": _pattern(command.words for command in commands if command.takes_settings),
        "KEYS": [
            _case([f"{key}="], [v if v == FILES else f"{key}={v}" for v in found], after="*")
            for key, found in keys.items()
            if found
        ],
        "KNOBS": join(f"{key}=" for key in keys),
        "SECTIONS": join(dict.fromkeys(_begin(key) for key in keys)),
    }
    script = _FIND
    for name, part in parts.items():
        text = part if isinstance(part, str) else "\n".join(f"        {line}" for line in part)
        script = script.replace(f"@{name}@", text)
    return script


def _case(words: Iterable[str], answers: Iterable[str], after: str = "") -> str:
    """A branch of a shell's `case` that prints `answers`, and returns."""
    listed = join(answers)
    printing = f"printf '%s\\n' {listed}; " if listed else ""
    return f"{_pattern(words, after)}) {printing}return ;;"


def _pattern(words: Iterable[str], after: str = "") -> str:
    return "|".join(quote(word) + after for word in words)


def _begin(key: str) -> str:
    """What is completed first of a key: its section, or all of a key that has none."""
    section, dot, _ = key.partition(".")
    return f"{section}." if dot else f"{key}="


_FISH = """\
# Completes vggdist in fish; written by `vggdist completion fish`.
function __vggdist_at
    set -l words ""
    for word in (commandline -opc)[2..-1]
        set -l longer (string trim -- "$words $word")
        contains -- "$longer" @CONTEXTS@; and set words $longer
    end
    test "$words" = "$argv[1]"
end
function __vggdist_settings
    switch (commandline -ct)
        case '*.*' '*=*'
            printf '%s\\n' @KNOBS@
        case '*'
            printf '%s\\n' @SECTIONS@
    end
end
"""


def _fish(commands: tuple[Command, ...]) -> str:
    keys = settings()
    knobs = [f"{key}={value}" for key, found in keys.items() for value in found if value != FILES]
    head = {
        "CONTEXTS": join(command.words for command in commands if command.words),
        "KNOBS": join([*(f"{key}=" for key in keys), *knobs]),
        "SECTIONS": join(
            [*dict.fromkeys(_begin(key) for key in keys), *(k for k in knobs if "." not in k)]
        ),
    }
    script = _FISH
    for name, part in head.items():
        script = script.replace(f"@{name}@", part)
    return script + "".join(f"{line}\n" for command in commands for line in _fish_lines(command))


def _fish_lines(command: Command) -> Iterator[str]:
    at = f'complete -c vggdist -n "__vggdist_at {quote(command.words)}"'
    if not (command.takes_files or command.takes_settings):
        yield f"{at} -f"
    for verb, text in command.verbs.items():
        yield f"{at} -a {verb} -d {quote(text)}"
    if command.takes_settings:
        yield f"{at} -a '(__vggdist_settings)'"
    for option in command.options:
        names = (
            f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names
        )
        values = ""
        if option.takes_value:
            is_file = {FILES, YAML} & set(option.values)
            values = " -r -F" if is_file else f" -x -a {quote(' '.join(option.values))}"
        yield f"{at} {' '.join(names)}{values} -d {quote(option.help)}"
