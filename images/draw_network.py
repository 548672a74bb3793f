"""`network.png`: configuration D as volumes, from the code's own shapes and counts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import drawing as d
from draw_configurations import COLORS
from matplotlib.axes import Axes
from matplotlib.patches import Polygon, Rectangle

from vggdist.config import ModelConfig
from vggdist.model.summary import LayerSummary, summarize

NAME, CROP_SIZE = "D", 224
WIDTH, HEIGHT, MARGIN = 13.3, 7.0, 0.35
AXIS = 3.95  # height of the volumes' middle
DEPTH_X, DEPTH_Y = 0.36, 0.27  # how a length away from the reader is drawn
GAP = 0.05  # between volumes of one size


@dataclass(frozen=True)
class Volume:
    """What one layer leaves: (channels, side, side) for one image."""

    kind: str
    channels: int
    side: int

    @property
    def width(self) -> float:
        """Inches for channels; a power below 1, else 4096 would be 64 times as wide as 64."""
        return 0.021 * self.channels**0.46

    @property
    def height(self) -> float:
        """Inches for pixels, for the same reason not in proportion."""
        return 3.1 * (self.side / CROP_SIZE) ** 0.76

    @property
    def reach(self) -> float:
        """How far it goes to the right, its depth included."""
        return self.width + DEPTH_X * self.height

    @property
    def color(self) -> str:
        match self.kind:
            case "image":
                return d.GRAY
            case "max-pooling 2x2":
                return d.ORANGE
            case "fully connected":
                return d.RED
            case _:
                return COLORS[self.channels]


@dataclass(frozen=True)
class Stage:
    """Neighbouring volumes of one size, and what their layers cost."""

    name: str
    volumes: tuple[Volume, ...]
    num_parameters: int
    multiply_adds: int

    @property
    def width(self) -> float:
        left, right = 0.0, 0.0
        for volume in self.volumes:
            right = max(right, left + volume.reach)
            left += volume.width + GAP
        return right


def draw(path: Path) -> None:
    """Draws the volumes from the image to the classes; the Description holds the numbers."""
    summary = summarize(ModelConfig(configuration=NAME), CROP_SIZE)
    stages = make_stages(summary.layers)
    figure, axes = d.canvas(WIDTH, HEIGHT)
    title = f"Configuration {NAME}"
    d.text(axes, MARGIN, HEIGHT - 0.42, title, size=20, bold=True, across="left")
    caption = (
        f"{summary.num_weight_layers} weight layers. A volume is what a layer leaves of one image: "
        "height × width × channels, not in proportion."
    )
    d.text(axes, MARGIN, HEIGHT - 0.82, caption, size=12, color=d.MUTED, across="left")
    gap = (WIDTH - 2 * MARGIN - sum(stage.width for stage in stages)) / (len(stages) - 1)
    x = MARGIN
    for stage in stages:
        _draw_stage(axes, x, stage)
        x += stage.width + gap
    _draw_legend(axes)
    counts = [stage.num_parameters for stage in stages]
    _draw_shares(axes, 0.88, f"{sum(counts) / 1e6:.1f} M parameters", stages, counts)
    costs = [stage.multiply_adds for stage in stages]
    _draw_shares(axes, 0.36, f"{sum(costs) / 1e9:.1f} G multiply-adds", stages, costs)
    shapes = [[vars(volume) for volume in stage.volumes] for stage in stages]
    numbers = {"shapes": shapes, "parameters": counts, "multiply_adds": costs}
    d.save(figure, path, json.dumps(numbers))


def make_stages(layers: tuple[LayerSummary, ...]) -> list[Stage]:
    """Groups what the layers leave by size; a fully connected layer stands alone."""
    groups: list[list[tuple[Volume, LayerSummary | None]]] = []
    groups.append([(Volume("image", 3, CROP_SIZE), None)])
    for layer in layers:
        channels, *sides = layer.output_shape
        volume = Volume(layer.kind, channels, sides[0] if sides else 1)
        if volume.side != groups[-1][-1][0].side or layer.kind == "fully connected":
            groups.append([])
        groups[-1].append((volume, layer))
    stages = []
    for group in groups:
        own = [layer for _, layer in group if layer is not None]
        names = [layer.name for layer in own if layer.num_parameters] or [own[-1].name]
        stages.append(
            Stage(
                names[0] if len(names) == 1 else f"{names[0]} – {names[-1].removeprefix('conv')}",
                tuple(volume for volume, _ in group),
                sum(layer.num_parameters for layer in own),
                sum(layer.multiply_adds for layer in own),
            )
        )
    return stages


def _draw_stage(axes: Axes, x: float, stage: Stage) -> None:
    """The volumes from left to right, each over the one before, and what they are."""
    left = x
    for volume in stage.volumes:
        _draw_volume(axes, left, volume)
        left += volume.width + GAP
    last, middle = stage.volumes[-1], x + stage.width / 2
    bottom = AXIS - max(volume.height for volume in stage.volumes) * (1 + DEPTH_Y) / 2
    d.text(axes, middle, bottom - 0.24, stage.name, size=11.5, bold=True)
    shape = " × ".join(map(str, (last.side, last.side, last.channels)))
    if last.side == 1:
        shape = str(last.channels)
    d.text(axes, middle, bottom - 0.48, shape, size=11.5, color=d.MUTED)


def _draw_volume(axes: Axes, x: float, volume: Volume) -> None:
    """A box whose front, top and right side are seen; its middle is as high as all others'."""
    width, height = volume.width, volume.height
    across, up = DEPTH_X * height, DEPTH_Y * height
    y = AXIS - (height + up) / 2
    front = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
    top = [front[3], front[2], (x + width + across, y + height + up), (x + across, y + height + up)]
    side = [front[1], (x + width + across, y + up), top[2], front[2]]
    for corners, share in ((front, 0.42), (top, 0.22), (side, 0.62)):
        axes.add_patch(
            Polygon(
                corners,
                facecolor=d.tint(volume.color, share),
                edgecolor=d.tint(volume.color, 0.95),
                linewidth=0.9,
                joinstyle="round",
                zorder=3,
            )
        )


def _draw_legend(axes: Axes) -> None:
    x, y = WIDTH - MARGIN - 4.55, HEIGHT - 1.4
    items = (
        (f"image, {CROP_SIZE} × {CROP_SIZE} × 3", (d.GRAY,)),
        ("convolution 3 × 3 and ReLU, by channels", tuple(COLORS.values())),
        ("max-pooling 2 × 2", (d.ORANGE,)),
        ("fully connected and ReLU; after the last, soft-max", (d.RED,)),
    )
    for words, colors in items:
        for number, color in enumerate(colors):
            width = 0.4 / len(colors)
            d.box(
                axes,
                x + number * width,
                y - 0.08,
                width - 0.02,
                0.17,
                fill=d.tint(color, 0.42),
                edge=d.tint(color, 0.95),
                radius=0.015,
            )
        d.text(axes, x + 0.52, y, words, size=11, across="left")
        y -= 0.29


def _draw_shares(
    axes: Axes, y: float, words: str, stages: Sequence[Stage], counts: Sequence[int]
) -> None:
    """A bar across the picture in which every stage has its share."""
    x, length, height = MARGIN + 2.2, WIDTH - 2 * MARGIN - 2.2, 0.34
    d.text(axes, MARGIN, y, words, size=12, bold=True, across="left")
    for stage, count in zip(stages, counts, strict=True):
        width = length * count / sum(counts)
        if not count:
            continue
        color = stage.volumes[-1].color
        axes.add_patch(
            Rectangle(
                (x, y - height / 2),
                width,
                height,
                facecolor=d.tint(color, 0.42),
                edgecolor=d.tint(color, 0.95),
                linewidth=0.9,
                zorder=3,
            )
        )
        name = stage.name.partition("_")[0]
        share = f"{100 * count / sum(counts):.0f} %"
        if width > 0.95:
            d.text(axes, x + width / 2, y, f"{name}  {share}", size=11)
        elif width > 0.42:
            d.text(axes, x + width / 2, y, share, size=11)
        x += width
