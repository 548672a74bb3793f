"""Arguments shared by several verbs, and the output of results."""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from vggdist.artifacts.paths import expand_home, lies_in, quote, require_apart, require_suffix
from vggdist.artifacts.run_files import CHECKPOINTS, CONFIG_FILE, RUN_FILES
from vggdist.config import Config, PrecisionSetting
from vggdist.config_file import load_config
from vggdist.errors import ConfigError, VggdistError

MOST_PROFILED = 100
"""Steps; a trace of D has some thousand events a step, and viewers open no more than a million."""
Arguments = argparse.ArgumentParser | argparse._ArgumentGroup


@dataclass(frozen=True)
class PathRole:
    """How a command uses the paths of one of its arguments."""

    dest: str
    option: str
    kind: Literal["read", "images", "written"]
    suffixes: tuple[str, ...] = ()
    """Allowed suffixes of a file that is written."""


def add_input(parser: Arguments, *names: str, images: bool = False, **settings: Any) -> None:
    """Adds a file or folder that is read; `images`: nothing may be written into it."""
    _add_path(parser, names, "images" if images else "read", (), settings)


def add_output(
    parser: Arguments, *names: str, suffixes: tuple[str, ...] = (), **settings: Any
) -> None:
    """Adds a file with one of these suffixes, or a folder, that is written."""
    _add_path(parser, names, "written", suffixes, settings)


def _add_path(
    parser: Arguments,
    names: Sequence[str],
    kind: Literal["read", "images", "written"],
    suffixes: tuple[str, ...],
    settings: Mapping[str, Any],
) -> None:
    action = parser.add_argument(*names, **{"type": user_path, **settings})
    role = PathRole(action.dest, names[0], kind, suffixes)
    parser.set_defaults(paths=(*(parser.get_default("paths") or ()), role))


def check_outputs(arguments: argparse.Namespace, images: Iterable[str | Path] = ()) -> None:
    """Refuses misleading suffixes, and outputs over or inside what the command reads.

    Args:
        images: folders of images that are read, in addition to those of the arguments.

    Raises:
        ConfigError: an output is refused.
    """
    given = [
        (role, path) for role in arguments.paths for path in _listed(getattr(arguments, role.dest))
    ]
    read = [path for role, path in given if role.kind == "read"]
    overrides = getattr(arguments, "overrides", ())
    read += [os.path.expanduser(word[1:]) for word in overrides if word.startswith("@")]
    images = [*images, *(path for role, path in given if role.kind == "images")]
    for role, out in given:
        if role.kind != "written" or out.absolute().is_relative_to("/dev"):  # /dev/stdout
            continue
        if role.suffixes:
            require_suffix(role.option, out, role.suffixes)
        require_apart(role.option, out, read, images)
        _require_outside_of_training(role.option, out)


def _listed(value: Any) -> list[Any]:
    """The paths of an argument: none, one or several."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _require_outside_of_training(option: str, out: Path) -> None:
    for folder in out.absolute().parents:
        if (folder / CONFIG_FILE).is_file() and (
            out.absolute() in [folder / name for name in RUN_FILES]
            or lies_in(out, folder / CHECKPOINTS)
        ):
            raise ConfigError(
                f"{option} {quote(out)} is kept for the training in {quote(folder)}; give another "
                "name."
            )


def configured(arguments: argparse.Namespace, defaults: Sequence[str] = ()) -> Config:
    """The configuration of `defaults`, --config and the overrides, in this order."""
    named = getattr(arguments, "configuration", None)
    overrides = [*defaults, *settings_of(arguments)]
    overrides += [f"model.configuration={named}"] if named else []
    config = load_config(arguments.config, overrides)
    if config.data.root is not None:
        check_outputs(arguments, [config.data.root])
    return config


def settings_of(arguments: argparse.Namespace) -> list[str]:
    """All `section.key=value` of a command line, also those that are given as options."""
    precision = arguments.precision
    return [*arguments.overrides, *([f"precision={precision}"] if precision else [])]


def add_configuration(parser: argparse.ArgumentParser) -> None:
    """Adds --configuration, short for model.configuration=NAME."""
    parser.add_argument(
        "--configuration",
        metavar="NAME",
        help="A, A-LRN, B, C, D or E; or VGG11, VGG13, VGG16 or VGG19 for A, B, D or E",
    )


def add_config(
    parser: argparse.ArgumentParser, text: str = "on top of the file and of the paper's defaults"
) -> None:
    """Adds the file of a configuration, and overrides, of which `text` is the help."""
    add_input(parser, "--config", metavar="FILE", help="YAML file of sections")
    add_overrides(parser, text)


def add_json(parser: argparse.ArgumentParser) -> None:
    add_output(
        parser,
        "--json",
        suffixes=(".json",),
        metavar="FILE",
        help="also write the result as JSON",
    )


def add_network(parser: argparse.ArgumentParser) -> None:
    """Adds the argument for a trained network."""
    add_input(
        parser,
        "network",
        type=user_path_text,
        metavar="WEIGHTS_OR_RUN",
        help="run folder, RUN@best, checkpoint or weights file",
    )


def add_data(parser: argparse.ArgumentParser, text: str, required: bool = True) -> None:
    """Adds the argument for the images."""
    add_input(
        parser,
        "--data",
        images=True,
        type=user_path_text,
        required=required,
        metavar="ROOT",
        help=text,
    )


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds overrides of a network's own settings."""
    usual = "precision=fp32, device=cpu, data.num_threads=4 or evaluation.max_megapixels=2"
    add_overrides(parser, f"such as {usual}")


def add_overrides(parser: argparse.ArgumentParser, text: str) -> None:
    """Adds `section.key=value`, of which `text` is the help; `settings_of` has what is given."""
    # With a default, argparse does not call them required.
    parser.add_argument("overrides", nargs="*", default=[], metavar="section.key=value", help=text)
    parser.add_argument(
        "--precision", choices=get_args(PrecisionSetting), help="the same as precision=..."
    )


def add_local_rank(parser: argparse.ArgumentParser) -> None:
    """Adds the argument that launchers pass to every script; the environment has it, too."""
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)


def user_path(text: str) -> Path:
    """A path with `~` expanded."""
    return Path(user_path_text(text))


def user_path_text(text: str) -> str:
    try:
        return expand_home(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def scales(text: str) -> tuple[int, ...]:
    """`256,384,512` -> (256, 384, 512)."""
    try:
        return tuple(int(scale) for scale in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of whole numbers such as 256,384,512"
        ) from None


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def steps_or_count(text: str) -> int | range:
    """`100-105` -> these steps, the last one included; `10` -> so many."""
    first, dash, last = text.partition("-")
    try:
        wanted = range(int(first), int(last) + 1) if dash else int(text)
    except ValueError:
        wanted = 0
    count = len(wanted) if isinstance(wanted, range) else wanted
    if not 1 <= count <= MOST_PROFILED or (isinstance(wanted, range) and wanted.start < 1):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither steps such as 100-105 nor a number of steps such as 10, at most "
            f"{MOST_PROFILED}"
        )
    return wanted


def fraction(text: str) -> float:
    if not 0 <= (share := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{share} is not between 0 and 1")
    return share


def share(text: str) -> float:
    """`20%` or `0.2` -> 0.2."""
    number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not more than 0 and less than 100%")
    return number


def show(text: str, values: Mapping[str, Any], path: Path | None) -> None:
    sys.stdout.write(text.rstrip("\n") + "\n")
    if path is not None:
        write_json(values, path)


def write_json(values: Mapping[str, Any], path: Path) -> None:
    try:
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise VggdistError(f"--json {quote(path)} cannot be written: {error}.") from error
