"""Other ways to the same batches, measured beside ours: torchvision's, and DALI's usual ones.

This is the one place beside `data/` that imports DALI: it measures DALI without us.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vggdist.config import DataConfig
from vggdist.data.color import EIGENVALUES, EIGENVECTORS, subtracted_mean
from vggdist.data.manifest import Manifest

DATA = DataConfig(train_scale_min=256, train_scale_max=512)
"""The paper's scale jitter, which every way of the benchmark makes."""
SEED = 0


@dataclass(frozen=True)
class Sizes:
    """How much is asked of every way."""

    batch_size: int = 64
    num_threads: int = 2
    """Torchvision: worker processes."""
    num_batches: int = 50
    """Of each round that are timed."""
    num_rounds: int = 5

    @property
    def num_images(self) -> int:
        """That are timed in a round."""
        return self.num_batches * self.batch_size


def torchvision_batches(manifest: Manifest, sizes: Sizes) -> Generator[Tensor]:
    """ImageFolder and DataLoader, as torchvision's own training script has them."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    loader = DataLoader(
        ImageFolder(str(manifest.folder), _torchvision_crop),
        sizes.batch_size,
        shuffle=True,
        num_workers=sizes.num_threads,
        drop_last=True,
        persistent_workers=True,
    )
    while True:
        for images, _ in loader:
            yield images.contiguous(memory_format=torch.channels_last)


def _torchvision_crop(image: Any) -> Tensor:
    """The paper's augmentation of a Pillow image with torchvision's functions."""
    from torchvision.transforms import functional, transforms

    scale = random.randint(DATA.train_scale_min, DATA.train_scale_max)
    size = [DATA.crop_size, DATA.crop_size]
    image = functional.resize(image, scale)
    image = functional.crop(image, *transforms.RandomCrop.get_params(image, size))
    if random.random() < 0.5:
        image = functional.hflip(image)
    draws = np.random.normal(0, DATA.color_shift, (1, 3)).astype(np.float32)
    mean = subtracted_mean(DATA.mean, draws)[0] / 255
    pixels: Tensor = functional.to_tensor(image)  # in [0, 1]
    functional.normalize(pixels, mean.tolist(), [1 / 255] * 3, inplace=True)
    return pixels


def dali_reference(manifest: Manifest, sizes: Sizes) -> Generator[Any]:
    """DALI in the order of its examples: decode, resize the shorter side, crop, normalize."""
    from nvidia.dali import fn, types

    def graph(files: list[str]) -> Any:
        images = fn.decoders.image(_read(files), adjust_orientation=False)
        scales = (DATA.train_scale_min, DATA.train_scale_max)
        scale = fn.random.uniform(range=scales, seed=SEED)
        images = fn.resize(images, resize_shorter=scale, interp_type=types.INTERP_LINEAR)
        draws = fn.random.normal(stddev=DATA.color_shift, shape=(3,), seed=SEED + 1)
        columns = (np.array(EIGENVECTORS) * np.array(EIGENVALUES) * 255).astype(np.float32)
        mean = types.Constant(np.array(DATA.mean, dtype=np.float32))
        for k in range(3):
            mean = mean - draws[k] * types.Constant(columns[:, k])
        return fn.crop_mirror_normalize(
            images,
            dtype=types.FLOAT,
            output_layout="HWC",  # the cheapest way to channels_last
            crop=(DATA.crop_size, DATA.crop_size),
            crop_pos_x=fn.random.uniform(range=(0.0, 1.0), seed=SEED + 2),
            crop_pos_y=fn.random.uniform(range=(0.0, 1.0), seed=SEED + 3),
            mirror=fn.random.coin_flip(seed=SEED + 4),
            mean=mean,
        )

    return _runs(graph, manifest, sizes)


def decode_only(manifest: Manifest, sizes: Sizes) -> Generator[Any]:
    """DALI's reader and decoder and nothing else."""
    from nvidia.dali import fn

    def graph(files: list[str]) -> Any:
        return fn.decoders.image(_read(files), adjust_orientation=False)

    return _runs(graph, manifest, sizes)


def _read(files: list[str]) -> Any:
    from nvidia.dali import fn

    encoded, _ = fn.readers.file(files=files, random_shuffle=True, seed=SEED)
    return encoded


def _runs(graph: Any, manifest: Manifest, sizes: Sizes) -> Generator[Any]:
    from nvidia.dali import pipeline_def

    files = [str(manifest.path(i)) for i in range(manifest.num_images)]
    pipe = pipeline_def(graph)(
        files, batch_size=sizes.batch_size, num_threads=sizes.num_threads, device_id=None
    )
    pipe.build()
    while True:
        (output,) = pipe.run()
        yield output
