"""`configurations.png`: Tables 1 and 2 of the paper, from the code's own table and counts."""

import json
from pathlib import Path

import drawing as d
from matplotlib.axes import Axes

from vggdist.config import ModelConfig
from vggdist.model.configurations import TABLE_1, Convolution, Layer, parse_configuration
from vggdist.model.summary import ModelSummary, summarize

CROP_SIZE = 224
COLORS = {64: d.TEAL, 128: d.GREEN, 256: d.BLUE, 512: d.PURPLE}
WIDTH, LABELS, COLUMN, GAP = 11.5, 1.35, 1.52, 0.15
LAYER, LAYER_GAP, BLOCK_GAP, HEAD = 0.255, 0.045, 0.3, 1.52
FIRST_COST, COST, NUM_COSTS = 0.26, 0.27, 4  # lines below the table


def draw(path: Path) -> None:
    """Draws the six columns; the picture's Description holds the numbers in it."""
    summaries = {name: summarize(ModelConfig(configuration=name), CROP_SIZE) for name in TABLE_1}
    blocks = {name: parse_configuration(name) for name in TABLE_1}
    num_blocks = max(map(len, blocks.values()))
    rows = [max(len(column[block]) for column in blocks.values()) for block in range(num_blocks)]
    body = sum(rows) * (LAYER + LAYER_GAP) + num_blocks * BLOCK_GAP
    height = HEAD + body + 3 * (LAYER + LAYER_GAP) + FIRST_COST + NUM_COSTS * COST + 0.1
    figure, axes = d.canvas(WIDTH, height)
    d.text(axes, 0.25, height - 0.32, "Configurations", size=17, bold=True, across="left")
    caption = (
        "Tables 1 and 2 of the paper. 3-64: convolution of kernel size 3 with 64 channels, then "
        "ReLU. A max-pooling halves the maps after every block. Multiply-adds: for one image."
    )
    d.text(axes, 0.25, height - 0.63, caption, size=8.8, color=d.MUTED, across="left")
    for number, (name, summary) in enumerate(summaries.items()):
        _draw_head(axes, _left(number), height - 1.0, name, summary)
    y, side = height - HEAD, CROP_SIZE
    for block, num_rows in enumerate(rows):
        block_height = num_rows * (LAYER + LAYER_GAP) - LAYER_GAP
        _draw_side(axes, y - block_height / 2, side)
        for number, column in enumerate(blocks.values()):
            _draw_block(axes, _left(number), y, block_height, column[block])
        y -= block_height + BLOCK_GAP
        _draw_pool(axes, y + BLOCK_GAP / 2, len(summaries))
        side //= 2
    y = _draw_fully_connected(axes, y, summaries["D"], side, len(summaries))
    for number, summary in enumerate(summaries.values()):
        _draw_cost(axes, _left(number), y, summary)
    for row, words in enumerate(("parameters", "", "in convolutions", "multiply-adds")):
        height = y - FIRST_COST - row * COST
        d.text(axes, 0.25, height, words, size=9, color=d.MUTED, across="left")
    numbers = {
        name: [summary.num_weight_layers, summary.num_parameters, summary.multiply_adds]
        for name, summary in summaries.items()
    }
    d.save(figure, path, json.dumps({"table": TABLE_1, "numbers": numbers}))


def _left(number: int) -> float:
    return LABELS + number * (COLUMN + GAP)


def _draw_head(axes: Axes, x: float, y: float, name: str, summary: ModelSummary) -> None:
    middle = x + COLUMN / 2
    d.text(axes, middle, y, name, size=14, bold=True)
    d.text(axes, middle, y - 0.28, f"{summary.num_weight_layers} layers", size=9, color=d.MUTED)


def _draw_side(axes: Axes, y: float, side: int) -> None:
    d.text(axes, 0.25, y, f"{side} × {side}", size=10, color=d.INK, across="left")


def _draw_block(axes: Axes, x: float, top: float, height: float, layers: tuple[Layer, ...]) -> None:
    """The layers of a block, from `top` down, in a frame as high as the tallest block beside it."""
    for row, layer in enumerate(layers):
        y = top - (row + 1) * LAYER - row * LAYER_GAP
        if isinstance(layer, Convolution):
            color = COLORS[layer.channels]
            small = layer.kernel_size == 1
            d.box(
                axes,
                x,
                y,
                COLUMN,
                LAYER,
                fill=d.tint(color, 0.12 if small else 0.32),
                edge=d.tint(color, 0.75),
                radius=0.04,
            )
            label = f"{layer.kernel_size}-{layer.channels}"
        else:
            edge = d.tint(d.ORANGE, 0.8)
            d.box(axes, x, y, COLUMN, LAYER, fill=d.tint(d.ORANGE, 0.22), edge=edge, radius=0.04)
            label = "LRN"
        d.text(axes, x + COLUMN / 2, y + LAYER / 2, label, size=9)


def _draw_pool(axes: Axes, y: float, num_columns: int) -> None:
    right = _left(num_columns - 1) + COLUMN
    axes.plot([LABELS, right], [y, y], color=d.FAINT, linewidth=1.2, linestyle=(0, (4, 3)))
    d.text(axes, 0.25, y, "max-pooling", size=8, color=d.MUTED, across="left")


def _draw_fully_connected(
    axes: Axes, y: float, summary: ModelSummary, side: int, num_columns: int
) -> float:
    """fc6, fc7 and fc8, which all configurations share; returns the lower end."""
    x, right = LABELS, _left(num_columns - 1) + COLUMN
    inputs = f"512 × {side} × {side}"
    for layer in summary.layers:
        if layer.kind != "fully connected":
            continue
        y -= LAYER
        d.box(
            axes,
            x,
            y,
            right - x,
            LAYER,
            fill=d.tint(d.RED, 0.16),
            edge=d.tint(d.RED, 0.65),
            radius=0.04,
        )
        share = layer.num_parameters / summary.num_parameters
        label = (
            f"{inputs} → {layer.output_shape[0]},  "
            f"{layer.num_parameters / 1e6:.1f} M parameters, {100 * share:.0f} % of D"
        )
        d.text(axes, (x + right) / 2, y + LAYER / 2, label, size=9)
        d.text(axes, 0.25, y + LAYER / 2, layer.name, size=10, across="left")
        inputs = str(layer.output_shape[0])
        y -= LAYER_GAP
    return y - 0.1


def _draw_cost(axes: Axes, x: float, y: float, summary: ModelSummary) -> None:
    """Table 2 prints millions; multiply-adds are for one image."""
    middle = x + COLUMN / 2
    convolutions = sum(
        layer.num_parameters for layer in summary.layers if layer.kind.startswith("convolution")
    )
    lines = (
        f"{summary.num_parameters / 1e6:.0f} M",
        f"{summary.num_parameters:,}",
        f"{convolutions / 1e6:.1f} M",
        f"{summary.multiply_adds / 1e9:.2f} G",
    )
    for row, words in enumerate(lines):
        height, bold = y - FIRST_COST - row * COST, row == 0
        d.text(axes, middle, height, words, size=12 if bold else 9.5, bold=bold)
