"""What the pictures share: a canvas measured in inches, boxes, arrows and colours."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.patheffects import Normal, Stroke

PAPER, INK, MUTED, FAINT = "#ffffff", "#1f2733", "#667085", "#d5dae3"
BLUE, GREEN, ORANGE, PURPLE, RED, TEAL, GRAY = (
    "#2f6fb5",
    "#3c8d4f",
    "#c77714",
    "#7a55a8",
    "#b8434e",
    "#1f8a8a",
    "#5c6675",
)
FONT = "DejaVu Sans"  # comes with matplotlib, so the pictures look alike everywhere
MONO = "DejaVu Sans Mono"
DOTS_PER_INCH = 180
HALF_OF_A_CAPITAL = 0.36  # of the size, in the fonts above


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty picture whose coordinates are inches, (0, 0) at the lower left."""
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, facecolor=PAPER)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_axis_off()
    return figure, axes


def save(figure: Figure, path: Path, description: str) -> None:
    """Writes a PNG whose text field Description says what was drawn."""
    figure.savefig(path, metadata={"Software": None, "Description": description})


def tint(color: str, share: float) -> str:
    """`color` mixed with white: share 0 is white, 1 the colour itself."""
    channels = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(255 + (c - 255) * share):02x}" for c in channels)


def box(
    axes: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    *,
    fill: str = PAPER,
    edge: str = FAINT,
    line: float = 1.0,
    radius: float = 0.06,
    layer: float = 2.0,
) -> None:
    """A rounded rectangle; (x, y) is its lower left corner."""
    axes.add_patch(
        FancyBboxPatch(
            (x + radius, y + radius),
            width - 2 * radius,
            height - 2 * radius,
            boxstyle=f"round,pad={radius}",
            facecolor=fill,
            edgecolor=edge,
            linewidth=line,
            zorder=layer,
        )
    )


def text(
    axes: Axes,
    x: float,
    y: float,
    words: str,
    *,
    size: float = 9.0,
    color: str = INK,
    bold: bool = False,
    mono: bool = False,
    across: str = "center",
    up: str = "center",
    spacing: float = 1.25,
    rim: str | None = None,
) -> None:
    """Words at (x, y); a single line in the middle stands on one height whatever its letters.

    A rim in the colour behind them keeps them apart from lines that they lie on.
    """
    if up == "center" and "\n" not in words:
        y, up = y - HALF_OF_A_CAPITAL * size / 72, "baseline"
    axes.text(
        x,
        y,
        words,
        fontsize=size,
        color=color,
        fontweight="bold" if bold else "normal",
        fontfamily=MONO if mono else FONT,
        ha=across,
        va=up,
        linespacing=spacing,
        zorder=6,
        path_effects=[Stroke(linewidth=3.0, foreground=rim), Normal()] if rim else None,
    )


def arrow(
    axes: Axes,
    *points: tuple[float, float],
    color: str = GRAY,
    line: float = 1.6,
    head: float = 9.0,
    both: bool = False,
) -> None:
    """A line through `points` with a head at its end; a bent one has a white rim for crossings."""
    rim = [Stroke(linewidth=line + 2.6, foreground=PAPER), Normal()]
    if len(points) > 2:
        xs, ys = zip(*points[:-1], strict=True)
        axes.plot(
            xs, ys, color=color, linewidth=line, solid_capstyle="butt", zorder=4, path_effects=rim
        )
    axes.add_patch(
        FancyArrowPatch(
            points[-2],
            points[-1],
            arrowstyle="<|-|>" if both else "-|>",
            mutation_scale=head,
            color=color,
            linewidth=line,
            shrinkA=0,
            shrinkB=0,
            zorder=5,
        )
    )
