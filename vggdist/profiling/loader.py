"""Our own loader alone: a cold cache, a million entries, memory, and pixels."""

from __future__ import annotations

import multiprocessing
import re
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vggdist.config import BatchSplit
from vggdist.data.dataset import open_dataset
from vggdist.data.geometry import source_windows
from vggdist.data.loader import TrainingLoader
from vggdist.data.manifest import Dataset, Manifest
from vggdist.data.manifest_file import MANIFEST_NAME, save_manifest
from vggdist.data.plan import SamplePlan
from vggdist.profiling.data_baselines import DATA, SEED
from vggdist.profiling.sample import evict, packed

IMAGENET = 1_281_167
NUM_EPOCHS = 20
_WARM_EPOCHS = 4  # until queues and pools have their size


@contextmanager
def our_batches(
    manifest: Manifest, batch_size: int, num_threads: int, num_steps: int | None = None
) -> Iterator[TrainingLoader]:
    """Our training loader as training uses it."""
    plan = SamplePlan(manifest.num_images, DATA, batch_size, SEED)
    split = BatchSplit(batch_size, batch_size, 1, 1)
    with TrainingLoader(
        manifest, plan, DATA, split, num_threads=num_threads, last_step=num_steps
    ) as loader:
        yield loader


def measure_cold(manifest: Manifest, batch_size: int, num_threads: int, num_batches: int) -> float:
    """Images per second where every image comes from the disk: each is evicted after its use."""
    evict(manifest, range(manifest.num_images))
    with our_batches(manifest, batch_size, num_threads) as batches:
        for number, batch in enumerate(batches):
            if number == num_batches // 2:
                start = time.perf_counter()
            if number == num_batches // 2 + num_batches:
                return num_batches * batch_size / (time.perf_counter() - start)
            evict(manifest, batch.index.tolist())
    raise AssertionError("a training loader does not end")


def measure_first_batch(
    manifest: Manifest, folder: Path, batch_size: int, num_threads: int, num_entries: int = IMAGENET
) -> dict[str, float]:
    """How long a start takes with as many entries as ImageNet has: the list, and all to a batch."""
    train = packed(manifest, folder / "train", num_entries)
    val = replace(packed(manifest, folder / "val"), split="val")
    save_manifest(Dataset(train, val), [folder / MANIFEST_NAME])
    start = time.perf_counter()
    dataset = open_dataset(folder, write=True)
    opened = time.perf_counter()
    with our_batches(dataset.train, batch_size, num_threads) as batches:
        next(batches)
    return {
        "manifest_seconds": opened - start,
        "first_batch_seconds": time.perf_counter() - start,
    }


def measure_memory(
    manifest: Manifest, batch_size: int, num_threads: int, num_epochs: int = NUM_EPOCHS
) -> dict[str, float]:
    """Memory of a process that does nothing but load for some epochs, and how much it grew."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as process:
        arguments = (manifest, batch_size, num_threads, num_epochs)
        return process.submit(_load_epochs, *arguments).result()


def measure_pixels(manifest: Manifest, batch_size: int, num_threads: int) -> dict[str, float]:
    """Grey levels between our crops and Pillow's (decode, crop, antialiased resize, mirror)."""
    samples = SamplePlan(manifest.num_images, DATA, batch_size, SEED).batch(0)
    with our_batches(manifest, batch_size, num_threads) as batches:
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


def _load_epochs(
    manifest: Manifest, batch_size: int, num_threads: int, num_epochs: int
) -> dict[str, float]:
    """The peak of this process's memory, and its growth after the first epochs, MB."""
    num_steps = -(-num_epochs * manifest.num_images // batch_size)
    warm = -(-min(_WARM_EPOCHS, num_epochs // 2) * manifest.num_images // batch_size)
    before = 0.0
    with our_batches(manifest, batch_size, num_threads, num_steps) as batches:
        for number, _ in enumerate(batches):
            if number == warm:
                before = _megabytes("VmRSS")
        after = _megabytes("VmRSS")
    return {"peak_megabytes": _megabytes("VmHWM"), "growth_megabytes": after - before}


def _megabytes(field: str) -> float:
    found = re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024
