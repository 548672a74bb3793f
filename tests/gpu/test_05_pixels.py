"""Photos of every kind as a GPU decodes and resizes them, beside the CPU."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from vggdist.config import BatchSplit, DataConfig, Orientation
from vggdist.data.dataset import open_images
from vggdist.data.loader import TrainingLoader
from vggdist.data.manifest import Manifest
from vggdist.data.plan import SamplePlan
from vggdist.data.whole_images import WholeImageLoader
from vggdist.profiling.sample import photo

pytestmark = pytest.mark.gpu

each_share = pytest.mark.parametrize("share", [0.0, 0.65, 1.0])
NUM_EACH = 3  # of a kind, so that both decoders get some

# Grey levels. The decoders' transforms and their way to RGB are rounded differently, by a level or
# two; what is left comes from the resize, which differs where two windows' borders meet.
MEAN, NEARLY_ALL = 1.0, 6.0


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photos_of_all_kinds(seed: int) -> dict[str, bytes]:
    """Kind -> an encoded photo."""
    usual, turned = photo(500, 375, seed), Image.Exif()
    turned[0x0112] = 6
    return {
        "4:2:0": encoded(usual, quality=90),
        "4:2:2": encoded(usual, quality=90, subsampling="4:2:2"),
        "4:4:4": encoded(usual, quality=90, subsampling="4:4:4"),
        "upright": encoded(photo(375, 500, seed), quality=88),
        "odd sides": encoded(photo(487, 333, seed), quality=75),
        "grey": encoded(usual.convert("L"), quality=90),
        "CMYK": encoded(usual.convert("CMYK"), quality=90),
        "progressive": encoded(usual, quality=90, progressive=True),
        "restart markers": encoded(usual, quality=90, restart_marker_rows=1),
        "turned by EXIF": encoded(usual, quality=90, exif=turned),
        "PNG": encoded(usual, "PNG"),
        "2,000 x 1,500": encoded(photo(2000, 1500, seed), quality=85),
        "4,000 x 3,000": encoded(photo(4000, 3000, seed), quality=70),
    }


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, rehearsal: bool) -> Manifest:
    """The photos, `NUM_EACH` of each kind, as images of one class each."""
    root = tmp_path_factory.mktemp("kinds")
    for seed in range(1 if rehearsal else NUM_EACH):
        for number, (kind, content) in enumerate(photos_of_all_kinds(seed).items()):
            path = root / f"{number:02d} {kind}".replace(":", "") / f"{seed}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
    return open_images(root)


def crops(
    images: Manifest, device: torch.device, share: float, orientation: Orientation = "ignore"
) -> torch.Tensor:
    """One crop of each image, (n, 3, 224, 224), in the order of images."""
    data = DataConfig(
        train_scale_min=256,
        train_scale_max=512,
        hardware_decoder_share=share,
        orientation=orientation,
    )
    plan = SamplePlan(images.num_images, data, images.num_images, seed=0)
    split = BatchSplit(images.num_images, images.num_images, 1, 1)
    with TrainingLoader(images, plan, data, split, device=device, num_threads=2) as loader:
        batch = next(loader)
    assert batch.pixels.device == device
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert sorted(batch.index) == list(range(images.num_images))
    return batch.pixels.cpu().float()[np.argsort(batch.index)]


def whole(images: Manifest, device: torch.device, share: float) -> list[torch.Tensor]:
    """Each image at each scale, in order."""
    data = DataConfig(hardware_decoder_share=share)
    found = {}
    with WholeImageLoader(
        images, data, scales=(256, 384), group_size=8, device=device, num_threads=2
    ) as groups:
        for one in (one for group in groups for one in group):
            assert one.pixels.device == one.labels.device == device
            assert one.images.is_contiguous(memory_format=torch.channels_last)
            for number, pixels in zip(one.index.tolist(), one.pixels.cpu().float(), strict=True):
                found[one.scale, number] = pixels
    return [found[key] for key in sorted(found)]


@pytest.fixture(scope="module")
def on_a_cpu(kinds: Manifest) -> tuple[torch.Tensor, list[torch.Tensor]]:
    cpu = torch.device("cpu")
    return crops(kinds, cpu, 0.0), whole(kinds, cpu, 0.0)


def compare(images: Manifest, ours, theirs, figure) -> None:
    """Prints a line for each kind, and holds each image to the limits."""
    numbers = {}
    for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        kind = images.classes[images.labels[number % images.num_images]]
        difference = (one - other).abs()
        row = difference.mean().item(), difference.quantile(0.99).item(), difference.max().item()
        numbers[kind] = np.maximum(row, numbers.get(kind, (0.0, 0.0, 0.0)))
    for kind, (mean, nearly_all, largest) in numbers.items():
        figure(
            f"{kind[3:]:<16}",
            f"mean {mean:.3f}, 99 of 100 pixels {nearly_all:.0f}, largest {largest:.0f}",
        )
    wrong = {kind for kind, row in numbers.items() if row[0] >= MEAN or row[1] > NEARLY_ALL}
    assert not wrong


@each_share
def test_crops_are_those_of_a_cpu(share, kinds, on_a_cpu, device, figure):
    compare(kinds, crops(kinds, device, share), on_a_cpu[0], figure)


@each_share
def test_whole_images_are_those_of_a_cpu(share, kinds, on_a_cpu, device, figure):
    compare(kinds, whole(kinds, device, share), on_a_cpu[1], figure)


@each_share
def test_images_turned_by_their_orientation_are_those_of_a_cpu(share, tmp_path, device, figure):
    for orientation in range(1, 9):
        turned, path = Image.Exif(), tmp_path / f"{orientation:02d} turned" / "0.jpg"
        turned[0x0112] = orientation
        path.parent.mkdir()
        path.write_bytes(encoded(photo(500, 375, 0), quality=90, exif=turned))
    images = open_images(tmp_path)
    on_a_cpu = crops(images, torch.device("cpu"), 0.0, "apply")
    compare(images, crops(images, device, share, "apply"), on_a_cpu, figure)
