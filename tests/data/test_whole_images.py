"""Whole images: pixels against Pillow, and every image once whatever the ranks and groups."""

import contextlib
import errno
import math
import os
import time
from collections.abc import Iterable
from fractions import Fraction
from itertools import chain, groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.test_loader import damage, vggdist_threads
from vggdist.config import DataConfig
from vggdist.data import read as read_module
from vggdist.data import resize, whole_images
from vggdist.data.dataset import open_dataset, open_images
from vggdist.data.manifest import Manifest
from vggdist.data.whole_images import Group, WholeImageLoader, WholeImages
from vggdist.errors import DataError
from vggdist.prepare.check import check
from vggdist.prepare.packing import Packing
from vggdist.prepare.preparation import prepare
from vggdist.prepare.sources import FolderSource

DATA = DataConfig(crop_size=32, prefetch=2)
SCALES = (48, 33, 80)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, make_tree) -> Manifest:
    folder = tmp_path_factory.mktemp("images")
    return open_images(make_tree(folder, {"cat": 13, "dog": 9, "eel": 15}))  # 37: prime


def loader(manifest: Manifest, group_size: int = 8, **options) -> WholeImageLoader:
    options = {"data": DATA, "scales": SCALES, "num_threads": 2, **options}
    return WholeImageLoader(manifest, group_size=group_size, **options)


def taken(groups: WholeImageLoader) -> list[Group]:
    with groups:
        return list(groups)


def numbers(groups: Iterable[Group], scale: int = SCALES[0]) -> list[int]:
    return [int(i) for group in groups for one in group if one.scale == scale for i in one.index]


def pillows(path: Path, scale: int) -> np.ndarray:
    """What Pillow makes of an image file, (height, width, 3)."""
    with Image.open(path) as image:
        shorter = min(image.size)
        size = [math.floor(Fraction(side * scale, shorter) + Fraction(1, 2)) for side in image.size]
        rescaled = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    return np.asarray(rescaled).astype(int)


def assert_pixels_are_pillows(manifest: Manifest, groups: list[Group]) -> None:
    for scale in SCALES:
        assert sorted(numbers(groups, scale)) == list(range(manifest.num_images))
    for one in (one for group in groups for one in group):
        assert one.pixels.dtype == torch.uint8
        assert one.pixels.is_contiguous(memory_format=torch.channels_last)
        for i, number in enumerate(one.index):
            path = manifest.path(int(number))
            expected = pillows(path, one.scale)
            assert min(expected.shape[:2]) == one.scale
            assert one.labels[i] == manifest.labels[number]
            difference = np.abs(one.pixels[i].permute(1, 2, 0).numpy() - expected)
            # torch's weights have 16 bits: where neighbours differ much, a pixel may be 2 apart.
            assert (difference > 1).mean() < 1e-3, path
            assert difference.max() <= 2, path


def test_every_pixel_of_every_image_is_pillows_at_every_scale(manifest):
    assert_pixels_are_pillows(manifest, taken(loader(manifest)))


def test_odd_formats_and_shapes_are_pillows_too(tmp_path, make_image):
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer would turn it
    make_image(tmp_path / "a" / "turned.jpg", 90, 60, exif=exif, quality=92)
    make_image(tmp_path / "a" / "cmyk.jpg", 90, 75, "CMYK")
    make_image(tmp_path / "a" / "gray.jpg", 90, 75, "L")
    make_image(tmp_path / "a" / "progressive.jpg", 190, 175, progressive=True)
    make_image(tmp_path / "b" / "alpha.png", 90, 75, "RGBA")
    make_image(tmp_path / "b" / "palette.png", 75, 90, "P")
    make_image(tmp_path / "b" / "plain.bmp", 75, 90)
    make_image(tmp_path / "b" / "plain.webp", 75, 90)
    make_image(tmp_path / "b" / "png.jpg.png", 75, 90).rename(tmp_path / "b" / "a png.jpg")
    for width, height in ((9, 7), (1, 1), (1, 40), (40, 1), (700, 20), (20, 700), (900, 800)):
        make_image(tmp_path / "c" / f"{width}x{height}.png", width, height)
    images = open_images(tmp_path)
    assert_pixels_are_pillows(images, taken(loader(images, group_size=5)))


def test_levels_resized_as_on_a_gpu_are_pillows(make_image, tmp_path):
    for i, (width, height) in enumerate([(90, 75), (300, 47), (20, 31), (640, 480)]):
        path = make_image(tmp_path / f"{i}.png", width, height)
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0)
        for scale in SCALES:
            expected = pillows(path, scale)
            levels = resize.rescaled_levels(pixels, expected.shape[:2])
            assert levels.min() >= 0
            assert levels.max() <= 255
            assert np.abs(levels.byte()[0].permute(1, 2, 0).numpy() - expected).max() <= 1


@pytest.mark.parametrize("group_size", [1, 5, 37, 64])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_each_image_is_on_one_rank_once_at_every_scale(manifest, world_size, group_size):
    seen = {scale: [] for scale in SCALES}
    for rank in range(world_size):
        share = loader(manifest, group_size, rank=rank, world_size=world_size)
        groups = taken(share)
        assert len(groups) == share.num_groups
        for group in groups:
            decoded = [set(numbers([group], scale)) for scale in SCALES]
            assert decoded[0] == decoded[1] == decoded[2]
            assert len(decoded[0]) == group_size or group is groups[-1]
        for scale in SCALES:
            here = numbers(groups, scale)
            assert len(here) == share.num_images
            assert {number % world_size for number in here} <= {rank}
            seen[scale] += here
    for scale in SCALES:
        assert sorted(seen[scale]) == list(range(37))


def test_a_group_has_one_entry_for_each_shape_at_each_scale_in_the_order_of_scales(manifest):
    for group in taken(loader(manifest, 20)):
        assert [scale for scale, _ in groupby(one.scale for one in group)] == list(SCALES)
        shapes = [(one.scale, one.pixels.shape[2:]) for one in group]
        assert len(set(shapes)) == len(shapes)


def test_images_of_one_shape_stand_together_whatever_the_scale(tmp_path, make_image):
    random = np.random.default_rng(5)
    for i, (width, height) in enumerate(random.integers(60, 70, (60, 2))):
        make_image(tmp_path / "a" / f"{i:02d}.png", int(width), int(height))
    images = open_images(tmp_path)
    groups = taken(loader(images, group_size=1, scales=(20, 300, 64)))
    for scale in (20, 300, 64):
        shapes = [
            tuple(one.pixels.shape) for group in groups for one in group if one.scale == scale
        ]
        assert len(shapes) == 60
        runs = [shape for shape, _ in groupby(shapes)]
        assert len(runs) == len(set(runs))


@pytest.mark.parametrize("num_threads", [1, 3, 9])
def test_order_and_pixels_depend_on_no_thread(manifest, num_threads):
    for one, other in zip(
        taken(loader(manifest)), taken(loader(manifest, num_threads=num_threads)), strict=True
    ):
        for expected, found in zip(one, other, strict=True):
            np.testing.assert_array_equal(found.index, expected.index)
            assert torch.equal(found.pixels, expected.pixels)


def test_some_images_only_can_be_shared(manifest):
    shares = [
        numbers(taken(loader(manifest, only=[30, 3, 17], rank=rank, world_size=2)))
        for rank in range(2)
    ]
    assert sorted(shares[0]) == [17, 30]
    assert shares[1] == [3]


def test_a_rank_without_images_has_no_groups(tmp_path, make_tree):
    two = open_images(make_tree(tmp_path, {"cat": 1, "dog": 1}))
    share = loader(two, rank=3, world_size=4)
    assert (share.num_images, share.num_groups) == (0, 0)
    assert taken(share) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_networks_images_are_pixels_less_the_mean_over_std(manifest, dtype):
    data = DataConfig(crop_size=32, mean=(120.0, 110.0, 100.0), std=(58.0, 57.0, 59.0))
    for one in (one for group in taken(loader(manifest, data=data, dtype=dtype)) for one in group):
        images = one.images
        assert images.dtype == dtype
        assert images.is_contiguous(memory_format=torch.channels_last)
        mean, std = (torch.tensor(x).double()[:, None, None] for x in (data.mean, data.std))
        exact = (one.pixels.double() - mean) / std
        tolerance = 1e-6 if dtype == torch.float32 else 2**-8
        torch.testing.assert_close(images.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def checked(tmp_path_factory, make_tree) -> Path:
    """A data set whose manifest knows what is in its files."""
    root = tmp_path_factory.mktemp("checked")
    for split in ("train", "val"):
        make_tree(root / split, {"cat": 6, "dog": 7})
    open_dataset(root, write=True)
    check(root, jobs=1)
    return root


def looked_into(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The images whose headers are read for their sizes from now on."""
    asked: list[int] = []
    original = read_module.Reader.sizes

    def spy(self, images):
        asked.extend(images)
        return original(self, images)

    monkeypatch.setattr(read_module.Reader, "sizes", spy)
    return asked


def test_sizes_that_the_manifest_knows_are_not_read_from_files(checked, manifest, monkeypatch):
    asked = looked_into(monkeypatch)
    val = open_dataset(checked).val
    with_contents = taken(loader(val))
    assert asked == []
    assert_pixels_are_pillows(val, with_contents)
    (checked / "vggdist-manifest.npz").rename(checked / "away")
    without = taken(loader(open_dataset(checked).val))
    (checked / "away").rename(checked / "vggdist-manifest.npz")
    assert asked == list(range(13))
    assert numbers(with_contents) == numbers(without)


def test_an_image_replaced_since_the_check_is_decoded_as_it_is_now(checked, make_image):
    val = open_dataset(checked).val
    before = val.path(4).read_bytes()
    make_image(val.path(4), 400, 55)
    try:
        assert_pixels_are_pillows(val, taken(loader(val, group_size=3)))
    finally:
        val.path(4).write_bytes(before)


def test_shards_give_what_folders_give(checked, tmp_path):
    packing = Packing("shards", shard_megabytes=0.005, jobs=1)
    prepare(FolderSource(checked), tmp_path / "shards", packing)
    packed = open_dataset(tmp_path / "shards").val
    assert packed.shards is not None
    assert len(packed.shards.files) > 1
    folders, shards = taken(loader(open_dataset(checked).val)), taken(loader(packed))
    (tmp_path / "shards" / "vggdist-manifest.npz").unlink()  # sizes then come from the headers
    for found in (shards, taken(loader(packed))):
        for one, other in zip(chain(*folders), chain(*found), strict=True):
            np.testing.assert_array_equal(one.index, other.index)
            assert torch.equal(one.labels, other.labels)
            assert torch.equal(one.pixels, other.pixels)


@pytest.mark.parametrize("place", [0, 17, 36])
@pytest.mark.parametrize("how", ["cut", "gone", "empty", "noise", "folder", "pipe"])
def test_an_unusable_image_ends_the_evaluation_and_is_named(tmp_path, make_tree, place, how):
    images = open_images(make_tree(tmp_path, {"cat": 37}))
    damage(images.path(place), how)
    with pytest.raises(DataError) as error:
        taken(loader(images, group_size=4))
    assert str(error.value).startswith(f"The image {images.path(place)} cannot be used: ")
    assert "Replace it with a good copy, or delete it. An evaluation counts every image" in str(
        error.value
    )
    assert vggdist_threads() == []


def test_an_image_that_only_the_decoder_finds_damaged_is_named(tmp_path, make_image):
    for i in range(9):
        make_image(tmp_path / "a" / f"{i}.png", 80 + i, 75)
    images = open_images(tmp_path)
    whole = bytearray(images.path(5).read_bytes())
    whole[len(whole) // 2 :] = bytes(len(whole) - len(whole) // 2)
    images.path(5).write_bytes(whole)
    with pytest.raises(DataError, match=r"^The image .*/5\.png cannot be used: "):
        taken(loader(images, group_size=4))


def test_images_without_a_size_end_the_evaluation_before_any_other_is_computed(tmp_path, make_tree):
    images = open_images(make_tree(tmp_path, {"cat": 37}))
    damage(images.path(31), "gone")
    with loader(images, group_size=4) as groups, pytest.raises(DataError, match="no such file"):
        next(groups)


@pytest.mark.parametrize("how", ["close", "error"])
def test_no_thread_outlives_the_loader(manifest, how):
    groups = loader(manifest, group_size=2)
    if how == "close":
        next(groups)
        groups.close()
        assert list(groups) == []
    else:
        with pytest.raises(KeyError), groups:
            raise KeyError(len(next(groups)))
    assert vggdist_threads() == []


def test_no_more_groups_are_made_than_may_wait(manifest, monkeypatch):
    made = []
    original = whole_images.rescale

    def spy(*arguments):
        made.append(1)
        return original(*arguments)

    monkeypatch.setattr(whole_images, "rescale", spy)
    with loader(manifest, group_size=1, num_threads=16) as groups:
        next(groups)
        time.sleep(0.3)  # long enough to make all, if nothing held them back
        # Two lanes, each with one group in its queue and one that waits for a place, and the taken.
        assert len(made) <= 5


def test_memory_of_groups_that_nobody_holds_is_used_again(manifest):
    places = set()
    with loader(manifest, group_size=1, num_threads=1, scales=(64,)) as groups:
        for group in groups:
            places.add(group[0].pixels.untyped_storage().data_ptr())
            del group
    assert len(places) <= 24  # of 37: a larger group takes new memory, as do those in the queues


def test_what_somebody_holds_is_not_overwritten(manifest):
    with loader(manifest, group_size=3) as groups:
        kept = [one.pixels[:, 1:] for group in groups for one in group]  # views only
    again = [one.pixels[:, 1:] for group in taken(loader(manifest, group_size=3)) for one in group]
    for one, other in zip(kept, again, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_rank_tells_how_many_headers_it_has_read(
    manifest, monkeypatch, capsys, rank
):
    monkeypatch.setattr(whole_images, "_PATIENCE_SECONDS", -1.0)
    taken(loader(manifest, rank=rank, world_size=2))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (rank == 0)
    if lines:
        assert lines[0].startswith("19 of 19 headers")


def test_a_short_look_at_headers_is_silent(manifest, capsys):
    taken(loader(manifest))
    assert capsys.readouterr().err == ""


def test_a_disk_that_answers_at_the_second_try_is_no_bad_file(manifest, monkeypatch):
    opened, failures = os.open, iter([True, True])

    def flaky(path, *arguments):
        if str(path).endswith(".jpg'") and next(failures, False):
            raise OSError(errno.EIO, "Input/output error")
        return opened(path, *arguments)

    monkeypatch.setattr(read_module.os, "open", flaky)
    assert sorted(numbers(taken(loader(manifest)))) == list(range(37))
    assert next(failures, None) is None


def test_a_long_header_does_not_hide_the_size(tmp_path, make_image):
    profile = b"\xff\xc0 is no marker here" * 3000  # the size stands behind 60 kB
    make_image(tmp_path / "a" / "0.jpg", 90, 75, icc_profile=profile)
    make_image(tmp_path / "a" / "1.jpg", 70, 75)
    images = open_images(tmp_path)
    with contextlib.closing(read_module.Reader(images)) as reader:
        assert list(reader.sizes([0, 1])) == [(75, 90), (75, 70)]


def test_whole_images_have_a_length(manifest):
    group = taken(loader(manifest, group_size=37))[0]
    assert isinstance(group[0], WholeImages)
    assert sum(len(one) for one in group) == 37 * len(SCALES)
