"""Checks of processor, memory, GPUs, precision, decoder, disks."""

from __future__ import annotations

import io
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vggdist.artifacts.files import replacing
from vggdist.artifacts.paths import quote
from vggdist.data.dataset import open_images
from vggdist.data.probe import WindowProbe
from vggdist.data.read import Reader
from vggdist.distributed.device import choose_device, require_kernels
from vggdist.distributed.precision import choose_precision
from vggdist.doctor.finding import Finding
from vggdist.errors import ConfigError, in_words

_CHECKPOINT_BYTES = 1.2e9  # of D: weights and momentum, and a little more
_KEPT_CHECKPOINTS = 3
_LITTLE_MEMORY_BYTES = 4e9
_LITTLE_SHARED_BYTES = 1e9  # containers have 64 MB unless told otherwise
_WRITTEN_BYTES = 1 << 26
_READ_IMAGES = 256


def processor() -> Iterator[Finding]:
    """Cores that this process may use, and memory."""
    names = re.findall(r"model name\s*:\s*(.+)", _read("/proc/cpuinfo"))
    cores, name = len(os.sched_getaffinity(0)), names[0] if names else "unknown"
    hint = ""
    if cores < (total := os.cpu_count() or cores):
        hint = f"The machine has {total}; ask the container or the job for more."
    yield Finding(f"{cores} cores of {name}", hint)
    available = 1024 * int(re.findall(r"MemAvailable:\s*(\d+)", _read("/proc/meminfo"))[0])
    hint = ""
    if available < _LITTLE_MEMORY_BYTES:
        hint = (
            "A rank that trains D takes about 4 GB; close something, or train A at a smaller size."
        )
    yield Finding(f"{available / 1e9:.1f} GB of memory are available", hint)


def gpus() -> Iterator[Finding]:
    """GPUs that torch can use; raises a ConfigError for one that it cannot."""
    device = choose_device("auto", 0)
    if device.type == "cpu":
        yield Finding("none here; trainings run on the processor")
        return
    for number in range(torch.cuda.device_count()):
        require_kernels(torch.device("cuda", number))
        free, total = torch.cuda.mem_get_info(number)
        text = f"{number}: {torch.cuda.get_device_name(number)}, {total / 1e9:.0f} GB"
        hint = ""
        if free < total / 2:
            hint = f"Only {free / 1e9:.0f} GB are free; `nvidia-smi` shows who has the rest."
        yield Finding(text, hint)
    shared = shutil.disk_usage("/dev/shm").total
    if torch.cuda.device_count() > 1 and shared < _LITTLE_SHARED_BYTES:
        hint = "NCCL needs more: start the container with --shm-size=8g or --ipc=host."
        yield Finding(f"/dev/shm has {shared / 1e6:.0f} MB", hint, is_problem=True)


def precision() -> Iterator[Finding]:
    """What `precision: auto` chooses."""
    _, sentence = choose_precision("auto", _device())
    yield Finding(sentence.removeprefix("precision ").rstrip("."))


def decoder() -> Iterator[Finding]:
    """Whether DALI decodes a JPEG on each kind of device."""
    memory = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(memory, "JPEG")
    encoded = np.frombuffer(memory.getvalue(), np.uint8)
    for device in dict.fromkeys((torch.device("cpu"), _device())):
        with WindowProbe(device) as probe:
            if probe.decodes(encoded):
                yield Finding(f"DALI decodes JPEGs on {device}")
            else:
                hint = "Install the DALI for this driver (docs/gpu.md); `make setup` does."
                yield Finding(f"DALI does not decode a JPEG on {device}", hint, is_problem=True)


def disk(folder: Path) -> Iterator[Finding]:
    """Space and speed where run folders would be."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    text = f"{quote(place)} has {free / 1e9:.1f} GB free"
    try:
        began_at = time.monotonic()
        with replacing(place / "vggdist-doctor", durable=True) as temporary:
            temporary.write_bytes(os.urandom(_WRITTEN_BYTES))
        (place / "vggdist-doctor").unlink()
    except OSError as error:
        hint = "Choose another run.folder, or mend the permissions."
        yield Finding(f"{quote(place)} cannot be written: {in_words(error)}", hint, is_problem=True)
        return
    rate = _WRITTEN_BYTES / (time.monotonic() - began_at)
    seconds = _CHECKPOINT_BYTES / rate
    hint, needed = "", _KEPT_CHECKPOINTS * _CHECKPOINT_BYTES
    if free < needed:
        hint = (
            f"{_KEPT_CHECKPOINTS} checkpoints of D take {needed / 1e9:.1f} GB; free space, or "
            "choose another run.folder."
        )
    yield Finding(
        f"{text} and takes {rate / 1e6:,.0f} MB/s: a checkpoint of D in {seconds:.0f} s", hint
    )


def data(root: str) -> Iterator[Finding]:
    """The images: how many, and how fast some of them are read."""
    manifest = open_images(root)
    num_classes = len(manifest.classes)
    yield Finding(f"{quote(root)}: {manifest.num_images:,} images of {num_classes:,} classes")
    count = min(_READ_IMAGES, manifest.num_images)
    chosen = np.random.default_rng().choice(manifest.num_images, count, replace=False)
    reader = Reader(manifest)
    try:
        began_at = time.monotonic()
        images = list(reader.read(chosen.tolist()))
        seconds = time.monotonic() - began_at
    finally:
        reader.close()
    reasons = [image for image in images if isinstance(image, str)]
    read = sum(len(image.encoded) for image in images if not isinstance(image, str))
    hint = ""
    if reasons:
        hint = (
            f"{len(reasons)} of them cannot be used ({reasons[0]}); run `vggdist check "
            f"{quote(root)}` before a training."
        )
    yield Finding(
        f"{count:,} images at random are read at {count / seconds:,.0f} images/s, "
        f"{read / seconds / 1e6:,.0f} MB/s",
        hint,
    )


def _device() -> torch.device:
    """The first GPU, or the processor where there is none or it cannot be used."""
    try:
        return choose_device("auto", 0)
    except ConfigError:
        return torch.device("cpu")


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8", errors="replace")
