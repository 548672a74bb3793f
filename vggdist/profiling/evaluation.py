"""How fast whole images are evaluated: ours compared with one image and its mirror image at a time.

Only the network is timed; images are in memory. All ways use the same weights in the same type,
cast once.
"""

from __future__ import annotations

import itertools
import math
import resource
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vggdist.config import Config
from vggdist.data.dataset import open_images
from vggdist.data.geometry import crop_grid, rescaled_sizes
from vggdist.data.whole_images import WholeImageLoader
from vggdist.distributed.precision import DTYPES, resolve_precision
from vggdist.distributed.process import Process
from vggdist.evaluation.scores import dense_posteriors, most_pixels, multi_crop_posteriors
from vggdist.model.dense import WINDOW_BYTES, DenseNetwork
from vggdist.model.initialization import build_initialized
from vggdist.model.summary import summarize
from vggdist.model.vgg import VGG
from vggdist.profiling.timing import Clock, median_ratio, take_turns
from vggdist.terminal import StatusLine, render_table

NUM_IMAGES = 36
# Height and width of ImageNet's commonest images, in tenths of the set; each other is alone.
_COMMON = (((375, 500), 4), ((500, 375), 2), ((333, 500), 1))


@dataclass(frozen=True)
class Whole:
    """Images of one shape, as a network is fed them."""

    images: Tensor
    """(n, 3, height, width)."""


def measure_evaluation(
    config: Config, process: Process, root: Path | None, scale: int, rounds: int
) -> dict[str, Any]:
    """Times in rounds that take turns.

    Args:
        config: network, precision, data; `evaluation.max_megapixels` bounds the memory.
        process: a world of one.
        root: images, of which some are taken; none: random pixels in ImageNet's shapes.
        scale: Q, the rescaled shorter side, pixels.
        rounds: timings of every way.

    Returns:
        Seconds per image, the median of the rounds: `dense`, `one_at_a_time`, `fixed_shape`,
        `multi_crop`, `multi_crop_plain`; `ratios`, the medians of the rounds' ratios; what was
        measured on; memory.
    """
    config, why = resolve_precision(config, process)
    status = StatusLine(speaks=process.is_main)
    status.note(why)
    network = build_initialized(config.model, config.data.crop_size, config.seed).eval()
    dense = DenseNetwork(network, DTYPES[config.resolved_precision], process.device)
    group = _from_files(config, root, scale, process) if root else _random_images(config, scale)
    group = [Whole(part.images.to(process.device, dense.dtype)) for part in group]
    fixed = [_fixed_shape(group)]
    max_pixels = most_pixels(config.evaluation.max_megapixels, process.device)
    sizes = [len(part.images) for part in group]
    few = [Whole(_commonest(group)[:1])]

    def ours(images: list[Whole]) -> Callable[[], object]:
        return lambda: dense_posteriors(dense, images, True, "logits", max_pixels)

    memory = peak_growth(ours(group), process.device)
    expected = _expected_memory(config, network, max_pixels, group, process)
    alone, clock = OneAtATime(network, dense, process.device), Clock(process)
    works: dict[str, Callable[[], object]] = {
        "dense": ours(group),
        "one_at_a_time": lambda: [alone.posteriors(part.images) for part in group],
        "fixed_shape": ours(fixed),
        "multi_crop": lambda: multi_crop_posteriors(dense, few, True, max_pixels),
        "multi_crop_plain": lambda: _plain_crops(dense, few[0].images, max_pixels),
    }
    for work in works.values():  # once, to warm up
        work()
    ways = {name: partial(clock.seconds, work) for name, work in works.items()}
    seconds = take_turns(ways, rounds, status)
    pixels = {"dense": _num_pixels(group), "fixed_shape": _num_pixels(fixed)}
    per_pixel = {
        name: [1e9 * own / count for own in seconds[name]] for name, count in pixels.items()
    }
    counts = dict.fromkeys(works, sum(sizes)) | {"multi_crop": 1, "multi_crop_plain": 1}
    return {
        **{name: statistics.median(times) / counts[name] for name, times in seconds.items()},
        "ratios": {
            "one_at_a_time": median_ratio(seconds["one_at_a_time"], seconds["dense"]),
            "fixed_shape_per_pixel": median_ratio(per_pixel["dense"], per_pixel["fixed_shape"]),
            "multi_crop_plain": median_ratio(seconds["multi_crop_plain"], seconds["multi_crop"]),
        },
        "nanoseconds_per_pixel": {name: statistics.median(own) for name, own in per_pixel.items()},
        "num_images": sum(sizes),
        "num_shapes": len(sizes),
        "num_alone": sizes.count(1),
        "scale": scale,
        "precision": config.resolved_precision,
        "configuration": config.model.configuration,
        "peak_growth_megabytes": memory,
        "expected_megabytes": expected / 1e6,
    }


def render_evaluation(result: dict[str, Any]) -> str:
    """Tables of what `measure_evaluation` returns."""
    ratios, per_pixel = result["ratios"], result["nanoseconds_per_pixel"]
    fixed_ratio = f"{1 / ratios['fixed_shape_per_pixel']:.2f} x per pixel"
    rows = [
        (name, f"{1 / result[key]:.3f}", f"{per_pixel[key]:.0f}" if key in per_pixel else "", ratio)
        for name, key, ratio in (
            ("vggdist, dense", "dense", ""),
            (
                "dense, one image and its mirror image at a time",
                "one_at_a_time",
                f"{ratios['one_at_a_time']:.2f} x",
            ),
            ("vggdist, dense, all images of one shape", "fixed_shape", fixed_ratio),
            ("vggdist, multi-crop of 50 crops", "multi_crop", ""),
            (
                "multi-crop, each crop by itself",
                "multi_crop_plain",
                f"{ratios['multi_crop_plain']:.2f} x",
            ),
        )
    ]
    return "\n".join(
        [
            f"configuration {result['configuration']}, {result['precision']}, Q = "
            f"{result['scale']}; {result['num_images']} images of {result['num_shapes']} shapes, "
            f"{result['num_alone']} alone in theirs; with mirror images",
            "",
            render_table(("", "images/s", "ns/pixel", "vggdist is"), rows),
            "",
            f"memory of a dense pass: {result['peak_growth_megabytes']:.0f} MB besides weights and "
            f"images; expected of evaluation.max_megapixels: {result['expected_megabytes']:.0f} MB",
        ]
    )


class OneAtATime:
    """The usual way: an image and its mirror image, fc6 to fc8 as convolutions, weights cast once.

    Args:
        network: with its weights.
        dense: whose convolutions are used.
        device: where the weights are.
    """

    def __init__(self, network: VGG, dense: DenseNetwork, device: torch.device) -> None:
        self._maps = dense.maps
        self._layers: list[tuple[Tensor, Tensor]] = []
        side = network.window
        for layer in (network.fc6, network.fc7, network.fc8):
            weight = layer.linear.weight.detach().to(device, dense.dtype)
            kernel = weight.view(len(weight), -1, side, side)
            bias = layer.linear.bias.detach().to(device, dense.dtype)
            self._layers.append((kernel.contiguous(memory_format=torch.channels_last), bias))
            side = 1

    @torch.no_grad()
    def posteriors(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) -> (n, classes)."""
        found = []
        for image in images:
            units = self._maps(torch.stack([image, image.flip(2)]))
            for number, (kernel, bias) in enumerate(self._layers):
                units = F.conv2d(units, kernel, bias)
                if number < 2:
                    units = units.relu_()
            found.append(units.float().mean(dim=(2, 3)).softmax(dim=1).mean(dim=0))
        return torch.stack(found)


def _plain_crops(network: DenseNetwork, images: Tensor, max_pixels: int) -> Tensor:
    """Multi-crop posteriors of one image, each crop by itself."""
    size = network.crop_size
    height, width = images.shape[2:]
    grid = crop_grid(height, width, size).tolist()
    crops = torch.cat([images[:, :, y : y + size, x : x + size] for y, x in grid])
    crops = torch.cat([crops, crops.flip(3)])
    maps = [network.maps(part) for part in torch.split(crops, max(1, max_pixels // size**2))]
    (scores,) = network.score_maps([torch.cat(maps)])
    return scores[:, 0, 0].float().softmax(dim=1).mean(dim=0)


def _from_files(config: Config, root: Path, scale: int, process: Process) -> list[Whole]:
    images = open_images(root)
    only = np.linspace(0, images.num_images - 1, min(NUM_IMAGES, images.num_images)).astype(int)
    with WholeImageLoader(
        images,
        config.data,
        scales=(scale,),
        group_size=len(only),
        only=only.tolist(),
        num_threads=process.num_cores,
    ) as groups:
        return [Whole(part.images) for group in groups for part in group]


def _random_images(config: Config, scale: int) -> list[Whole]:
    """Random pixels in ImageNet's shapes."""
    generator = torch.Generator().manual_seed(config.seed)
    counts = [(shape, tenths * NUM_IMAGES // 10) for shape, tenths in _COMMON]
    num_alone = NUM_IMAGES - sum(count for _, count in counts)
    counts += [((300 + 7 * number, 500), 1) for number in range(num_alone)]
    shapes = rescaled_sizes([shape for shape, _ in counts], scale).tolist()
    return [
        Whole(torch.randn(count, 3, height, width, generator=generator) * 60)
        for (height, width), (_, count) in zip(shapes, counts, strict=True)
    ]


def _commonest(group: list[Whole]) -> Tensor:
    """The images of the commonest shape."""
    return max(group, key=lambda part: len(part.images)).images


def _fixed_shape(group: list[Whole]) -> Whole:
    """As many images, all of the commonest shape."""
    commonest = _commonest(group)
    count = sum(len(part.images) for part in group)
    return Whole(commonest[torch.arange(count) % len(commonest)].clone())


def _num_pixels(group: list[Whole]) -> int:
    return sum(part.images[:, 0].numel() for part in group)


def peak_growth(work: Callable[[], object], device: torch.device) -> float:
    """MB by which the peak grows over what is held now: of the GPU, or of the process."""
    if device.type == "cuda":
        now = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - now) / 1e6
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[1]) * resource.getpagesize()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forgets the peak until now
    work()
    with open("/proc/self/status") as file:
        (peak,) = (line.split()[1] for line in file if line.startswith("VmHWM"))
    return max(0.0, int(peak) * 1024 - now) / 1e6


def _expected_memory(
    config: Config, network: VGG, max_pixels: int, group: list[Whole], process: Process
) -> int:
    """Bytes that a dense pass takes besides weights and images.

    The largest two maps in memory together; the windows of fc6; the most images of one shape with
    their mirror images; and on a CPU a copy of fc6's weights, which the library lays out anew.
    """
    crop, size = config.data.crop_size, DTYPES[config.resolved_precision].itemsize
    per_pixel = [
        math.prod(layer.output_shape) / crop**2
        for layer in summarize(config.model, crop).layers
        if len(layer.output_shape) == 3
    ]
    maps = max(map(sum, itertools.pairwise(per_pixel)))
    pixels = max(max_pixels, *(part.images[0, 0].numel() for part in group))
    images = 2 * max(part.images.numel() for part in group)
    copy = network.fc6.linear.weight.numel() if process.device.type == "cpu" else 0
    return int((maps * pixels + images + copy) * size) + WINDOW_BYTES
