#!/usr/bin/env python
"""Writes the reference of keys and of commands into the pages: `make reference`.

The generated part of a page stands between `<!-- generated -->` and `<!-- /generated -->`. It
follows from the code alone, not from a terminal's width or from how argparse lays out its help.
"""

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from textwrap import dedent
from typing import Any

from vggdist.cli import build_parser
from vggdist.config import KNOBS, Config

DOCS = Path(__file__).resolve().parent
BEGIN, END = "<!-- generated -->\n", "\n<!-- /generated -->"
TITLES = {"positional arguments": "argument", "options": "option"}
LIMITS = {
    "minimum": "≥",
    "exclusiveMinimum": ">",
    "maximum": "≤",
    "exclusiveMaximum": "<",
    "multipleOf": "a multiple of",
}


def keys() -> str:
    """The keys of the configuration, a table for each section."""
    schema = Config.model_json_schema()
    sections = {
        name: schema["$defs"][key["$ref"].rpartition("/")[2]]
        for name, key in schema["properties"].items()
        if "$ref" in key
    }
    parts = [
        f"### {name}\n\n{section['description']}\n\n{_keys(section['properties'], f'{name}.')}"
        for name, section in sections.items()
    ]
    others = {name: key for name, key in schema["properties"].items() if name not in sections}
    return "\n\n".join([*parts, f"### Keys outside the sections\n\n{_keys(others, '')}"])


def _keys(keys: Mapping[str, Any], prefix: str) -> str:
    rows = [("key", "type and range", "default", "meaning and unit", "may change on resume")]
    for name, key in keys.items():
        knob = KNOBS[prefix + name]
        resumed = "yes" if knob.may_change is True else knob.rule
        default = json.dumps(key["default"]).strip('"')
        rows.append((f"`{prefix}{name}`", _type(key), f"`{default}`", key["description"], resumed))
    return _table(rows)


def _type(key: Mapping[str, Any]) -> str:
    """A type of JSON Schema in words."""
    if "anyOf" in key:
        return " or ".join(map(_type, key["anyOf"]))
    if "enum" in key:
        return " or ".join(f"`{value}`" for value in key["enum"])
    if key["type"] == "array":
        items = key.get("prefixItems")
        return f"{len(items)} × {_type(items[0])}" if items else "list"
    words = {"null": "`null`", "boolean": "`true` or `false`", "string": "text"}
    limits = [f"{sign} {key[limit]:g}" for limit, sign in LIMITS.items() if limit in key]
    return " ".join([words.get(key["type"], key["type"]), " and ".join(limits)]).rstrip()


def commands() -> str:
    """The commands, a section for each."""
    return "\n\n".join(map(_command, _leaves(build_parser())))


def _leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The commands that have none below them."""
    below = [action for action in parser._actions if hasattr(action, "_name_parser_map")]
    if not below:
        yield parser
    for action in below:
        for child in (action.choices or {}).values():
            yield from _leaves(child)


def _command(parser: argparse.ArgumentParser) -> str:
    parts = [f"## {parser.prog}", f"```text\n{_usage(parser)}\n```", _prose(parser.description)]
    for group in parser._action_groups:
        actions = [a for a in group._group_actions if a.help != argparse.SUPPRESS]
        rows = [(f"`{_name(a)}`", _help(parser, a)) for a in actions if a.dest != "help"]
        if rows:
            heading = TITLES.get(group.title or "", group.title or "")
            parts.append(_table([(heading, "meaning"), *rows]))
    return "\n\n".join(filter(None, [*parts, _examples(parser.epilog)]))


def _usage(parser: argparse.ArgumentParser) -> str:
    actions = [action for action in parser._actions if action.dest != "help"]
    words = [action for action in actions if not action.option_strings]
    required = [_name(a) for a in actions if a.required and a.option_strings]
    given = [f"[{_name(a)}]" if a.nargs == "*" else _name(a) for a in words]
    options = ["[options]"] if any(a.option_strings and not a.required for a in actions) else []
    return " ".join([parser.prog, *given, *required, *options])


def _name(action: argparse.Action) -> str:
    """What is typed for an argument, and what stands for its value."""
    choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else None
    value = str(action.metavar or choices or action.dest.upper())
    value += " ..." if action.nargs in ("*", "+") else ""
    names = ", ".join(action.option_strings)
    return value if not names else names if action.nargs == 0 else f"{names} {value}"


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    return f"{text} (required)" if action.required and action.option_strings else text


def _prose(text: str | None) -> str:
    """Paragraphs as they are; what is indented, as a block."""
    parts = []
    for paragraph in (text or "").strip("\n").split("\n\n"):
        for is_block, lines in groupby(paragraph.splitlines(), lambda line: line[:2] == "  "):
            block = dedent("\n".join(lines))
            parts.append(f"```text\n{block}\n```" if is_block else block)
    return "\n\n".join(parts)


def _examples(text: str | None) -> str:
    """The end of a help text: commands, and what is said behind them."""
    commands, _, note = (text or "").partition("\n\n")
    body = re.sub(r"\\?\n *(?=--)", " ", commands.partition(":")[2])  # one command over two lines
    lines = [" ".join(line.split()) for line in body.replace("\\\n", " ").splitlines()]
    block = "\n".join(filter(None, lines))
    return "\n\n".join(filter(None, [block and f"```sh\n{block}\n```", note.strip()]))


def _table(rows: list[tuple[str, ...]]) -> str:
    """Markdown; the first row is the head."""
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def pages() -> dict[Path, str]:
    """Page -> its text, as it has to be."""
    texts = {}
    for name, part in (("configuration.md", keys), ("commands.md", commands)):
        before, _, rest = (DOCS / name).read_text(encoding="utf-8").partition(BEGIN)
        texts[DOCS / name] = f"{before}{BEGIN}\n{part()}\n{END}{rest.partition(END)[2]}"
    return texts


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
