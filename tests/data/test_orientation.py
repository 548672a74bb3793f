"""EXIF orientations: read as DALI reads them, and turned as Pillow turns them, wherever pixels are
made."""

import io
import struct
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import nvidia.dali as dali
import pytest
import torch
from nvidia.dali import fn
from PIL import Image, ImageOps
from torch.utils.dlpack import from_dlpack

from vggdist.api import Classifier
from vggdist.config import DataConfig
from vggdist.data.dataset import open_images
from vggdist.data.decode import EncodedBatch, Graph, decode
from vggdist.data.geometry import POSITIONS, source_windows
from vggdist.data.loader import EvaluationLoader
from vggdist.data.orientation import exif_orientation
from vggdist.data.plan import Samples
from vggdist.data.read import EncodedImage, Reader
from vggdist.data.resize import BatchMemory, resize_windows
from vggdist.data.turned import SAMPLE, Turned, count_turned
from vggdist.data.whole_images import WholeImageLoader

CROP = 32
CPU = torch.device("cpu")
ORIENTATIONS = range(1, 9)
SUFFIXES = ("jpg", "png", "webp", "tiff")


def photo(file: Path, orientation: int, width: int = 90, height: int = 60) -> Path:
    """Smooth, and different in all of its corners."""
    coarse = np.random.default_rng(1).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, exif=exif, **({"quality": 95, "subsampling": 0} if "jpg" in file.name else {}))
    return file


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One class of photos of all formats and orientations."""
    folder = tmp_path_factory.mktemp("photos")
    for suffix in SUFFIXES:
        for orientation in ORIENTATIONS:
            photo(folder / "photos" / f"{suffix}{orientation}.{suffix}", orientation)
    return folder


def upright(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def test_the_orientation_of_every_format_is_found(photos: Path) -> None:
    for file in (photos / "photos").iterdir():
        assert exif_orientation(np.fromfile(file, np.uint8)) == int(file.stem[-1]), file


def samples(n: int) -> Samples:
    random = np.random.default_rng(3)
    return Samples(
        image=np.arange(n),
        scale=random.integers(CROP, 2 * CROP, n).astype(np.int32),
        position=random.integers(0, POSITIONS, (n, 2)).astype(np.int32),
        flip=random.random(n) < 0.5,
        color_draw=np.zeros((n, 3), dtype=np.float32),
        dropout_key=np.zeros(n, dtype=np.int64),
    )


@pytest.mark.parametrize("resize", ["torch", "dali"])
def test_crops_of_turned_images_are_pillows(photos: Path, resize: str) -> None:
    images = open_images(photos)
    what = samples(images.num_images)
    with closing(Reader(images, upright=True)) as reader:
        read = list(reader.read(what.image.tolist()))
    encoded = [image for image in read if isinstance(image, EncodedImage)]
    assert len(encoded) == len(SUFFIXES) * len(ORIENTATIONS)

    def make(_: Samples, decoded: Any) -> torch.Tensor:
        if resize == "dali":
            return from_dlpack(decoded.as_tensor()).clone().permute(0, 3, 1, 2)
        return resize_windows(decoded, what.flip, CROP, BatchMemory(CPU))

    graph = Graph(len(encoded), CPU, CROP, resizes=resize == "dali", upright=True)
    (crops,) = decode(iter([EncodedBatch(what, encoded)]), graph, 2, make)
    for i, crop in enumerate(crops):
        image = upright(images.path(i))
        (side,), ((y, x),) = source_windows(
            [image.size[::-1]], what.scale[i : i + 1], what.position[i : i + 1], CROP
        )
        expected = image.crop((x, y, x + side, y + side))
        expected = expected.resize((CROP, CROP), Image.Resampling.BILINEAR)
        expected = ImageOps.mirror(expected) if what.flip[i] else expected
        difference = np.abs(crop.permute(1, 2, 0).numpy() - np.asarray(expected).astype(float))
        if resize == "dali":  # which treats the outermost pixels of a window differently
            difference = difference[1:-1, 1:-1]
        assert difference.max() <= 2, images.name(i)


def test_evaluations_and_python_see_the_same_upright_pixels(photos: Path) -> None:
    images = open_images(photos)
    data = DataConfig(
        crop_size=CROP, train_scale_min=40, train_scale_max=40, orientation="apply", mean=(0, 0, 0)
    )
    network = torch.nn.Identity()
    classifier = Classifier(network, ["a"], CROP, 40, (0, 0, 0), (1, 1, 1), "apply")
    files = [images.path(i) for i in range(images.num_images)]
    shown = classifier.preprocess(list(files))
    with EvaluationLoader(images, data, scale=40, batch_size=8) as batches:
        for batch in batches:
            crops = shown[torch.from_numpy(batch.index)]
            assert (batch.pixels.float() - crops).abs().max() <= 2
    with WholeImageLoader(images, data, scales=[40], group_size=5) as groups:
        for part in (part for group in groups for part in group):
            for number, pixels in zip(part.index, part.pixels, strict=True):
                image = upright(files[number])
                size = (40, 60) if image.width < image.height else (60, 40)
                expected = np.asarray(image.resize(size, Image.Resampling.BILINEAR)).astype(float)
                assert np.abs(pixels.permute(1, 2, 0).numpy() - expected).max() <= 2


def test_shared_pictures_and_arrays_are_turned_only_if_they_say_so(photos: Path) -> None:
    classifier = Classifier(torch.nn.Identity(), ["a"], CROP, 40, (0, 0, 0), (1, 1, 1), "apply")
    file = photos / "photos" / "jpg6.jpg"
    with Image.open(file) as picture:
        as_stored = np.array(picture)
        assert torch.equal(classifier.preprocess(picture), classifier.preprocess(file))
    assert not torch.equal(classifier.preprocess(as_stored), classifier.preprocess(file))
    classifier.orientation = "ignore"
    assert torch.equal(classifier.preprocess(as_stored), classifier.preprocess(file))


def block(entries: list[tuple[int, int, bytes]], order: str = "<", count: int | None = None):
    """A TIFF block; entries are tag, type and value."""
    start = b"II*\0" if order == "<" else b"MM\0*"
    written = struct.pack(f"{order}IH", 8, len(entries) if count is None else count)
    for tag, kind, value in entries:
        written += struct.pack(f"{order}HHI", tag, kind, 1) + value.ljust(4, b"\0")
    return b"Exif\0\0" + start + written + bytes(4)


SIX = (0x0112, 3, b"\6\0")
ONE = (0x0112, 3, b"\1\0")
ODD_BLOCKS = {
    "usual": [block([SIX])],
    "big endian": [block([(0x0112, 3, b"\0\6")], ">")],
    "of type LONG": [block([(0x0112, 4, b"\6\0\0\0")])],
    "of type BYTE": [block([(0x0112, 1, b"\6")])],
    "zero": [block([(0x0112, 3, b"\0\0")])],
    "nine": [block([(0x0112, 3, b"\11\0")])],
    "behind another": [block([(0x0110, 3, b"\1\0"), SIX])],
    "twice": [block([ONE, SIX])],
    "two blocks": [block([SIX]), block([ONE])],
    "two blocks, the second turns": [block([ONE]), block([SIX])],
    "more entries than there are": [block([SIX], count=99)],
    "without an end": [block([SIX])[:-4]],
    "cut in its value": [block([SIX])[:-6]],
    "of no byte order": [block([SIX]).replace(b"II*", b"XX*")],
    "of another name": [block([SIX]).replace(b"Exif\0\0", b"Exif\0X")],
    "behind XMP": [b"http://ns.adobe.com/xap/1.0/\0<x/>", block([SIX])],
    "in XMP alone": [b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'],
    "empty": [b"Exif\0\0"],
}


@pytest.mark.parametrize("name", ODD_BLOCKS)
def test_odd_blocks_are_read_as_dali_reads_them(name: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (90, 60)).save(buffer, "JPEG")
    plain = buffer.getvalue()
    segments = [b"\xff\xe1" + struct.pack(">H", len(b) + 2) + b for b in ODD_BLOCKS[name]]
    encoded = np.frombuffer(plain[:20] + b"".join(segments) + plain[20:], np.uint8)

    @dali.pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def pipeline() -> Any:
        file = fn.external_source(iter([[encoded]]), batch=True)
        return fn.peek_image_shape(file, adjust_orientation=True)

    pipe = pipeline(prefetch_queue_depth=1, exec_async=False, exec_pipelined=False)
    (shape,) = pipe.run()
    assert (exif_orientation(encoded) >= 5) == (np.array(shape[0]).tolist() == [90, 60, 3])


def test_turned_images_are_counted_exactly_where_they_are_known_and_else_in_a_sample(
    tmp_path: Path,
) -> None:
    for number in range(6):
        photo(tmp_path / "a" / f"{number}.jpg", 6 if number < 2 else 1)
    images = open_images(tmp_path)
    assert count_turned(images, None) == (2, 6, 6)
    known = np.array([1, 3, 3, 3, 1, 1], np.uint8)
    assert str(count_turned(images, known)) == "3 of 6 images have an EXIF orientation"
    assert str(Turned(1, SAMPLE, 2000)) == (
        "1 of 1,000 images, a sample of 2,000, has an EXIF orientation"
    )
