"""An estimate as a picture: a step's timeline for each way of exchange, and efficiency by ranks."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from vggdist.artifacts.paths import quote
from vggdist.errors import VggdistError
from vggdist.planning.estimate import Estimate
from vggdist.planning.step import StepTime

INK, MUTED, FAINT, PAPER = "#1f2733", "#667085", "#d5dae3", "#ffffff"
COLORS = {"all_reduce": "#b8434e", "factors": "#c77714", "ours": "#2f6fb5"}
NAMES = {"all_reduce": "fp32 all-reduce, one ring", "factors": "factors", "ours": "ours"}
SHADES = {"compute": "#5c6675", "multiply": "#7a55a8", "bus": "#1f8a8a", "network": "#2f6fb5"}


def draw_estimate(estimate: Estimate, path: Path, description: str = "") -> None:
    """Writes the picture as PNG.

    Args:
        estimate: what is drawn.
        path: the file.
        description: for the file's text field Description.

    Raises:
        VggdistError: it cannot be written.
    """
    figure = Figure(figsize=(11, 8), dpi=150, facecolor=PAPER, layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(1.15, 1))
    _draw_steps(figure.add_subplot(grid[0]), estimate)
    _draw_efficiency(figure.add_subplot(grid[1]), estimate)
    try:
        figure.savefig(path, format="png", metadata={"Software": None, "Description": description})
    except OSError as error:
        raise VggdistError(f"--out {quote(path)} cannot be written: {error}.") from error


def _draw_steps(axes: Axes, estimate: Estimate) -> None:
    labels: list[str] = []
    for name, step in estimate.ways.items():
        _draw_step(axes, step, len(labels))
        axes.text(
            1e3 * step.seconds,
            len(labels) + 0.5,
            f"  {1e3 * step.seconds:.1f} ms",
            va="center",
            color=INK,
            fontsize=9,
        )
        labels += [f"{NAMES[name]}: arithmetic", "exchange"]
    for kind, label in (
        ("compute", "forward, backward, update"),
        ("multiply", "factors multiplied"),
        ("bus", "inside nodes"),
        ("network", "between nodes"),
    ):
        axes.barh(0, 0, color=SHADES[kind], label=label)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds", color=MUTED, loc="left")
    axes.margins(x=0.09)
    axes.set_xlim(left=0)
    cluster = estimate.cluster
    title = (
        f"One step of {estimate.work.images_per_rank} images a rank on {cluster.nodes} x "
        f"{cluster.ranks_per_node} {cluster.device.name}, {cluster.bits_per_second / 1e9:g} Gb/s"
    )
    _finish(axes, title, 4)


def _draw_step(axes: Axes, step: StepTime, top: int) -> None:
    rows = {"compute": top, "multiply": top, "bus": top + 1, "network": top + 1}
    for span in step.timeline.spans:
        axes.barh(
            rows[span.row],
            1e3 * (span.end - span.start),
            left=1e3 * span.start,
            height=0.72,
            color=SHADES[span.row],
            edgecolor=PAPER,
            linewidth=0.4 if rows[span.row] == top else 0.1,
        )


def _draw_efficiency(axes: Axes, estimate: Estimate) -> None:
    worlds = list(estimate.efficiency)
    for name, color in COLORS.items():
        values = [100 * estimate.efficiency[world][name] for world in worlds]
        axes.plot(worlds, values, color=color, linewidth=2, marker="o", label=NAMES[name])
    axes.axvline(estimate.cluster.world_size, color=FAINT, linewidth=6, zorder=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(worlds)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(0, 105)
    axes.set_xlabel("ranks", color=MUTED, loc="left")
    _finish(axes, "Efficiency, % of as many ranks that exchange nothing", 3)


def _finish(axes: Axes, title: str, columns: int) -> None:
    axes.set_title(title, loc="left", color=INK, fontweight="bold")
    axes.grid(color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=9)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.legend(
        frameon=False,
        ncols=columns,
        fontsize=9,
        loc="upper right",
        bbox_to_anchor=(1.0, -0.07),
        labelcolor=INK,
    )
