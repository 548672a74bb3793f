"""`step.png`: one training step as eight functions; their numbers and pixels are real ones."""

import json
from pathlib import Path

import drawing as d
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Rectangle
from numpy.typing import NDArray
from PIL import Image

from vggdist.config import DataConfig, ModelConfig, ScheduleConfig
from vggdist.data.color import color_shift
from vggdist.data.geometry import source_windows
from vggdist.data.plan import SamplePlan, Samples
from vggdist.model.summary import summarize
from vggdist.training.schedule import Schedule

CONFIG = DataConfig(train_scale_min=256, train_scale_max=512)
NUM_IMAGES, GLOBAL_BATCH, STEP, SEED = 1_281_167, 4, 5065, 0
SHOWN = 1  # the place in the batch whose image is drawn
PHOTO_SIZE = (375, 500)
WIDTH, HEIGHT = 11.5, 5.95
TOP, CARD = 2.88, 2.2  # lower end of the upper row of cards, height of a card
BOTTOM = 0.22
Pixels = NDArray[np.uint8]


def draw(path: Path) -> None:
    """Draws the step; the picture's Description holds the plan's numbers in it."""
    samples = SamplePlan(NUM_IMAGES, CONFIG, GLOBAL_BATCH, SEED).batch(STEP)
    figure, axes = d.canvas(WIDTH, HEIGHT)
    d.text(axes, 0.2, HEIGHT - 0.3, "One training step", size=17, bold=True, across="left")
    caption = "Images are made ahead, in a thread of their own (upper row); the step takes them."
    d.text(axes, 0.2, HEIGHT - 0.59, caption, size=9, color=d.MUTED, across="left")
    _draw_plan(axes, 0.2, 2.5, samples)
    _draw_manifest(axes, 2.9, 1.72, samples)
    _draw_graph(axes, 4.82, 4.66, samples)
    _draw_loader(axes, 9.68, 1.62)
    _draw_network(axes, 0.2, 4.1)
    _draw_backward(axes, 4.5, 2.9)
    _draw_schedule(axes, 7.6, 1.88)
    _draw_loop(axes, 9.68, 1.62)
    for x, y in (
        (2.7, TOP),
        (4.62, TOP),
        (9.48, TOP),
        (4.3, BOTTOM),
        (7.4, BOTTOM),
        (9.48, BOTTOM),
    ):
        d.arrow(axes, (x + 0.01, y + CARD / 2), (x + 0.2, y + CARD / 2), head=8)
    between = (TOP + BOTTOM + CARD) / 2
    turn = [(10.49, TOP), (10.49, between), (2.25, between), (2.25, BOTTOM + CARD)]
    d.arrow(axes, *turn, head=9)
    numbers = [samples.image.tolist(), samples.scale.tolist(), samples.flip.tolist()]
    d.save(figure, path, json.dumps(numbers))


def _card(
    axes: Axes, x: float, y: float, width: float, number: int, name: str, says: str, color: str
) -> None:
    """A numbered frame with the function's name and, below it, what it gives."""
    d.box(axes, x, y, width, CARD, fill=d.tint(color, 0.07), edge=d.tint(color, 0.55))
    axes.add_patch(Circle((x + 0.22, y + CARD - 0.22), 0.13, color=color, zorder=5))
    d.text(axes, x + 0.22, y + CARD - 0.222, str(number), size=8.5, color=d.PAPER, bold=True)
    d.text(axes, x + 0.42, y + CARD - 0.22, name, size=8.8, bold=True, mono=True, across="left")
    d.text(axes, x + 0.12, y + 0.1, says, size=7.6, color=d.MUTED, across="left", up="bottom")


def _draw_plan(axes: Axes, x: float, width: float, samples: Samples) -> None:
    says = "a pure function of seed, step and\nplace in the global batch"
    _card(axes, x, TOP, width, 1, "plan.batch(step)", says, d.BLUE)
    columns = (x + 0.74, x + 1.1, x + 1.94, x + 2.38)
    y = TOP + CARD - 0.62
    for place, name in zip(columns, ("image", "S", "crop at", "flip"), strict=True):
        d.text(axes, place, y, name, size=7.6, color=d.MUTED, across="right")
    for row in range(len(samples)):
        y -= 0.23
        if row == SHOWN:
            d.box(
                axes, x + 0.08, y - 0.11, width - 0.16, 0.22, fill=d.tint(d.BLUE, 0.25), edge="none"
            )
        down, right = samples.position[row] / 65536
        values = (
            str(samples.image[row]),
            str(samples.scale[row]),
            f"{down:.2f}, {right:.2f}",
            "yes" if samples.flip[row] else "no",
        )
        for place, value in zip(columns, values, strict=True):
            d.text(axes, place, y, value, size=7.6, mono=True, across="right")


def _draw_manifest(axes: Axes, x: float, width: float, samples: Samples) -> None:
    _card(axes, x, TOP, width, 2, "manifest", "image number to file\nand label", d.BLUE)
    middle, y = x + width / 2, TOP + CARD / 2
    d.text(axes, middle, y + 0.46, str(samples.image[SHOWN]), size=9, mono=True, bold=True)
    d.arrow(axes, (middle, y + 0.33), (middle, y + 0.11), head=7, color=d.BLUE, line=1.2)
    d.text(axes, middle, y - 0.03, "class/image.jpg", size=8.4, mono=True)
    d.text(axes, middle, y - 0.25, "label", size=8.4, mono=True)


def _draw_graph(axes: Axes, x: float, width: float, samples: Samples) -> None:
    says = (
        "one DALI graph for CPU and GPU. Only the pixels that the crop will show\n"
        "are decoded; on a CPU, torch resizes and normalizes in further threads"
    )
    _card(axes, x, TOP, width, 3, "pipeline", says, d.BLUE)
    photo = _photo()
    sides, starts = source_windows(
        [PHOTO_SIZE] * len(samples), samples.scale, samples.position, CONFIG.crop_size
    )
    side, (row, column) = int(sides[SHOWN]), (int(start) for start in starts[SHOWN])
    window = photo[row : row + side, column : column + side]
    crop = np.asarray(Image.fromarray(window).resize((224, 224), Image.Resampling.BILINEAR))
    flipped = crop[:, ::-1] if samples.flip[SHOWN] else crop
    shift = color_shift(samples.color_draw[SHOWN : SHOWN + 1])
    shifted = np.clip(flipped + shift, 0, 255).astype(np.uint8)
    y, scale = TOP + 0.84, 0.92 / PHOTO_SIZE[0]
    pale = (255 - (255 - photo.astype(float)) * 0.3).astype(np.uint8)
    pale[row : row + side, column : column + side] = window
    place = x + 0.14
    _image(axes, pale, place, y, scale)
    lower = y + (PHOTO_SIZE[0] - row - side) * scale
    outline = Rectangle(
        (place + column * scale, lower), side * scale, side * scale, fill=False, zorder=5
    )
    outline.set(edgecolor=d.RED, linewidth=1.6)
    axes.add_patch(outline)
    labels = [("read, peek shape", PHOTO_SIZE[1] * scale)]
    end = place + PHOTO_SIZE[1] * scale
    d.text(axes, place + PHOTO_SIZE[1] * scale / 2, y - 0.13, labels[0][0], size=7.6)
    pictures = (
        (window, side * scale, "decode window"),
        (crop, 0.62, "resize"),
        (flipped, 0.62, "flip"),
        (shifted, 0.62, "shift, mean"),
    )
    room = (x + width - 0.14 - end - sum(size for _, size, _ in pictures)) / len(pictures)
    for pixels, size, label in pictures:
        middle = y + 0.46
        d.arrow(axes, (end + 0.04, middle), (end + room - 0.04, middle), head=6, line=1.1)
        _image(axes, pixels, end + room, middle - size / 2, size / len(pixels))
        d.text(axes, end + room + size / 2, y - 0.13, label, size=7.6)
        end += room + size


def _draw_loader(axes: Axes, x: float, width: float) -> None:
    _card(
        axes, x, TOP, width, 4, "loader", "labels (n,), dropout keys\n(n,), on the device", d.BLUE
    )
    photo = Image.fromarray(_photo())
    for number in range(4):
        left, lower = x + 0.34 + number * 0.09, TOP + 1.0 + number * 0.05
        crop = np.asarray(photo.crop((40 * number, 20, 40 * number + 320, 340)).resize((224, 224)))
        _image(axes, crop, left, lower, 0.62 / 224, layer=4 - number * 0.1)
    d.text(axes, x + width / 2, TOP + 0.83, "(n, 3, 224, 224)", size=8, mono=True)
    d.text(axes, x + width / 2, TOP + 0.65, "channels_last", size=8, mono=True)


def _draw_network(axes: Axes, x: float, width: float) -> None:
    says = "five times ConvBlock and MaxPoolLayer, then FlattenLayer and three\nFCLayers: logits"
    _card(axes, x, BOTTOM, width, 5, "VGG.forward", says + " (n, 1000)", d.PURPLE)
    summary = summarize(ModelConfig(), CONFIG.crop_size)
    middle, place = BOTTOM + 1.17, x + 0.2
    blocks: dict[str, list[tuple[int, ...]]] = {}
    for layer in summary.layers:
        if layer.kind.startswith("convolution"):
            blocks.setdefault(layer.name.partition("_")[0], []).append(layer.output_shape)
    for shapes in blocks.values():
        channels, side, _ = shapes[0]
        height, thick = 0.2 + 0.78 * (side / 224) ** 0.7, 0.06 + 0.07 * (channels / 512)
        start = place
        for _ in shapes:
            d.box(
                axes,
                place,
                middle - height / 2,
                thick,
                height,
                fill=d.tint(d.PURPLE, 0.25 + 0.4 * channels / 512),
                edge=d.PURPLE,
                line=0.7,
                radius=0.015,
            )
            place += thick + 0.025
        center = (start + place - 0.025) / 2
        d.text(axes, center, middle - 0.6, f"{channels}", size=7, color=d.MUTED)
        d.text(axes, center, middle + 0.58, f"{side}", size=7, color=d.PURPLE)
        place += 0.19
    for layer in summary.layers:
        if layer.kind == "fully connected":
            units = layer.output_shape[0]
            height = 0.8 if units > 1000 else 0.4
            box = (place, middle - height / 2, 0.09, height)
            d.box(axes, *box, fill=d.tint(d.RED, 0.4), edge=d.RED, line=0.7, radius=0.015)
            d.text(axes, place + 0.045, middle - 0.6, f"{units}", size=6.4, color=d.MUTED)
            d.text(axes, place + 0.045, middle + 0.58, layer.name, size=6.4, color=d.RED)
            place += 0.36


def _draw_backward(axes: Axes, x: float, width: float) -> None:
    says = "cross-entropy, backward, update; gradients are\nsent while the backward pass still runs"
    _card(axes, x, BOTTOM, width, 6, "train_step", says, d.RED)
    names = ("conv", "fc6", "fc7", "fc8")
    upper, lower = BOTTOM + 1.54, BOTTOM + 0.82
    for rank, y in enumerate((upper, lower)):
        d.text(axes, x + 0.13, y, f"rank {rank}", size=7.6, color=d.MUTED, across="left")
        for number, name in enumerate(names):
            left = x + 0.66 + number * 0.54
            color = d.PURPLE if name == "conv" else d.RED
            fill, edge = d.tint(color, 0.22), d.tint(color, 0.7)
            d.box(axes, left, y - 0.13, 0.42, 0.26, fill=fill, edge=edge, radius=0.04)
            d.text(axes, left + 0.21, y, name, size=7.6)
            if number:
                d.arrow(axes, (left, y), (left - 0.12, y), head=5, line=1.0, color=d.RED)
    for number in range(1, 4):
        middle = x + 0.87 + number * 0.54
        ends = (middle, upper - 0.15), (middle, lower + 0.15)
        d.arrow(axes, *ends, head=7, line=1.4, color=d.ORANGE, both=True)
    left = x + 0.87
    axes.plot([left, left], [upper - 0.17, lower + 0.17], ":", color=d.ORANGE, linewidth=1.4)


def _draw_schedule(axes: Axes, x: float, width: float) -> None:
    says = "the learning rate falls when\nthe validation error stops\nimproving"
    _card(axes, x, BOTTOM, width, 7, "schedule", says, d.GREEN)
    schedule = Schedule(ScheduleConfig(), 0.01, 1.0, 74)
    rates = []
    for epoch in range(74):
        rates.append(schedule.learning_rate(epoch))
        schedule.observe(epoch + 1, 1.0 / (1 + epoch) if epoch % 20 < 15 else 1.0)
    left, lower, wide, high = x + 0.42, BOTTOM + 0.88, width - 0.6, 0.84
    places = [left + wide * epoch / 74 for epoch in range(74)]
    heights = [lower + 0.1 + (high - 0.2) * (np.log10(rate) + 5) / 3 for rate in rates]
    axes.plot(places, heights, color=d.GREEN, linewidth=2, drawstyle="steps-post", zorder=5)
    axes.plot([left, left, left + wide], [lower + high, lower, lower], color=d.GRAY, linewidth=0.9)
    d.text(axes, left + wide, lower - 0.1, "epochs", size=7, color=d.MUTED, across="right")
    for rate in (1e-2, 1e-5):
        y = lower + 0.1 + (high - 0.2) * (np.log10(rate) + 5) / 3
        d.text(axes, left - 0.05, y, f"{rate:g}", size=6.6, color=d.MUTED, across="right")


def _draw_loop(axes: Axes, x: float, width: float) -> None:
    _card(
        axes, x, BOTTOM, width, 8, "loop", "while there are steps,\ntake one; is it time?", d.GREEN
    )
    y = BOTTOM + CARD - 0.62
    for word, where in (
        ("log", "TensorBoard"),
        ("evaluate", "validation set"),
        ("save", "checkpoint"),
        ("stop", "all ranks agree"),
    ):
        d.text(axes, x + 0.14, y, word, size=8.4, bold=True, across="left")
        d.text(axes, x + 0.78, y, where, size=7.4, color=d.MUTED, across="left")
        y -= 0.27


def _image(
    axes: Axes, pixels: Pixels, x: float, y: float, scale: float, layer: float = 4.0
) -> None:
    height, width = len(pixels) * scale, len(pixels[0]) * scale
    axes.imshow(
        pixels,
        extent=(x, x + width, y, y + height),
        aspect="auto",
        zorder=layer,
        interpolation="antialiased",
    )
    axes.add_patch(
        Rectangle((x, y), width, height, fill=False, edgecolor=d.PAPER, linewidth=0.8, zorder=layer)
    )
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))


def _photo() -> Pixels:
    """A drawn landscape, 375 x 500 pixels: nobody's photograph."""
    rows, columns = np.mgrid[0 : PHOTO_SIZE[0], 0 : PHOTO_SIZE[1]]
    photo = np.empty((*PHOTO_SIZE, 3))
    share = (rows / PHOTO_SIZE[0])[..., None]
    photo[:] = (1 - share) * np.array([96, 156, 214]) + share * np.array([250, 226, 190])
    photo[np.hypot(rows - 90, columns - 380) < 38] = (255, 236, 150)
    for height, slope, phase, color in (
        (215, 34, 0.4, (126, 150, 176)),
        (255, 28, 2.3, (92, 138, 116)),
        (300, 18, 4.4, (70, 116, 74)),
    ):
        edge = height + slope * np.sin(columns / 73 + phase) + slope / 3 * np.sin(columns / 23)
        photo[rows > edge] = color
    wall = (rows > 235) & (rows < 312) & (columns > 185) & (columns < 285)
    photo[wall] = (240, 230, 214)
    roof = (rows > 182) & (rows <= 235) & (abs(columns - 235) < (rows - 182) * 1.15)
    photo[roof] = (178, 72, 62)
    photo[(rows > 262) & (columns > 248) & (columns < 268) & wall] = (116, 78, 56)
    photo[(rows > 252) & (rows < 276) & (columns > 202) & (columns < 226)] = (108, 152, 186)
    return np.clip(photo, 0, 255).astype(np.uint8)
