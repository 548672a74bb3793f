"""Several trainings side by side: what differs in their settings, their results, their curves."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vggdist.artifacts.files import replacing
from vggdist.artifacts.paths import quote
from vggdist.artifacts.run_files import Point
from vggdist.config_file import flatten
from vggdist.errors import VggdistError
from vggdist.monitoring.folders import Run
from vggdist.monitoring.table import names_of, percent, rate
from vggdist.terminal import duration, render_table

INK, MUTED, FAINT = "#1f2733", "#667085", "#d5dae3"
_OF_THE_PLACE = ("run.folder",)
"""Settings that differ between any two runs and say nothing."""


@dataclass(frozen=True)
class Comparison:
    """What a reader asks of several runs; a value for each run, in their order."""

    runs: tuple[Run, ...]
    settings: dict[str, tuple[str, ...]]
    """`section.key` -> its values, where they are not all the same."""
    results: dict[str, tuple[str, ...]]
    """What was measured, as text."""

    def rows(self) -> list[tuple[str, ...]]:
        """Results, then settings, as rows of a table."""
        return [
            (name, *values)
            for part in (self.results, self.settings)
            for name, values in part.items()
        ]

    def render(self) -> str:
        """The table for a terminal."""
        return render_table(("", *names_of(self.runs)), self.rows())

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `settings` as in the configuration files."""
        flat = [flatten(run.config.model_dump(mode="json")) for run in self.runs]
        return {
            "runs": [run.to_dict() for run in self.runs],
            "settings": {key: [values[key] for values in flat] for key in self.settings},
        }


def compare(runs: Sequence[Run]) -> Comparison:
    """Compares at least one run."""
    flat = [flatten(run.config.model_dump(mode="json")) for run in runs]
    keys = [key for key in flat[0] if key not in _OF_THE_PLACE]
    settings = {key: tuple(str(values[key]) for values in flat) for key in keys}

    def of_each(text: Callable[[Run], str]) -> tuple[str, ...]:
        return tuple(map(text, runs))

    results = {
        "state": of_each(lambda run: run.state),
        "steps": of_each(lambda run: f"{run.step:,}"),
        "epochs": of_each(lambda run: f"{run.epoch:.1f}"),
        "validation top-1 error": of_each(lambda run: percent(run.validation_error)),
        "best of all evaluations": of_each(_best),
        "training top-1 error": of_each(lambda run: percent(run.train_error)),
        "images/s": of_each(lambda run: rate(run.images_per_second)),
        "duration": of_each(_duration),
    }
    return Comparison(
        tuple(runs),
        {key: values for key, values in settings.items() if len(set(values)) > 1},
        results,
    )


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Writes the curves as .png, or curves and table as .html that needs no other file.

    Raises:
        VggdistError: it cannot be written.
    """
    picture = _draw(comparison.runs)
    try:
        with replacing(path) as temporary:
            if path.suffix == ".png":
                temporary.write_bytes(picture)
            else:
                temporary.write_text(_page(comparison, picture), encoding="utf-8")
    except OSError as error:
        raise VggdistError(f"--out {quote(path)} cannot be written: {error}.") from error


def _page(comparison: Comparison, picture: bytes) -> str:
    templates = Environment(loader=PackageLoader("vggdist.monitoring", "."), autoescape=True)
    return templates.get_template("comparison.html.jinja").render(
        names=names_of(comparison.runs),
        folders=[quote(run.folder) for run in comparison.runs],
        picture=base64.b64encode(picture).decode(),
        results=comparison.results,
        settings=comparison.settings,
        zip=zip,
    )


def _draw(runs: Sequence[Run]) -> bytes:
    """A PNG: errors, losses, learning rate and speed by epoch, a colour for each run."""
    figure = Figure(figsize=(12, 8), dpi=130, facecolor="white", layout="constrained")
    axes: Any = figure.subplots(2, 2)
    panels: tuple[tuple[Axes, str, str, float, bool], ...] = (
        (axes[0, 0], "top-1 error, %", "top1_error", 100, True),
        (axes[0, 1], "loss", "loss", 1, True),
        (axes[1, 0], "learning rate", "learning_rate", 1, False),
        (axes[1, 1], "images/s", "images_per_second", 1, False),
    )
    for place, title, key, scale, is_validated in panels:
        for number, (run, name) in enumerate(zip(runs, names_of(runs), strict=True)):
            color = f"C{number % 10}"
            width = 1.0 if is_validated else 1.8
            place.plot(
                *_curve(run.train, key, scale),
                color=color,
                linewidth=width,
                alpha=0.45 if is_validated else 1.0,
                label=None if is_validated else name,
            )
            if is_validated:
                place.plot(
                    *_curve(run.validation, key, scale),
                    color=color,
                    linewidth=2,
                    marker="o",
                    markersize=3,
                    label=name,
                )
        _finish(place, title)
    axes[1, 0].set_yscale("log")
    for place in (axes[0, 0], axes[1, 1]):
        place.set_ylim(bottom=0)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(
        "Thick with dots: validation; thin: training", x=0.01, ha="left", color=MUTED, fontsize=10
    )
    memory = io.BytesIO()
    figure.savefig(memory, format="png", metadata={"Software": None})
    return memory.getvalue()


def _curve(points: Iterable[Point], key: str, scale: float) -> tuple[list[float], list[float]]:
    """Epochs and values, without points that lack the value."""
    found = [(point["epoch"], scale * point[key]) for point in points if point.get(key) is not None]
    return [epoch for epoch, _ in found], [value for _, value in found]


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", color=INK, fontweight="bold", fontsize=11)
    axes.set_xlabel("epoch", loc="right", color=MUTED, fontsize=9)
    axes.grid(color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=9)
    for side in axes.spines.values():
        side.set_visible(False)


def _best(run: Run) -> str:
    if run.best is None:
        return ""
    return f"{percent(run.best.top1_error)} (epoch {run.best.epoch:.1f})"


def _duration(run: Run) -> str:
    return "" if run.result is None else duration(run.result["seconds"])
