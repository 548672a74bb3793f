"""Pixels against Pillow: crop the window out of the decoded image, resize it, flip.

Both ways of making images are held to the same oracle. torch's resize is Pillow's algorithm: at
most 1 grey level apart (2 on photographs, 1 pixel in 2 million). DALI's treats the outermost pixel
of a window differently, so there only the mean difference is bounded; elsewhere it is at most 1.
"""

import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.utils.dlpack import from_dlpack

from vggdist.data import decode as decode_module
from vggdist.data.decode import EncodedBatch, Graph, UndecodableError, decode
from vggdist.data.geometry import CENTER, POSITIONS, source_windows
from vggdist.data.header import image_size
from vggdist.data.plan import Samples
from vggdist.data.read import EncodedImage
from vggdist.data.resize import BatchMemory, resize_windows

CROP = 64
CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
NOISE = np.frombuffer(b"no image", dtype=np.uint8)


def samples(
    n: int, scale: int = 80, position: tuple[int, int] = (CENTER, CENTER), flip: bool = False
) -> Samples:
    return Samples(
        image=np.arange(n),
        scale=np.full(n, scale, dtype=np.int32),
        position=np.tile(np.array(position, dtype=np.int32), (n, 1)),
        flip=np.full(n, flip),
        color_draw=np.zeros((n, 3), dtype=np.float32),
        dropout_key=np.zeros(n, dtype=np.int64),
    )


def batch_of(paths: list[Path], what: Samples) -> EncodedBatch:
    contents = [np.fromfile(path, dtype=np.uint8) for path in paths]
    return EncodedBatch(what, [EncodedImage(content, *image_size(content)) for content in contents])


def crops(
    batches: list[EncodedBatch], resize: str = "torch", device: torch.device = CPU
) -> Iterator[torch.Tensor]:
    memory = BatchMemory(CPU)

    def make(what: Samples, decoded: Any) -> torch.Tensor:
        if resize == "dali":
            return from_dlpack(decoded.as_tensor()).clone().permute(0, 3, 1, 2)
        return resize_windows(decoded, what.flip, CROP, memory)

    graph = Graph(len(batches[0].images), device, CROP, resizes=resize == "dali")
    return decode(iter(batches), graph, 2, make)


def made(batch: EncodedBatch, resize: str = "torch") -> torch.Tensor:
    (result,) = crops([batch], resize)
    return result


def pillow_pixels(image: Image.Image, what: Samples, i: int, crop_size: int = CROP) -> np.ndarray:
    """What Pillow makes of an opened image, (crop_size, crop_size, 3)."""
    sides, starts = source_windows(
        [(image.height, image.width)], what.scale[i : i + 1], what.position[i : i + 1], crop_size
    )
    (y, x), side = starts[0], sides[0]
    crop = image.convert("RGB").crop((x, y, x + side, y + side))
    crop = crop.resize((crop_size, crop_size), Image.Resampling.BILINEAR)
    return np.asarray(ImageOps.mirror(crop) if what.flip[i] else crop).astype(np.float32)


def assert_pixels(
    result: torch.Tensor, expected: np.ndarray, resize: str, tolerance: float = 1.01
) -> None:
    """`result` (3, c, c) and `expected` (c, c, 3), grey levels."""
    difference = np.abs(result.permute(1, 2, 0).float().numpy() - expected)
    if resize == "dali":
        assert difference.mean() < 0.5
        difference = difference[1:-1, 1:-1]
    assert difference.max() <= tolerance


@pytest.mark.parametrize("resize", ["torch", "dali"])
def test_pixels_are_pillows_for_all_shapes_scales_positions_and_flips(tmp_path, make_image, resize):
    random = np.random.default_rng(0)
    sizes = [(90, 120), (120, 90), (64, 64), (300, 200), (33, 47), (500, 21), (1, 90), (1, 1)]
    paths = [
        make_image(tmp_path / f"{i}.jpg", *sizes[i % len(sizes)], seed=i, quality=92)
        for i in range(32)
    ]
    what = Samples(
        image=np.arange(32),
        scale=random.integers(CROP, 3 * CROP, 32).astype(np.int32),
        position=random.integers(0, POSITIONS, (32, 2)).astype(np.int32),
        flip=random.random(32) < 0.5,
        color_draw=np.zeros((32, 3), dtype=np.float32),
        dropout_key=np.zeros(32, dtype=np.int64),
    )
    result = made(batch_of(paths, what), resize)
    for i, path in enumerate(paths):
        with Image.open(path) as image:
            assert_pixels(result[i], pillow_pixels(image, what, i), resize)


@pytest.mark.parametrize("resize", ["torch", "dali"])
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("gray.jpg", "L"),
        ("gray.png", "L"),
        ("cmyk.jpg", "CMYK"),
        ("alpha.png", "RGBA"),
        ("palette.png", "P"),
        ("gray_alpha.png", "LA"),
        ("plain.bmp", "RGB"),
        ("plain.tiff", "RGB"),
        ("UPPER.JPG", "RGB"),
        ("plain.webp", "RGB"),
    ],
)
def test_every_kind_of_image_comes_out_as_rgb(tmp_path, make_image, resize, name, mode):
    path = make_image(tmp_path / name, 90, 75, mode)
    result = made(batch_of([path], samples(1)), resize)
    with Image.open(path) as image:
        # CMYK: libjpeg-turbo and Pillow round differently on the way to RGB.
        tolerance = 2.01 if mode == "CMYK" else 1.01
        assert_pixels(result[0], pillow_pixels(image, samples(1), 0), resize, tolerance)


def test_a_png_named_jpeg_is_read_by_its_content(tmp_path, make_image):
    png = make_image(tmp_path / "x.png", 90, 75)
    disguised = png.rename(tmp_path / "x.JPEG")
    result = made(batch_of([disguised], samples(1)))
    with Image.open(disguised) as image:
        assert image.format == "PNG"
        assert_pixels(result[0], pillow_pixels(image, samples(1), 0), "torch")


def test_16_bit_gray_keeps_its_upper_8_bits(tmp_path):
    levels = np.tile(np.arange(64, dtype=np.uint16) * 4, (64, 1))
    Image.fromarray(levels * 257).save(tmp_path / "16.png")
    result = made(batch_of([tmp_path / "16.png"], samples(1, scale=64)))
    expected = np.repeat(levels[:, :, None], 3, axis=2).astype(np.float32)
    assert_pixels(result[0], expected, "torch")


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("resize", ["torch", "dali"])
def test_exif_orientation_is_not_applied(tmp_path, make_image, resize, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = make_image(tmp_path / "turned.jpg", 120, 70, exif=exif, quality=92)
    plain = make_image(tmp_path / "plain.jpg", 120, 70, quality=92)
    what = samples(2, scale=70, position=(100, 50000))
    one, other = made(batch_of([turned, plain], what), resize)
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def coordinates(path: Path, width: int, height: int) -> Path:
    """An image that says in each pixel where it is."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x % 256, y % 256, x // 256 * 16 + y // 256], axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_the_graphs_windows_are_those_of_the_geometry(tmp_path):
    sizes = [(1, 1), (1, 300), (300, 1), (2, 3), (5, 500), (31, 32), (97, 61), (640, 480), (999, 7)]
    paths = [coordinates(tmp_path / f"{w}x{h}.png", w, h) for w, h in sizes]
    random = np.random.default_rng(1)
    batches = []
    for k in range(12):
        position = random.integers(0, POSITIONS, (len(sizes), 2)).astype(np.int32)
        position = position if k else np.full_like(position, POSITIONS - 1)
        scale = random.integers(CROP, 8 * CROP, len(sizes)).astype(np.int32)
        batches.append((paths, scale, position))

    def inputs() -> Iterator[tuple[object, ...]]:
        for batch_paths, scale, position in batches:
            what = replace(samples(len(paths)), scale=scale, position=position)
            yield graph.inputs(batch_of(batch_paths, what))

    graph = Graph(len(sizes), CPU, CROP)
    pipe = graph.build(inputs(), 2)
    for _, scale, position in batches:
        (windows,) = pipe.run()
        sides, starts = source_windows([(h, w) for w, h in sizes], scale, position, CROP)
        for i in range(len(sizes)):
            window = np.asarray(windows.at(i)).astype(int)
            assert window.shape == (sides[i], sides[i], 3)
            x = window[..., 0] + 256 * (window[..., 2] // 16)
            y = window[..., 1] + 256 * (window[..., 2] % 16)
            assert (y[0, 0], x[0, 0]) == tuple(starts[i])
            assert (y[-1, -1], x[-1, -1]) == tuple(starts[i] + sides[i] - 1)


def test_both_ways_of_making_images_agree(tmp_path, make_image):
    paths = [make_image(tmp_path / f"{i}.jpg", 150 - i, 90 + 2 * i, seed=i) for i in range(8)]
    batch = batch_of(paths, samples(8, flip=True))
    difference = (made(batch, "torch").float() - made(batch, "dali").float()).abs()
    assert difference.mean() < 0.5
    assert difference[:, :, 1:-1, 1:-1].max() <= 1


@pytest.mark.parametrize("resize", ["torch", "dali"])
def test_crops_are_channels_last_bytes(tmp_path, make_image, resize):
    path = make_image(tmp_path / "x.jpg", 90, 75)
    result = made(batch_of([path] * 3, samples(3)), resize)
    assert result.shape == (3, 3, CROP, CROP)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert result.dtype == torch.uint8


def test_finished_images_stay_while_somebody_holds_them(tmp_path, make_image):
    paths = [make_image(tmp_path / f"{i}.jpg", 90, 75, seed=i) for i in range(6)]
    batches = [batch_of([path], samples(1)) for path in paths]
    kept = [result[:, 1:] for result in crops(batches)]  # views only: the batches are gone
    for batch, view in zip(batches, kept, strict=True):
        torch.testing.assert_close(view, made(batch)[:, 1:], rtol=0, atol=0)


def test_memory_of_images_that_nobody_holds_is_used_again(tmp_path, make_image):
    path = make_image(tmp_path / "x.jpg", 90, 75)
    batches = [batch_of([path], samples(1)) for _ in range(20)]
    places = {result.data_ptr() for result in crops(batches)}
    assert len(places) <= 2


@pytest.mark.parametrize("resize", ["torch", "dali"])
def test_all_images_that_cannot_be_decoded_are_named_by_number(tmp_path, make_image, resize):
    paths = [make_image(tmp_path / f"{i}.jpg", 90, 75, seed=i) for i in range(6)]
    batch = batch_of(paths, replace(samples(6), image=np.arange(100, 106)))
    for place, content in ((1, b"no image"), (3, paths[3].read_bytes()[:400]), (5, b"")):
        # As after a header that lied.
        batch.images[place] = EncodedImage(np.frombuffer(content, dtype=np.uint8), 75, 90)
    with pytest.raises(UndecodableError) as failure:
        made(batch, resize)
    assert sorted(failure.value.bad) == [101, 103, 105]
    assert failure.value.bad[103].tobytes() == paths[3].read_bytes()[:400]


def test_a_dead_pipeline_is_gone_before_the_bad_images_are_looked_for(
    tmp_path, make_image, monkeypatch
):
    """On a GPU its memory may be what the search would lack."""
    built, alive, build = [], [], Graph.build

    def noting(*arguments, **options):
        alive.append([one for one in built if one() is not None])
        pipe = build(*arguments, **options)
        built.append(weakref.ref(pipe))
        return pipe

    monkeypatch.setattr(Graph, "build", noting)
    paths = [make_image(tmp_path / f"{i}.jpg", 90, 75, seed=i) for i in range(6)]
    batch = batch_of(paths, samples(6))
    for place in (1, 3):
        batch.images[place] = EncodedImage(NOISE, 75, 90)
    with pytest.raises(UndecodableError) as failure:
        made(batch)
    assert sorted(failure.value.bad) == [1, 3]
    assert alive == [[]] * 4  # the batch's own, and three to look


@pytest.mark.parametrize("cpu_finds", [{}, {2: NOISE}])
def test_a_gpu_is_asked_for_bad_images_only_if_a_cpu_decodes_all(
    tmp_path, make_image, monkeypatch, cpu_finds
):
    asked, build, finds = [], Graph.build, {CPU: cpu_finds, GPU: {1: NOISE}}

    def fail_alone(_, graph):
        asked.append(graph.device)
        return finds[graph.device]

    monkeypatch.setattr(
        Graph, "build", lambda graph, *rest: build(replace(graph, device=CPU), *rest)
    )
    monkeypatch.setattr(decode_module, "_fail_alone", fail_alone)
    batch = batch_of([make_image(tmp_path / "x.jpg", 90, 75)] * 3, samples(3))
    batch.images[1] = EncodedImage(NOISE, 75, 90)
    with pytest.raises(UndecodableError) as failure:
        list(crops([batch], device=GPU))
    assert failure.value.bad == (cpu_finds or {1: NOISE})
    assert asked == ([CPU] if cpu_finds else [CPU, GPU])
