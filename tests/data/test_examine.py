"""What is found out about an image agrees with what a training does with it."""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.prepare.odd_images import encoded, picture, write
from vggdist.config import BatchConfig, DataConfig, split_batch
from vggdist.data.dataset import open_images
from vggdist.data.examine import examine_image
from vggdist.data.loader import TrainingLoader
from vggdist.data.manifest import Manifest
from vggdist.data.plan import SamplePlan

NUM_EPOCHS = 3  # so that other windows are wanted of each image, too

KINDS = (
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("JPEG", {"restart_marker_blocks": 2, "quality": 30}),
    ("JPEG", {"icc_profile": b"no profile", "dpi": (72, 72), "comment": b"hello"}),
    ("MPO", {"save_all": True, "append_images": [picture(24, 24)]}),
    ("PNG", {}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("WEBP", {}),
)
# Beginnings of segments that Pillow reads and other decoders skip, some of them cut short.
METADATA = (
    (0xE0, b"JFIF"),
    (0xE1, b"Exif\0\0MM\0*\0\0\0\x08"),
    (0xE2, b"MPF\0II*\0\x08\0\0\0"),
    (0xE2, b"ICC_PROFILE\0"),
    (0xED, b"Photoshop 3.0\x008BIM"),
    (0xEE, b"Adobe"),
)


def segment(random: np.random.Generator) -> bytes:
    marker, start = METADATA[random.integers(len(METADATA))]
    content = start + random.bytes(int(random.integers(6)))
    return struct.pack(">BBH", 0xFF, marker, 2 + len(content)) + content


def damaged(random: np.random.Generator, content: bytes) -> bytes:
    """A byte flipped, some cut out, some put in, the end cut off, or wrong metadata put in."""
    at = int(random.integers(len(content)))
    return (
        content[:at] + bytes([content[at] ^ 1 << int(random.integers(8))]) + content[at + 1 :],
        content[:at] + content[at + int(random.integers(1, 20)) :],
        content[:at] + random.bytes(4) + content[at:],
        content[: at + 1],
        content[:2] + segment(random) + content[2:],
    )[random.integers(5)]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    random = np.random.default_rng(16)
    folder: Path = tmp_path_factory.mktemp("damaged")
    for number in range(400):
        kind, options = KINDS[number // 2 % (len(KINDS) if number % 2 else 4)]  # most are JPEGs
        width, height = (int(side) for side in random.integers(24, 65, 2))
        content = encoded(picture(width, height, seed=number), kind, **options)
        for _ in range(random.integers(1, 3)):
            content = damaged(random, content)
        write(folder / "some" / f"{number:03d} {kind}.jpg", content)
    return open_images(folder)


def refused_by_training(manifest: Manifest) -> Iterator[int]:
    data = DataConfig(crop_size=32, train_scale_min=32, train_scale_max=64)
    split = split_batch(BatchConfig(**{"global": 24}), 1)
    plan = SamplePlan(manifest.num_images, data, 24, seed=5)
    steps = NUM_EPOCHS * manifest.num_images // 24
    with TrainingLoader(
        manifest, plan, data, split, last_step=steps, num_threads=2, max_bad=manifest.num_images
    ) as batches:
        for batch in batches:
            yield from (bad.image for bad in batch.bad)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_an_image_is_called_usable_exactly_where_a_training_uses_it(manifest: Manifest) -> None:
    found = {image: examine_image(manifest.place(image)) for image in range(manifest.num_images)}
    unusable = {image for image, examined in found.items() if examined.reason}
    assert unusable == set(refused_by_training(manifest))
    usable = [examined for examined in found.values() if not examined.reason]
    assert 100 < len(usable) < 300
    assert all(one.format and one.width and one.height for one in usable)
    assert any("Pillow" in one.damage for one in usable)
