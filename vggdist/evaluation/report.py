"""The report of an evaluation, as a table and as JSON: errors of each posteriors file and of their
mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from vggdist.artifacts.paths import quote
from vggdist.artifacts.posteriors import open_posteriors
from vggdist.evaluation.confusion import class_errors, worst_classes
from vggdist.evaluation.fusion import Members, errors_of_fusions
from vggdist.evaluation.metrics import TOP5
from vggdist.terminal import duration


@dataclass(frozen=True)
class Evaluated:
    """The files of an evaluation, on the main rank."""

    files: tuple[Path, ...]
    num_computed: int
    """Images x files that were computed; the others existed."""
    elapsed_seconds: float


def summarize(evaluated: Evaluated) -> dict[str, Any]:
    """Reads the files back and counts errors; fractions of `num_images`."""
    files = [open_posteriors(path) for path in evaluated.files]
    protocols: dict[str, Members] = {}
    for number, file in enumerate(files):
        protocol = file.source.protocol
        protocols[protocol] = (*protocols.get(protocol, ()), number)
    everything = tuple(range(len(files)))
    fusions = {everything, *((number,) for number in everything), *protocols.values()}
    confusion = np.zeros((len(files[0].classes),) * 2, np.int64)
    errors = errors_of_fusions(files, fusions, confusion=confusion)
    return {
        **errors[everything].to_dict(),
        "protocols": {name: errors[members].to_dict() for name, members in protocols.items()},
        "files": [
            {
                "protocol": file.source.protocol,
                "scale": file.source.scale,
                "flip": file.source.flip,
                **errors[number,].to_dict(),
                "file": str(file.path),
            }
            for number, file in enumerate(files)
        ],
        "num_computed": evaluated.num_computed,
        "elapsed_seconds": evaluated.elapsed_seconds,
        **class_errors(confusion).to_dict(files[0].classes),
    }


def render_evaluated(summary: dict[str, Any]) -> str:
    """The errors as a table; the caller prints it."""
    title = f"Errors on {summary['num_images']:,} images"
    table = Table("protocol", title=title, title_justify="left")
    shown = ("top1_error", "top5_error") if len(summary["classes"]) > TOP5 else ("top1_error",)
    for name in ("Q", "top-1", "top-5")[: 1 + len(shown)]:
        table.add_column(name, justify="right")

    def add(protocol: str, scale: str, errors: dict[str, Any]) -> None:
        table.add_row(protocol, scale, *(f"{100 * errors[name]:.2f} %" for name in shown))

    by_protocol: dict[str, list[dict[str, Any]]] = {}
    for row in summary["files"]:
        by_protocol.setdefault(row["protocol"], []).append(row)
    for protocol, rows in by_protocol.items():
        for row in rows:
            add(protocol + (" + flip" if row["flip"] else ""), str(row["scale"]), row)
        if len(rows) > 1:
            add(f"{protocol}, mean", "all", summary["protocols"][protocol])
    if len(by_protocol) > 1:
        add("mean of all", "all", summary)
    console = Console(width=None if Console().is_terminal else 120)
    with console.capture() as captured:
        console.print(table)
    folder = summary["files"][0]["file"].rpartition("/")[0]
    lines = [*worst_classes(summary), f"posteriors files: {quote(folder)}"]
    if summary["num_computed"]:
        seconds = summary["elapsed_seconds"]
        rate = summary["num_computed"] / max(seconds, 1e-9)
        lines.append(f"{duration(seconds)}, {rate:,.1f} images/s (all ranks, each scale counted)")
    return captured.get() + "\n".join(lines)
