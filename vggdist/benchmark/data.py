"""How fast images arrive: our loader beside torchvision, DALI's usual order, and decoding alone.

All rows make the same thing from the same files, with as many threads or worker processes: random
crops of rescaled images, flipped, colour-shifted, less the mean, as float batches in channels_last
order. The decoder's settings are the same too (no EXIF rotation; libjpeg-turbo's accurate IDCT and
smooth chroma upsampling, which Pillow and DALI both use on a CPU). `decode_only` stops after the
whole image is decoded.

This is the one place beside `data/pipeline.py` that imports DALI: it measures DALI without us.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vggdist.config import BatchSplit, DataConfig
from vggdist.data.color import EIGENVALUES, EIGENVECTORS, subtracted_mean
from vggdist.data.dataset import open_images
from vggdist.data.loader import TrainingLoader
from vggdist.data.manifest import Manifest
from vggdist.data.plan import SamplePlan

_SEED = 0
_DATA = DataConfig(train_scale_min=256, train_scale_max=512)
# Batches that each row makes before its clock starts: more than any of them has in its queues.
_WARM_UP = 6
# Seconds in which the row before fills its queues and falls silent.
_SETTLE = 1.0


def measure_data(
    root: str | Path,
    *,
    batch_size: int = 64,
    num_threads: int = 2,
    num_batches: int = 20,
    num_rounds: int = 5,
) -> dict[str, float]:
    """Images per second of each way, the median of several rounds that take turns.

    Args:
        root: a data set, a folder of class folders, or a folder of images; read once before, so
            that its files are in the page cache if they fit.
        batch_size: images of a batch.
        num_threads: threads of each way (torchvision: worker processes).
        num_batches: batches of each round that are timed.
        num_rounds: rounds.

    Returns:
        Keys `torchvision`, `dali_reference`, `decode_only`, `vggdist`.
    """
    manifest = open_images(root)
    ways: dict[str, Callable[[Manifest, int, int], Any]] = {
        "torchvision": _torchvision,  # first: its workers are forked before other threads start
        "dali_reference": _dali_reference,
        "decode_only": _decode_only,
        "vggdist": _vggdist,
    }
    rounds: dict[str, list[float]] = {name: [] for name in ways}
    with ExitStack() as stack:
        sources = {
            name: stack.enter_context(way(manifest, batch_size, num_threads))
            for name, way in ways.items()
        }
        for i in range(manifest.num_images):
            manifest.path(i).read_bytes()
        for _ in range(num_rounds):
            for name, batches in sources.items():
                time.sleep(_SETTLE)
                for _ in range(_WARM_UP):
                    next(batches)
                start = time.perf_counter()
                for _ in range(num_batches):
                    next(batches)
                elapsed_seconds = time.perf_counter() - start
                rounds[name].append(num_batches * batch_size / elapsed_seconds)
    return {name: statistics.median(rates) for name, rates in rounds.items()}


def render_data(result: dict[str, float]) -> str:
    """A table of what `measure_data` returns, with the ratio of our loader to each row."""
    lines = [f"{'way':<16}{'images/s':>10}{'vggdist is':>14}"]
    for name, rate in result.items():
        lines.append(f"{name:<16}{rate:>10.0f}{result['vggdist'] / rate:>12.2f} x")
    return "\n".join(lines)


@contextmanager
def _vggdist(manifest: Manifest, batch_size: int, num_threads: int) -> Iterator[Iterator[Any]]:
    """Our training loader as training uses it."""
    plan = SamplePlan(manifest.num_images, _DATA, batch_size, _SEED)
    split = BatchSplit(batch_size, batch_size, 1, 1)
    with TrainingLoader(manifest, plan, _DATA, split, num_threads=num_threads) as loader:
        yield loader


@contextmanager
def _torchvision(manifest: Manifest, batch_size: int, num_threads: int) -> Iterator[Iterator[Any]]:
    """ImageFolder and DataLoader, as torchvision's own training script has them."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    with tempfile.TemporaryDirectory() as folder:
        for i in range(manifest.num_images):  # ImageFolder takes nothing but class folders
            link = Path(folder, str(manifest.labels[i]), f"{i}{manifest.path(i).suffix}")
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(manifest.path(i))
        loader = DataLoader(
            ImageFolder(folder, _torchvision_crop),
            batch_size,
            shuffle=True,
            num_workers=num_threads,
            drop_last=True,
            persistent_workers=True,
        )
        with closing(_channels_last(loader)) as batches:
            yield batches


def _channels_last(loader: Any) -> Generator[Tensor]:
    while True:
        for images, _ in loader:
            yield images.contiguous(memory_format=torch.channels_last)


def _torchvision_crop(image: Any) -> Tensor:
    """The paper's augmentation of a Pillow image with torchvision's functions."""
    from torchvision.transforms import functional, transforms

    scale = random.randint(_DATA.train_scale_min, _DATA.train_scale_max)
    size = [_DATA.crop_size, _DATA.crop_size]
    image = functional.resize(image, scale)
    image = functional.crop(image, *transforms.RandomCrop.get_params(image, size))
    if random.random() < 0.5:
        image = functional.hflip(image)
    draws = np.random.normal(0, _DATA.color_shift, (1, 3)).astype(np.float32)
    mean = subtracted_mean(_DATA.mean, draws)[0] / 255
    pixels: Tensor = functional.to_tensor(image)  # in [0, 1]
    functional.normalize(pixels, mean.tolist(), [1 / 255] * 3, inplace=True)
    return pixels


@contextmanager
def _dali_reference(
    manifest: Manifest, batch_size: int, num_threads: int
) -> Iterator[Iterator[Any]]:
    """DALI in the order of its examples: decode, resize the shorter side, crop, normalize."""
    from nvidia.dali import fn, types

    def graph(files: list[str]) -> Any:
        images = fn.decoders.image(_read(files), adjust_orientation=False)
        scales = (_DATA.train_scale_min, _DATA.train_scale_max)
        scale = fn.random.uniform(range=scales, seed=_SEED)
        images = fn.resize(images, resize_shorter=scale, interp_type=types.INTERP_LINEAR)
        draws = fn.random.normal(stddev=_DATA.color_shift, shape=(3,), seed=_SEED + 1)
        columns = (np.array(EIGENVECTORS) * np.array(EIGENVALUES) * 255).astype(np.float32)
        mean = types.Constant(np.array(_DATA.mean, dtype=np.float32))
        for k in range(3):
            mean = mean - draws[k] * types.Constant(columns[:, k])
        return fn.crop_mirror_normalize(
            images,
            dtype=types.FLOAT,
            output_layout="HWC",  # the cheapest way to channels_last
            crop=(_DATA.crop_size, _DATA.crop_size),
            crop_pos_x=fn.random.uniform(range=(0.0, 1.0), seed=_SEED + 2),
            crop_pos_y=fn.random.uniform(range=(0.0, 1.0), seed=_SEED + 3),
            mirror=fn.random.coin_flip(seed=_SEED + 4),
            mean=mean,
        )

    with closing(_runs(graph, manifest, batch_size, num_threads)) as batches:
        yield batches


@contextmanager
def _decode_only(manifest: Manifest, batch_size: int, num_threads: int) -> Iterator[Iterator[Any]]:
    """DALI's reader and decoder and nothing else."""
    from nvidia.dali import fn

    def graph(files: list[str]) -> Any:
        return fn.decoders.image(_read(files), adjust_orientation=False)

    with closing(_runs(graph, manifest, batch_size, num_threads)) as batches:
        yield batches


def _read(files: list[str]) -> Any:
    from nvidia.dali import fn

    encoded, _ = fn.readers.file(files=files, random_shuffle=True, seed=_SEED)
    return encoded


def _runs(graph: Any, manifest: Manifest, batch_size: int, num_threads: int) -> Generator[Any]:
    from nvidia.dali import pipeline_def

    files = [str(manifest.path(i)) for i in range(manifest.num_images)]
    pipe = pipeline_def(graph)(
        files, batch_size=batch_size, num_threads=num_threads, device_id=None
    )
    pipe.build()
    while True:
        (output,) = pipe.run()
        yield output
