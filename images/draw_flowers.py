"""flowers.png: the error curve of `configs/flowers.yaml`, from the metrics of one training."""

import hashlib
import json
from pathlib import Path

from drawing import BLUE, DOTS_PER_INCH, FAINT, FONT, INK, MUTED, ORANGE, PAPER, save
from matplotlib.figure import Figure

METRICS = Path(__file__).with_name("flowers_metrics.jsonl")
CURVES = (
    ("train", BLUE, "training images: random crops, dropout on"),
    ("validation", ORANGE, "validation images: centre crop"),
)


def draw(path: Path) -> None:
    """Writes the picture; its description is the digest of what it shows."""
    text = METRICS.read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.splitlines()]
    figure = Figure(figsize=(9.2, 4.2), dpi=DOTS_PER_INCH, facecolor=PAPER)
    axes = figure.add_axes((0.075, 0.13, 0.9, 0.73))
    for split, color, label in CURVES:
        points = [record for record in records if record["split"] == split]
        epochs = [record["epoch"] for record in points]
        errors = [100 * record["top1_error"] for record in points]
        axes.plot(epochs, errors, color=color, linewidth=2.2, label=label)
    axes.annotate(
        f"{errors[-1]:.1f} %",
        (epochs[-1], errors[-1]),
        xytext=(0, -16),
        textcoords="offset points",
        ha="right",
        color=ORANGE,
        fontname=FONT,
        fontsize=11,
        fontweight="bold",
    )
    axes.set_xlim(0, round(epochs[-1]))
    axes.set_ylim(0, 85)
    axes.grid(color=FAINT, linewidth=0.8)
    axes.tick_params(colors=MUTED, labelsize=10)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xlabel("epoch", color=MUTED, fontname=FONT, fontsize=10.5)
    axes.set_ylabel("top-1 error, %", color=MUTED, fontname=FONT, fontsize=10.5)
    axes.legend(frameon=False, labelcolor=INK, prop={"family": FONT, "size": 10.5})
    axes.set_title(
        "Five kinds of flowers, 128 px, trained from nothing",
        loc="left",
        color=INK,
        fontname=FONT,
        fontsize=14,
        fontweight="bold",
        pad=12,
    )
    save(figure, path, hashlib.sha256(text.encode()).hexdigest())
