"""What several verbs have in common: arguments, and how a result is shown."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vggdist.errors import VggdistError


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of sections")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="on top of the file and of the paper's defaults",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result as JSON")


def add_network(parser: argparse.ArgumentParser) -> None:
    """A trained network, and settings on top of its own."""
    parser.add_argument(
        "network", metavar="WEIGHTS_OR_RUN", help="run folder, checkpoint or weights file"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="such as precision=fp32, device=cpu, data.num_threads=4 or "
        "evaluation.max_megapixels=2",
    )


def scales(text: str) -> tuple[int, ...]:
    """`256,384,512` -> the numbers."""
    try:
        return tuple(int(scale) for scale in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of whole numbers such as 256,384,512"
        ) from None


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def fraction(text: str) -> float:
    if not 0 <= (share := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{share} is not between 0 and 1")
    return share


def show(text: str, values: Mapping[str, Any], path: Path | None) -> None:
    sys.stdout.write(text.rstrip("\n") + "\n")
    if path is not None:
        write_json(values, path)


def write_json(values: Mapping[str, Any], path: Path) -> None:
    try:
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise VggdistError(f"--json {path} cannot be written: {error}.") from error
