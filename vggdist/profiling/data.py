"""How fast images arrive: our loader beside torchvision, DALI's usual order, and decoding alone.

All ways make the same thing from the same files, with as many threads or worker processes: random
crops of rescaled images, flipped, colour-shifted, less the mean, in channels_last order. The
decoder's settings are the same too (no EXIF rotation; libjpeg-turbo's accurate IDCT and smooth
chroma upsampling, which Pillow and DALI both use on a CPU). `decode_only` stops after the whole
image is decoded. `vggdist` hands out what a training gets: 8-bit crops, from which the network
subtracts their means; `vggdist_float` has that done too.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

from vggdist.data.dataset import open_images
from vggdist.profiling.data_baselines import Sizes, dali_reference, decode_only, torchvision_batches
from vggdist.profiling.loader import (
    measure_cold,
    measure_first_batch,
    measure_memory,
    measure_pixels,
    our_batches,
)
from vggdist.profiling.sample import packed, sample
from vggdist.profiling.timing import median_ratio, take_turns
from vggdist.terminal import StatusLine, render_table

MOST_IMAGES = 2000
"""Of larger sets a part is measured: what counts is the decoder, and that it fits into memory."""

# Batches that each way makes before its clock starts: more than any of them has in its queues.
_WARM_UP = 16
# Seconds in which the way before fills its queues and falls silent.
_SETTLE_SECONDS = 1.0


def measure_data(root: str | Path, sizes: Sizes) -> dict[str, Any]:
    """Images per second of each way, in rounds that take turns, and more about ours.

    Args:
        root: a data set, a folder of class folders, or a folder of images; read once before, so
            that its files are in the page cache if they fit.
        sizes: of batches and rounds.

    Returns:
        Images per second, the median of the rounds: `torchvision`, `dali_reference`, `decode_only`,
        `vggdist`, `vggdist_float`, `vggdist_shards`; and with a cold cache `vggdist_cold`,
        `vggdist_shards_cold`. `ratios`: way -> how many times faster `vggdist` is, the median of
        the rounds' ratios. `manifest_seconds` and `first_batch_seconds` with 1,281,167 entries.
        `peak_megabytes` and `growth_megabytes` of a process that loads for 20 epochs.
        `pillow_mean_difference` and `pillow_max_difference`, grey levels.
    """
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder, status = Path(temporary), StatusLine()
        images = sample(open_images(root), folder / "folders", MOST_IMAGES)
        shards = packed(images, folder / "shards")
        for i in range(images.num_images):
            images.path(i).read_bytes()
        sources: dict[str, Generator[Any]] = {
            # First: its workers are forked before other threads start.
            "torchvision": torchvision_batches(images, sizes),
            "dali_reference": dali_reference(images, sizes),
            "decode_only": decode_only(images, sizes),
            "vggdist": our_batches(images, sizes),
            "vggdist_float": (batch.images for batch in our_batches(images, sizes)),
            "vggdist_shards": our_batches(shards, sizes),
        }
        for batches in sources.values():
            stack.enter_context(closing(batches))
        ways = {name: partial(_rate, batches, sizes) for name, batches in sources.items()}
        take_turns(ways, 1, status, "memory is still fresh, ")  # does not count
        rounds = take_turns(ways, sizes.num_rounds, status)
        stack.close()
        status.show("cold caches, start, memory and pixels")
        result = {
            **{name: statistics.median(rates) for name, rates in rounds.items()},
            "ratios": {name: median_ratio(rounds["vggdist"], own) for name, own in rounds.items()},
            "vggdist_cold": measure_cold(images, sizes),
            "vggdist_shards_cold": measure_cold(shards, sizes),
            **measure_first_batch(images, folder / "many", sizes),
            **measure_memory(images, sizes),
            **measure_pixels(images, sizes),
        }
        status.clear()
    return result


def render_data(result: dict[str, Any]) -> str:
    """Tables of what `measure_data` returns."""
    rows = [
        (name, f"{result[name]:.0f}", f"{ratio:.2f} x") for name, ratio in result["ratios"].items()
    ]
    cold = ("vggdist_cold", "vggdist_shards_cold")
    rows += [(name, f"{result[name]:.0f}", "") for name in cold]
    lines = [
        render_table(("way", "images/s", "vggdist is"), rows),
        "",
        f"first batch with 1,281,167 entries: {result['first_batch_seconds']:.2f} s "
        f"(the list: {result['manifest_seconds']:.2f} s)",
        f"memory of a loading process: at most {result['peak_megabytes']:.0f} MB, "
        f"{result['growth_megabytes']:+.1f} MB over 20 epochs",
        f"crops compared with Pillow's antialiased resize: {result['pillow_mean_difference']:.4f} "
        f"grey levels on average, {result['pillow_max_difference']:.0f} at most",
    ]
    return "\n".join(lines)


def _rate(batches: Iterator[Any], sizes: Sizes) -> float:
    """Images per second."""
    time.sleep(_SETTLE_SECONDS)
    for _ in range(_WARM_UP):
        next(batches)
    started_at = time.perf_counter()
    for _ in range(sizes.num_batches):
        next(batches)
    return sizes.num_images / (time.perf_counter() - started_at)
