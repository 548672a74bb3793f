"""Our own loader alone: a cold cache, a million entries, memory, and pixels."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vggdist.config import BatchSplit
from vggdist.data.batch import Batch
from vggdist.data.dataset import open_dataset
from vggdist.data.geometry import source_windows
from vggdist.data.loader import TrainingLoader
from vggdist.data.manifest import Dataset, Manifest
from vggdist.data.manifest_file import MANIFEST_NAME, save_manifest
from vggdist.data.plan import SamplePlan
from vggdist.profiling.data_baselines import DATA, SEED, Sizes
from vggdist.profiling.memory import resident_bytes
from vggdist.profiling.sample import evict, packed

IMAGENET = 1_281_167
NUM_EPOCHS = 20
_WARM_EPOCHS = 4  # until queues and pools have their size


def our_loader(manifest: Manifest, sizes: Sizes, num_steps: int | None = None) -> TrainingLoader:
    """As training uses it."""
    plan = SamplePlan(manifest.num_images, DATA, sizes.batch_size, SEED)
    split = BatchSplit(sizes.batch_size, sizes.batch_size, 1, 1)
    return TrainingLoader(
        manifest, plan, DATA, split, num_threads=sizes.num_threads, last_step=num_steps
    )


def our_batches(manifest: Manifest, sizes: Sizes) -> Generator[Batch]:
    """What a training gets: 8-bit crops, from which the network subtracts their means."""
    with our_loader(manifest, sizes) as loader:
        yield from loader


def measure_cold(manifest: Manifest, sizes: Sizes) -> float:
    """Images per second where every image comes from the disk: each is evicted after its use."""
    evict(manifest, range(manifest.num_images))
    with our_loader(manifest, sizes) as batches:
        for number, batch in enumerate(batches):
            if number == sizes.num_batches // 2:
                start = time.perf_counter()
            if number == sizes.num_batches // 2 + sizes.num_batches:
                return sizes.num_images / (time.perf_counter() - start)
            evict(manifest, batch.index.tolist())
    raise AssertionError("a training loader does not end")


def measure_first_batch(
    manifest: Manifest, folder: Path, sizes: Sizes, num_entries: int = IMAGENET
) -> dict[str, float]:
    """How long a start takes with as many entries as ImageNet has: the list, and all to a batch."""
    train = packed(manifest, folder / "train", num_entries)
    val = replace(packed(manifest, folder / "val"), split="val")
    save_manifest(Dataset(train, val), [folder / MANIFEST_NAME])
    start = time.perf_counter()
    dataset = open_dataset(folder, write=True)
    opened = time.perf_counter()
    with our_loader(dataset.train, sizes) as batches:
        next(batches)
    return {
        "manifest_seconds": opened - start,
        "first_batch_seconds": time.perf_counter() - start,
    }


def measure_memory(
    manifest: Manifest, sizes: Sizes, num_epochs: int = NUM_EPOCHS
) -> dict[str, float]:
    """Memory of a process that does nothing but load for some epochs, and how much it grew."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as process:
        return process.submit(_load_epochs, manifest, sizes, num_epochs).result()


def measure_pixels(manifest: Manifest, sizes: Sizes) -> dict[str, float]:
    """Grey levels between our crops and Pillow's (decode, crop, antialiased resize, mirror)."""
    samples = SamplePlan(manifest.num_images, DATA, sizes.batch_size, SEED).batch(0)
    with our_loader(manifest, sizes) as batches:
        ours = next(batches).pixels.permute(0, 2, 3, 1).numpy().astype(int)
    means, largest = [], 0
    for i, number in enumerate(samples.image):
        with Image.open(manifest.path(int(number))) as image:
            (side,), ((y, x),) = source_windows(
                [image.size[::-1]],
                samples.scale[i : i + 1],
                samples.position[i : i + 1],
                DATA.crop_size,
            )
            crop = image.convert("RGB").crop((x, y, x + side, y + side))
        crop = crop.resize((DATA.crop_size, DATA.crop_size), Image.Resampling.BILINEAR)
        theirs = np.asarray(ImageOps.mirror(crop) if samples.flip[i] else crop).astype(int)
        difference = np.abs(ours[i] - theirs)
        means.append(float(difference.mean()))
        largest = max(largest, int(difference.max()))
    return {"pillow_mean_difference": statistics.mean(means), "pillow_max_difference": largest}


def _load_epochs(manifest: Manifest, sizes: Sizes, num_epochs: int) -> dict[str, float]:
    """The peak of this process's memory, and its growth after the first epochs, MB."""
    num_steps = -(-num_epochs * manifest.num_images // sizes.batch_size)
    warm = -(-min(_WARM_EPOCHS, num_epochs // 2) * manifest.num_images // sizes.batch_size)
    before = 0
    with our_loader(manifest, sizes, num_steps) as batches:
        for number, _ in enumerate(batches):
            if number == warm:
                before = resident_bytes()
        after = resident_bytes()
    return {
        "peak_megabytes": resident_bytes(peak=True) / 2**20,
        "growth_megabytes": (after - before) / 2**20,
    }
