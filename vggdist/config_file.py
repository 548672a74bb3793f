"""YAML and `section.key=value` -> `Config`, and back; one error lists every problem.

Other YAML files, such as cluster settings, are read and checked the same way.

Precedence: the paper's defaults < the YAML file < overrides in the given order. Avoids YAML's
traps: `1e-2` is a number, `off`, `010` and `1:30` are words, and a duplicate key is an error. An
override is not a YAML document: text such as a path is taken literally.
"""

import copy
import difflib
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, NoReturn, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from vggdist.artifacts.paths import expand_home, quote
from vggdist.config import Config
from vggdist.errors import ConfigError
from vggdist.section import Section, section_of

S = TypeVar("S", bound=Section)

_COMMENT_WIDTH = 98  # characters
_REDEFINED = ("bool", "int", "float", "timestamp")


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's booleans and numbers, decimal only, and unique keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[object, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if isinstance(key, str | int | float | bool) and key in seen:
                raise ConfigError(
                    f"line {line}: {key!r} is repeated (first in line {seen[key]}), and "
                    "only one value can count; delete one of them."
                )
            if isinstance(key, str | int | float | bool):
                seen[key] = line
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0].rpartition(":")[2] not in _REDEFINED]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|false|True|False)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"
        r"|^[-+]?\.inf$|^\.nan$"
    ),
    list("-+0123456789."),
)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that also quotes words that only `_Loader` parses as numbers."""


_Dumper.yaml_implicit_resolvers = {
    first: yaml.SafeDumper.yaml_implicit_resolvers.get(first, []) + pairs
    for first, pairs in (
        yaml.SafeDumper.yaml_implicit_resolvers | _Loader.yaml_implicit_resolvers
    ).items()
}


def load_config(
    path: Path | None, overrides: Sequence[str] = (), base: Mapping[str, Any] | None = None
) -> Config:
    """The configuration of a YAML file (or the paper's defaults) with overrides on top.

    Args:
        path: a YAML file of sections; None for the defaults.
        overrides: `section.key=value`, or `@FILE` for a file of such lines.
        base: sections that replace the defaults if there is no file.

    Raises:
        ConfigError: lists every problem: place, value, rule, remedy.
    """
    values = (
        read_yaml(path, "give --config a YAML file, such as configs/vgg_d.yaml")
        if path is not None
        else copy.deepcopy(dict(base or {}))
    )
    problems: list[str] = []
    typed = apply_overrides(overrides, values, problems)
    config, found = check(Config, values, typed=typed)
    if problems or config is None:
        raise_problems([*problems, *found], name_source(path, typed, found))
    return config


def apply_overrides(
    overrides: Iterable[str],
    values: dict[str, Any],
    problems: list[str],
    is_text: Callable[[Sequence[str]], bool] | None = None,
) -> dict[str, str]:
    """Applies `section.key=value` overrides to `values`, from left to right.

    Args:
        overrides: also `@FILE`, for a file of such lines.
        values: nested mappings.
        problems: receives a sentence for each invalid override.
        is_text: whether the value of a key, given as its names, is text; None: as in `Config`.

    Returns:
        Key -> the override that set it, by the name that later errors use.
    """
    typed: dict[str, str] = {}
    for override, label in _expand(overrides, problems):
        try:
            key = _apply(override, values, is_text or partial(takes_text, Config))
        except ValueError as error:
            problems.append(f"{label}{error}")
        else:
            typed[key] = label
    return typed


def to_override(key: str, value: object) -> str:
    """A plain value as the `section.key=value` that sets it."""
    is_text = isinstance(value, str) and takes_text(Config, key.split("."))
    return f"{key}={value if is_text else json.dumps(value)}"  # this JSON is valid YAML


def takes_text(model: type[Section], names: Sequence[str]) -> bool:
    """Whether a key's value is text, such as a path, so that an override is taken literally.

    Args:
        model: the model of the key.
        names: of the sections and of the key.
    """
    field = _field(names, model)
    return field is not None and _types(field.annotation) <= {str, NoneType}


def make_config(values: Mapping[str, Any]) -> Config:
    """Nested mappings -> `Config`."""
    return validate(Config, values, "the configuration")


def validate(model: type[S], values: Mapping[str, Any], source: str) -> S:
    """Nested mappings -> the typed, frozen `model`.

    Args:
        source: origin of the values, for the error's first line.

    Raises:
        ConfigError: lists every problem.
    """
    made, found = check(model, values)
    if found or made is None:
        raise_problems(found, source)
    return made


def check(
    model: type[S],
    values: Mapping[str, Any],
    where: str = "",
    typed: Mapping[str, str] | None = None,
) -> tuple[S | None, list[str]]:
    """The typed `model`, or a sentence for every problem of the values.

    Args:
        where: path of the values in a larger file, such as `stages.d_256`.
        typed: key of `model` -> the override that set it, as `apply_overrides` returns it.
    """
    try:
        return model.model_validate(values, by_alias=True, by_name=False), []
    except ValidationError as error:
        return None, [
            _sentence(detail, model, where, typed or {})
            for detail in error.errors(include_url=False)
        ]


def name_source(file: Path | None, typed: Mapping[str, str], found: Sequence[str]) -> str:
    """The source of problems, for an error's first line: a file, the command line, or both.

    Args:
        file: if there is one.
        typed: as `apply_overrides` returns it.
        found: the problems of values.
    """
    overrides = tuple(typed.values())
    if file is None or all(any(override in problem for override in overrides) for problem in found):
        return "the command line"
    return f"{file} and the command line" if overrides else str(file)


def raise_problems(problems: Sequence[str], source: str) -> NoReturn:
    """Raises one ConfigError that lists all problems of `source`."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    listing = "\n".join("  - " + problem.replace("\n", "\n    ") for problem in problems)
    raise ConfigError(f"{count} in {source}:\n{listing}")


def to_yaml(config: Config) -> str:
    """The whole configuration with defaults; `load_config` reads back an equal one."""
    return dump_yaml(config.model_dump(mode="json"))


def to_explained_yaml(config: Config) -> str:
    """As `to_yaml`, with what each section and key means in comments above them."""
    return "\n".join(_explain(config)) + "\n"


def _explain(values: Section, indent: str = "") -> Iterator[str]:
    for name, field in type(values).model_fields.items():
        key, value = field.alias or name, getattr(values, name)
        section = section_of(field)
        told = (section.__doc__ if section is not None else field.description) or ""
        for line in textwrap.wrap(" ".join(told.split()), _COMMENT_WIDTH - len(indent)):
            yield f"{indent}# {line}"
        if section is not None:
            yield f"{key}:"
            yield from _explain(value, "  ")
        else:
            text = dump_yaml({key: values.model_dump(mode="json")[key]})
            yield textwrap.indent(text, indent).rstrip("\n")


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Plain values as YAML; `read_yaml` reads back equal ones."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def differences(old: Config, new: Config) -> dict[str, tuple[object, object]]:
    """`section.key` -> (old value, new value), for keys in which two configurations differ."""
    flat_old, flat_new = flatten(old.model_dump()), flatten(new.model_dump())
    return {
        key: (flat_old[key], flat_new[key]) for key in flat_old if flat_old[key] != flat_new[key]
    }


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Nested mappings -> `section.key` and values."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def read_yaml(path: Path, remedy: str) -> dict[str, Any]:
    """Reads the mapping in a YAML file.

    Args:
        remedy: what to do if there is no such file, as half a sentence.

    Raises:
        ConfigError: there is no such file, or it is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        meant = _closest(path)
        hint = f"{remedy}." if meant is None else f"did you mean {quote(meant)}?"
        raise ConfigError(f"{quote(path)} does not exist; {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{quote(path)} cannot be read: {error}.") from error
    try:
        values = yaml.load(text, Loader=_Loader)
    except ConfigError as error:
        raise ConfigError(f"{quote(path)}, {error}") from None
    except Exception as error:  # a tag such as !!int raises whatever int() does
        raise ConfigError(f"{quote(path)} is not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{quote(path)} holds a {type(values).__name__}; it must hold keys with values, such "
            "as `model:` with `configuration: D` below it."
        )
    return values


def _closest(path: Path) -> Path | None:
    """A YAML file of almost the same name, in the same folder or in configs/."""
    folders = (Path("configs"), path.parent)
    files = {file.stem: file for folder in folders for file in sorted(folder.glob("*.y*ml"))}
    near = difflib.get_close_matches(path.stem, files, n=1)
    return files[near[0]] if near else None


def _expand(overrides: Iterable[str], problems: list[str]) -> Iterator[tuple[str, str]]:
    """Each override, including those of `@FILE`, with its name in errors."""
    for override in overrides:
        if not override.startswith("@"):
            yield override, repr(override)
            continue
        try:
            lines = Path(expand_home(override[1:])).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            problems.append(f"{override}: the file of overrides cannot be read: {error}.")
            continue
        for line in map(str.strip, lines):
            if line and not line.startswith("#"):
                yield line, f"{line!r} in {override[1:]}"


def _apply(override: str, values: dict[str, Any], is_text: Callable[[Sequence[str]], bool]) -> str:
    """Sets one value; returns its key.

    Raises:
        ValueError: the problem, to be appended to the override.
    """
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise ValueError(
            " is not of the form section.key=value, such as optimizer.learning_rate=0.01."
        )
    if key.endswith(" "):
        text = text.lstrip()  # of `run.folder = runs/a`
    section = values
    for name in names[:-1]:
        inner = section.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ValueError(f": {name} is a value, not a section.")
        section = inner
    if is_text(names):
        section[names[-1]] = None if text == "null" else text
    else:
        section[names[-1]] = _parse(text)
    return ".".join(names)


def _parse(text: str) -> object:
    """A word, a number, or a list or mapping in brackets."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        if isinstance(node, yaml.CollectionNode) and not node.flow_style:
            return text  # `a: b` is a mapping in a file only
        return yaml.load(text, Loader=_Loader)
    except Exception as error:  # as in `read_yaml`
        raise ValueError(f": the value is not valid YAML: {error}") from error


def _sentence(
    detail: ErrorDetails, model: type[Section], place: str, typed: Mapping[str, str]
) -> str:
    """One pydantic error -> where, what, what is allowed."""
    location = [str(part) for part in detail["loc"]]
    key, value = ".".join(filter(None, [place, *location])), detail["input"]
    where = _find_override(location, detail["type"] == "value_error", typed) or key
    if detail["type"] == "extra_forbidden":
        return f"{where}: unknown key; {_known_keys(location, model)}"
    if detail["type"] == "value_error":
        text = str(detail["ctx"]["error"])
        return f"{where}: {text}" if where else text
    if detail["type"] == "missing":
        return f"{where} is missing.{_description(location, model)}"
    if detail["type"] in ("model_type", "model_attributes_type"):
        return f"{where}: {value!r} is a value, but {key} is a section with keys of its own."
    if detail["type"] == "invalid_key":
        return f"{where}: {value!r} is not a word, and keys are words."
    rule = re.sub(r"^(Input|Dictionary|Tuple) ", "", detail["msg"])
    rule = re.sub(r"\bshould\b", "must", rule).replace("tuple", "list")
    rule = rule.replace(" after validation", "")
    return f"{where}: {value!r} {rule}.{_description(location, model)}"


def _find_override(location: Sequence[str], of_several: bool, typed: Mapping[str, str]) -> str:
    """The override that caused a problem, if any.

    Args:
        location: of the problem.
        of_several: the problem may involve several values of a section.
        typed: as `apply_overrides` returns it.
    """
    key = ".".join(location)
    for own, override in reversed(list(typed.items())):
        if key == own or key.startswith(f"{own}."):
            return override
        if own.startswith(f"{key}.") and not of_several:
            return override
    return ""


def _known_keys(location: list[str], model: type[Section]) -> str:
    """Suggestions for an unknown key."""
    section = _section(location[:-1], model)
    assert section is not None
    known = [field.alias or name for name, field in section.model_fields.items()]
    key, where = location[-1], ".".join(location[:-1])
    everywhere = {
        (field.alias or name): top
        for top, outer in model.model_fields.items()
        if (inner := section_of(outer)) is not None
        for name, field in inner.model_fields.items()
    }
    place = f"section {where} has" if where else "known are"
    dotted = [] if where else [f"{top}.{name}" for name, top in everywhere.items()]
    near = difflib.get_close_matches(key, [*known, *dotted], n=1)
    if near:
        return f"did you mean {'.'.join([*location[:-1], near[0]])}?"
    if key in everywhere:
        return f"did you mean {everywhere[key]}.{key}?"
    return f"{place} {', '.join(known)}."


def _section(path: Sequence[str], model: type[Section]) -> type[Section] | None:
    """The model of a section; None where there is none."""
    section: type[Section] | None = model
    for name in path:
        section = None if section is None else section_of(section.model_fields.get(name))
    return section


def _field(location: Sequence[str], model: type[Section]) -> FieldInfo | None:
    """The field of a key; None where there is none, or where the location is inside a value."""
    section = _section(location[:-1], model)
    fields = {} if section is None else section.model_fields
    return next((f for name, f in fields.items() if location[-1] in (name, f.alias)), None)


def _types(annotation: object) -> set[object]:
    """The types that a value may have: `str | None` -> str and NoneType."""
    if get_origin(annotation) is Annotated:
        return _types(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return {kind for part in get_args(annotation) for kind in _types(part)}
    return {annotation}


def _description(location: Sequence[str], model: type[Section]) -> str:
    """The field's description, for the end of an error; empty if the location is inside a value."""
    field = _field(location, model)
    if field is None or not field.description:
        return ""
    return f" ({field.description.rstrip('.')}.)"
