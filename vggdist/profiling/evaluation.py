"""How fast whole images are evaluated: ours compared with one image and its mirror image at a time.

Only the network is timed; images are in memory. All ways use the same weights in the same type,
cast once.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vggdist.config import Config
from vggdist.data.dataset import open_images
from vggdist.data.geometry import crop_grid, rescaled_sizes
from vggdist.data.whole_images import WholeImageLoader
from vggdist.distributed.precision import DTYPES
from vggdist.evaluation.scores import dense_posteriors, most_pixels, multi_crop_posteriors
from vggdist.model.configurations import configuration_name
from vggdist.model.dense import WINDOW_BYTES, DenseNetwork
from vggdist.model.initialization import build_initialized
from vggdist.model.summary import summarize
from vggdist.model.vgg import VGG
from vggdist.profiling.memory import peak_growth
from vggdist.profiling.timing import Bench, median_ratio, open_bench, take_turns
from vggdist.terminal import render_table

WAYS = {
    "dense": "vggdist, dense",
    "one_at_a_time": "dense, one image and its mirror image at a time",
    "fixed_shape": "vggdist, dense, all images of one shape",
    "multi_crop": "vggdist, multi-crop of 50 crops",
    "multi_crop_plain": "multi-crop, each crop by itself",
}
"""A way's key in the result -> what people are shown."""
NUM_IMAGES = 36
# Height and width of ImageNet's commonest images, in tenths of the set; each other is alone.
_COMMON = (((375, 500), 4), ((500, 375), 2), ((333, 500), 1))


class Whole(NamedTuple):
    """Images of one shape, as a network is fed them."""

    images: Tensor
    """(n, 3, height, width)."""


def measure_evaluation(
    config: Config, root: Path | None, scale: int, rounds: int
) -> dict[str, Any]:
    """Times in rounds that take turns, in a world of one.

    Args:
        config: network, precision, data; `evaluation.max_megapixels` bounds the memory.
        root: images, of which some are taken; none: random pixels in ImageNet's shapes.
        scale: Q, the rescaled shorter side, pixels.
        rounds: timings of every way.

    Returns:
        Seconds per image of each of `WAYS`, the median of the rounds; `ratios`, the medians of the
        rounds' ratios; what was measured on; memory.
    """
    with open_bench(config) as bench:
        return _measure(bench, root, scale, rounds)


def _measure(bench: Bench, root: Path | None, scale: int, rounds: int) -> dict[str, Any]:
    config, device = bench.config, bench.process.device
    network = build_initialized(config.model, config.data.crop_size, config.seed).eval()
    dense = DenseNetwork(network, DTYPES[config.resolved_precision], device)
    max_pixels = most_pixels(config.evaluation.max_megapixels, device)
    group = [
        Whole(images.to(device, dense.dtype))
        for images in (_from_files(bench, root, scale) if root else _random_images(config, scale))
    ]
    num_images = sum(len(part.images) for part in group)
    commonest = max((part.images for part in group), key=len)
    fixed = [Whole(commonest[torch.arange(num_images) % len(commonest)].clone())]
    few = [Whole(commonest[:1])]

    def ours(images: list[Whole]) -> object:
        return dense_posteriors(dense, images, True, "logits", max_pixels)

    memory = peak_growth(partial(ours, group), device)
    expected = _expected_memory(config, network, max_pixels, group, device)
    alone = one_at_a_time(network, dense)
    works: dict[str, Callable[[], object]] = {
        "dense": partial(ours, group),
        "one_at_a_time": lambda: [alone(part.images) for part in group],
        "fixed_shape": partial(ours, fixed),
        "multi_crop": lambda: multi_crop_posteriors(dense, few, True, max_pixels),
        "multi_crop_plain": lambda: _plain_crops(dense, few[0].images, max_pixels),
    }
    for work in works.values():  # once, to warm up
        work()
    ways = {name: partial(bench.seconds, work) for name, work in works.items()}
    seconds = take_turns(ways, rounds, bench.status)
    pixels = {"dense": _num_pixels(group), "fixed_shape": _num_pixels(fixed)}
    per_pixel = {
        name: [1e9 * own / count for own in seconds[name]] for name, count in pixels.items()
    }
    counts = dict.fromkeys(works, num_images) | {"multi_crop": 1, "multi_crop_plain": 1}
    return {
        **{name: statistics.median(times) / counts[name] for name, times in seconds.items()},
        "ratios": {
            "one_at_a_time": median_ratio(seconds["one_at_a_time"], seconds["dense"]),
            "fixed_shape_per_pixel": median_ratio(per_pixel["dense"], per_pixel["fixed_shape"]),
            "multi_crop_plain": median_ratio(seconds["multi_crop_plain"], seconds["multi_crop"]),
        },
        "nanoseconds_per_pixel": {name: statistics.median(own) for name, own in per_pixel.items()},
        "num_images": num_images,
        "num_shapes": len(group),
        "num_alone": sum(len(part.images) == 1 for part in group),
        "scale": scale,
        "precision": config.resolved_precision,
        "configuration": config.model.configuration,
        "peak_growth_megabytes": memory,
        "expected_megabytes": expected / 1e6,
    }


def render_evaluation(result: dict[str, Any]) -> str:
    """Tables of what `measure_evaluation` returns."""
    ratios, per_pixel = result["ratios"], result["nanoseconds_per_pixel"]
    compared = {
        "one_at_a_time": f"{ratios['one_at_a_time']:.2f} x",
        "fixed_shape": f"{1 / ratios['fixed_shape_per_pixel']:.2f} x per pixel",
        "multi_crop_plain": f"{ratios['multi_crop_plain']:.2f} x",
    }
    rows = [
        (
            label,
            f"{1 / result[name]:.3f}",
            f"{per_pixel[name]:.0f}" if name in per_pixel else "",
            compared.get(name, ""),
        )
        for name, label in WAYS.items()
    ]
    return "\n".join(
        [
            f"configuration {configuration_name(result['configuration'])}, {result['precision']}, "
            f"Q = {result['scale']}; {result['num_images']} images of "
            f"{result['num_shapes']} shapes, {result['num_alone']} alone in theirs; with "
            "mirror images",
            "",
            render_table(("", "images/s", "ns/pixel", "vggdist is"), rows),
            "",
            f"memory of a dense pass: {result['peak_growth_megabytes']:.0f} MB besides weights and "
            f"images; expected of evaluation.max_megapixels: {result['expected_megabytes']:.0f} MB",
        ]
    )


def one_at_a_time(network: VGG, dense: DenseNetwork) -> Callable[[Tensor], Tensor]:
    """The usual way: an image and its mirror image, fc6 to fc8 as convolutions, weights cast once.

    Args:
        network: with its weights.
        dense: whose convolutions, type and device are used.

    Returns:
        A function from images (n, 3, h, w) to posteriors (n, classes).
    """
    layers: list[tuple[Tensor, Tensor]] = []
    side = network.window
    for layer in (network.fc6, network.fc7, network.fc8):
        weight = layer.linear.weight.detach().to(dense.device, dense.dtype)
        kernel = weight.view(len(weight), -1, side, side)
        bias = layer.linear.bias.detach().to(dense.device, dense.dtype)
        layers.append((kernel.contiguous(memory_format=torch.channels_last), bias))
        side = 1

    @torch.no_grad()
    def posteriors(images: Tensor) -> Tensor:
        found = []
        for image in images:
            units = dense.maps(torch.stack([image, image.flip(2)]))
            for number, (kernel, bias) in enumerate(layers):
                units = F.conv2d(units, kernel, bias)
                if number < 2:
                    units = units.relu_()
            found.append(units.float().mean(dim=(2, 3)).softmax(dim=1).mean(dim=0))
        return torch.stack(found)

    return posteriors


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


def _from_files(bench: Bench, root: Path, scale: int) -> list[Tensor]:
    images = open_images(root)
    only = np.linspace(0, images.num_images - 1, min(NUM_IMAGES, images.num_images)).astype(int)
    with WholeImageLoader(
        images,
        bench.config.data,
        scales=(scale,),
        group_size=len(only),
        only=only.tolist(),
        num_threads=bench.process.num_cores,
    ) as groups:
        return [part.images for group in groups for part in group]


def _random_images(config: Config, scale: int) -> list[Tensor]:
    """Random pixels in ImageNet's shapes."""
    generator = torch.Generator().manual_seed(config.seed)
    counts = [(shape, tenths * NUM_IMAGES // 10) for shape, tenths in _COMMON]
    num_alone = NUM_IMAGES - sum(count for _, count in counts)
    counts += [((300 + 7 * number, 500), 1) for number in range(num_alone)]
    shapes = rescaled_sizes([shape for shape, _ in counts], scale).tolist()
    return [
        torch.randn(count, 3, height, width, generator=generator) * 60
        for (height, width), (_, count) in zip(shapes, counts, strict=True)
    ]


def _num_pixels(group: list[Whole]) -> int:
    return sum(part.images[:, 0].numel() for part in group)


def _expected_memory(
    config: Config, network: VGG, max_pixels: int, group: list[Whole], device: torch.device
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
    copy = network.fc6.linear.weight.numel() if device.type == "cpu" else 0
    return int((maps * pixels + images + copy) * size) + WINDOW_BYTES
