"""`errors.png`: error by depth and training scale, from the code's Table 3."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import drawing as d
from matplotlib.axes import Axes

from vggdist.artifacts.posteriors import format_train_scale
from vggdist.config import ModelConfig
from vggdist.model.summary import summarize
from vggdist.reports import paper

COLORS = {(256, 256): d.BLUE, (384, 384): d.GREEN, paper.JITTERED: d.ORANGE}
NAMES = {"A": 0.8, "A-LRN": 0.8, "B": 0.8, "C": 1.2, "D": 1.2, "E": 1.2}
"""Configurations and the relative widths of their columns."""
WIDTH, HEIGHT, MARGIN = 13.3, 6.4, 0.35
BOTTOM, TOP, PANEL, LEFT = 1.45, 4.75, 5.45, 0.5
BAND = "#f4f5f8"
DODGE = 0.34  # between the points of one configuration


def draw(path: Path) -> None:
    """Draws top-1 and top-5 error side by side; the Description holds the rows."""
    layers = {
        name: summarize(ModelConfig(configuration=name), 224).num_weight_layers for name in NAMES
    }
    figure, axes = d.canvas(WIDTH, HEIGHT)
    title = "Deeper networks, trained at several scales, err less"
    d.text(axes, MARGIN, HEIGHT - 0.42, title, size=20, bold=True, across="left")
    caption = (
        "Table 3 of the paper: ILSVRC2012 validation images, dense evaluation at one scale Q "
        "(Q = S; 384 where S is drawn from [256;512])."
    )
    d.text(axes, MARGIN, HEIGHT - 0.82, caption, size=12, color=d.MUTED, across="left")
    for number, words in enumerate(("top-1 error, %", "top-5 error, %")):
        x = MARGIN + LEFT + number * (PANEL + LEFT + 0.7)
        errors = [(row.top1_error, row.top5_error)[number] for row in paper.TABLE_3.rows]
        percents = [100 * error for error in errors if error is not None]
        _draw_panel(axes, x, words, percents, layers)
    _draw_legend(axes)
    rows = [asdict(row) for row in paper.TABLE_3.rows]
    d.save(figure, path, json.dumps({"rows": rows, "layers": layers}))


def _draw_panel(
    axes: Axes, left: float, words: str, percents: Sequence[float], layers: dict[str, int]
) -> None:
    """One error of all rows, with a line through those of one S."""
    low, high = math.floor(min(percents) - 0.3), math.ceil(max(percents) + 0.2)

    def height(percent: float) -> float:
        return BOTTOM + (TOP - BOTTOM) * (percent - low) / (high - low)

    d.text(axes, left - LEFT, TOP + 0.4, words, size=13, bold=True, across="left")
    for percent in range(low, high + 1):
        y = height(percent)
        axes.plot([left, left + PANEL], [y, y], color=d.FAINT, linewidth=0.9, zorder=1)
        d.text(axes, left - 0.12, y, str(percent), size=11, color=d.MUTED, across="right")
    middles = _draw_columns(axes, left, layers)
    num_rows = Counter(row.networks[0].configuration for row in paper.TABLE_3.rows)
    for number, (scale, color) in enumerate(COLORS.items()):
        xs, ys = [], []
        for row, percent in zip(paper.TABLE_3.rows, percents, strict=True):
            name = row.networks[0].configuration
            if row.networks[0].train_scale == scale:
                is_alone = num_rows[name] == 1
                x = middles[name] + (0.0 if is_alone else DODGE * (number - 1))
                y = height(percent)
                # Two labels stand above their points side by side, the third below its own.
                aside = 0.0 if is_alone else (-0.08, 0.08, 0.0)[number]
                label = y + (-0.23 if scale == paper.JITTERED else 0.23)
                d.text(axes, x + aside, label, f"{percent:.1f}", size=10.5, color=color, rim=BAND)
                xs.append(x)
                ys.append(y)
        axes.plot(xs, ys, color=d.tint(color, 0.45), linewidth=2.2, zorder=2)
        axes.scatter(xs, ys, s=85, color=color, edgecolors=d.PAPER, linewidths=1.4, zorder=4)


def _draw_columns(axes: Axes, left: float, layers: dict[str, int]) -> dict[str, float]:
    """A band for each configuration; returns their middles."""
    middles, x, height = {}, left, TOP - BOTTOM + 0.95
    for name, share in NAMES.items():
        width = PANEL * share / sum(NAMES.values())
        middles[name] = x + width / 2
        y = BOTTOM - 0.75
        d.box(axes, x + 0.03, y, width - 0.06, height, fill=BAND, edge=BAND, layer=0)
        d.text(axes, middles[name], BOTTOM - 0.3, name, size=13, bold=True)
        d.text(axes, middles[name], BOTTOM - 0.57, str(layers[name]), size=11, color=d.MUTED)
        x += width
    d.text(axes, left - LEFT, BOTTOM - 0.57, "layers", size=11, color=d.MUTED, across="left")
    return middles


def _draw_legend(axes: Axes) -> None:
    x, y = MARGIN, 0.3
    d.text(axes, x, y, "trained at", size=12, across="left", color=d.MUTED)
    x += 1.15
    for scale, color in COLORS.items():
        axes.plot([x, x + 0.42], [y, y], color=d.tint(color, 0.45), linewidth=2.2, zorder=2)
        axes.scatter([x + 0.21], [y], s=85, color=color, edgecolors=d.PAPER, zorder=4)
        drawn = ", drawn for each image" if scale == paper.JITTERED else ""
        words = f"S = {format_train_scale(scale)}{drawn}"
        d.text(axes, x + 0.55, y, words, size=12, across="left")
        x += 1.75
