"""Loaders: order and bits are the plan's, whatever the world size, the start and the pace."""

import contextlib
import errno
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vggdist.config import BatchConfig, DataConfig, split_batch
from vggdist.data import loader as loader_module
from vggdist.data import prefetch
from vggdist.data import read as read_module
from vggdist.data.batch import Batch
from vggdist.data.color import color_shift
from vggdist.data.dataset import open_images
from vggdist.data.geometry import source_windows
from vggdist.data.loader import EvaluationLoader, TrainingLoader
from vggdist.data.manifest import Manifest
from vggdist.data.plan import SamplePlan
from vggdist.errors import DataError

DATA = DataConfig(crop_size=32, train_scale_min=32, train_scale_max=64)
GLOBAL_BATCH = 24


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, make_tree) -> Manifest:
    folder = tmp_path_factory.mktemp("images")
    return open_images(make_tree(folder, {"cat": 13, "dog": 9, "eel": 15}))  # 37: prime


def training(
    manifest: Manifest, world_size: int = 1, micro: int | None = None, rank: int = 0, **options
) -> TrainingLoader:
    data = options.pop("data", DATA)
    split = split_batch(BatchConfig(**{"global": GLOBAL_BATCH, "micro": micro}), world_size)
    plan = SamplePlan(manifest.num_images, data, GLOBAL_BATCH, seed=11)
    return TrainingLoader(manifest, plan, data, split, rank=rank, num_threads=2, **options)


def taken(loader: Iterable[Batch], count: int | None = None) -> list[Batch]:
    with loader as batches:
        return list(islice(batches, count))


def joined(batches: list[Batch]) -> Batch:
    return Batch(
        torch.cat([batch.pixels for batch in batches]),
        torch.cat([batch.mean for batch in batches]),
        torch.cat([batch.labels for batch in batches]),
        torch.cat([batch.dropout_keys for batch in batches]),
        np.concatenate([batch.index for batch in batches]),
        batches[0].dtype,
    )


def assert_same(one: Batch, other: Batch) -> None:
    np.testing.assert_array_equal(one.index, other.index)
    assert torch.equal(one.labels, other.labels)
    assert torch.equal(one.dropout_keys, other.dropout_keys)
    assert torch.equal(one.images, other.images)


def test_a_batch_is_what_pillow_makes_of_the_plan(manifest):
    (batch,) = taken(training(manifest, last_step=1))
    samples = SamplePlan(manifest.num_images, DATA, GLOBAL_BATCH, seed=11).batch(0)
    assert batch.images.shape == (GLOBAL_BATCH, 3, 32, 32)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert (batch.labels.dtype, batch.dropout_keys.dtype) == (torch.int64, torch.int64)
    np.testing.assert_array_equal(batch.index, samples.image)
    np.testing.assert_array_equal(batch.dropout_keys.numpy(), samples.dropout_key)
    for i, number in enumerate(samples.image):
        assert batch.labels[i] == manifest.labels[number]
        with Image.open(manifest.path(int(number))) as image:
            sides, starts = source_windows(
                [image.size[::-1]], samples.scale[i : i + 1], samples.position[i : i + 1], 32
            )
            (y, x), side = starts[0], sides[0]
            crop = image.crop((x, y, x + side, y + side))
        pixels = np.asarray(crop.resize((32, 32), Image.Resampling.BILINEAR)).astype(np.float32)
        if samples.flip[i]:
            pixels = pixels[:, ::-1]
        expected = pixels - DATA.mean + color_shift(samples.color_draw[i : i + 1])
        difference = np.abs(batch.images[i].permute(1, 2, 0).numpy() - expected)
        assert difference.max() < 2.01
        assert difference.mean() < 0.2


@pytest.mark.parametrize(("world_size", "micro"), [(1, 4), (2, 12), (2, 3), (4, 6), (4, 2)])
def test_all_world_sizes_see_the_same_images_in_the_same_order(manifest, world_size, micro):
    num_steps = 4
    alone = taken(training(manifest, last_step=num_steps))
    ranks = [
        taken(training(manifest, world_size, micro, rank, last_step=num_steps))
        for rank in range(world_size)
    ]
    num_micro = GLOBAL_BATCH // world_size // micro
    for step in range(num_steps):
        in_order = [
            ranks[rank][step * num_micro + k]
            for k in range(num_micro)
            for rank in range(world_size)
        ]
        assert_same(joined(in_order), alone[step])


def test_each_image_comes_once_per_epoch_and_batches_span_epochs(manifest):
    num_epochs = GLOBAL_BATCH  # so that the epochs end with a step
    index = joined(taken(training(manifest, last_step=manifest.num_images))).index
    for epoch in index.reshape(num_epochs, manifest.num_images):
        assert sorted(epoch) == list(range(manifest.num_images))


def test_a_loader_started_at_a_step_is_one_that_ran_to_it_bit_for_bit(manifest):
    whole = taken(training(manifest, world_size=2, micro=6, rank=1, last_step=9))
    resumed = taken(training(manifest, world_size=2, micro=6, rank=1, first_step=5, last_step=9))
    assert len(whole) == 18
    for one, other in zip(whole[10:], resumed, strict=True):
        assert_same(one, other)


def test_threads_and_prefetch_do_not_change_a_bit(manifest):
    slow = DATA.model_copy(update={"prefetch": 1})
    fast = DATA.model_copy(update={"prefetch": 5})
    one = taken(training(manifest, data=slow, last_step=3))
    other = taken(training(manifest, data=fast, last_step=3))
    assert_same(joined(one), joined(other))


@pytest.mark.parametrize("num_threads", [1, 2, 3, 9])
def test_lanes_do_not_change_a_bit(manifest, num_threads):
    expected = taken(training(manifest, micro=4, last_step=2))
    plan = SamplePlan(manifest.num_images, DATA, GLOBAL_BATCH, seed=11)
    split = split_batch(BatchConfig(**{"global": GLOBAL_BATCH, "micro": 4}), 1)
    loader = TrainingLoader(manifest, plan, DATA, split, last_step=2, num_threads=num_threads)
    assert_same(joined(taken(loader)), joined(expected))


def test_the_lanes_start_no_openmp_threads_and_leave_the_callers_alone(manifest, monkeypatch):
    seen = []
    original = loader_module.resize_windows

    def spy(*arguments):
        seen.append(torch.get_num_threads())
        return original(*arguments)

    monkeypatch.setattr(loader_module, "resize_windows", spy)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        taken(training(manifest, last_step=2))
        assert torch.get_num_threads() == 3
        assert set(seen) == {1}
        others = []
        thread = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert others == [3]
    finally:
        torch.set_num_threads(before)


def test_training_has_no_end_unless_one_is_given(manifest):
    assert len(taken(training(manifest), 20)) == 20
    assert len(taken(training(manifest, first_step=3, last_step=5))) == 2
    assert taken(training(manifest, first_step=5, last_step=5)) == []


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 5, 37, 64])
def test_an_evaluation_counts_each_image_once(manifest, world_size, batch_size):
    seen, labels = [], []
    for rank in range(world_size):
        loader = EvaluationLoader(
            manifest, DATA, scale=48, batch_size=batch_size, rank=rank, world_size=world_size
        )
        batches = taken(loader)
        assert len(batches) == loader.num_batches
        assert sum(len(batch) for batch in batches) == loader.num_images
        assert all(len(batch) == batch_size for batch in batches[:-1])
        seen += [batch.index for batch in batches]
        labels += [batch.labels.numpy() for batch in batches]
    order = np.concatenate(seen)
    assert sorted(order) == list(range(37))
    np.testing.assert_array_equal(np.concatenate(labels), manifest.labels[order])


def test_an_evaluation_does_not_depend_on_batch_size_or_world_size(manifest):
    def images_by_number(batch_size: int, world_size: int) -> torch.Tensor:
        result = torch.empty(37, 3, 32, 32)
        for rank in range(world_size):
            for batch in taken(
                EvaluationLoader(
                    manifest, DATA, scale=48, batch_size=batch_size, rank=rank,
                    world_size=world_size, num_threads=2,
                )
            ):  # fmt: skip
                result[torch.from_numpy(batch.index)] = batch.images
        return result

    assert torch.equal(images_by_number(37, 1), images_by_number(4, 3))


def test_an_evaluation_can_be_of_some_images_only(manifest):
    only = [30, 3, 17]
    batches = [
        taken(
            EvaluationLoader(
                manifest, DATA, scale=48, batch_size=1, only=only, rank=rank, world_size=2
            )
        )
        for rank in range(2)
    ]
    assert [[int(batch.index[0]) for batch in share] for share in batches] == [[30, 17], [3]]


def test_a_rank_without_images_evaluates_nothing(tmp_path, make_tree):
    two = open_images(make_tree(tmp_path, {"cat": 1, "dog": 1}))
    loader = EvaluationLoader(two, DATA, scale=32, batch_size=8, rank=3, world_size=4)
    assert (loader.num_images, loader.num_batches) == (0, 0)
    assert taken(loader) == []


@pytest.mark.parametrize("num_threads", [1, 3])
def test_a_loader_that_repeats_makes_every_pass_the_same(manifest, num_threads):
    loaders = [
        EvaluationLoader(
            manifest, DATA, scale=48, batch_size=5, rank=1, world_size=2,
            num_threads=num_threads, repeats=repeats,
        )
        for repeats in (False, True)
    ]  # fmt: skip
    once = taken(loaders[0])
    assert [len(batch) for batch in once] == [5, 5, 5, 3]
    with loaders[1] as loader:
        for _ in range(3):
            again = list(islice(loader, loader.num_batches))
            assert [batch.index.tolist() for batch in again] == [b.index.tolist() for b in once]
            assert all(
                torch.equal(one.images, other.images)
                for one, other in zip(once, again, strict=True)
            )


def test_a_loader_that_repeats_makes_the_next_pass_ahead(manifest):
    with EvaluationLoader(manifest, DATA, scale=48, batch_size=37, repeats=True) as loader:
        next(loader)
        deadline = time.monotonic() + 60
        while not all(queue.qsize() for queue in loader._queues):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert next(loader).index.tolist() == list(range(37))


def test_a_rank_without_images_repeats_nothing(tmp_path, make_tree):
    two = open_images(make_tree(tmp_path, {"cat": 1, "dog": 1}))
    assert taken(
        EvaluationLoader(
            two, DATA, scale=32, batch_size=8, rank=3, world_size=4, repeats=True
        )
    ) == []  # fmt: skip


def vggdist_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "vggdist" in thread.name]


@pytest.mark.parametrize("how", ["close", "break", "forget", "error"])
def test_no_thread_outlives_a_loader(manifest, how):
    loader = training(manifest)
    if how == "close":
        next(loader)
        loader.close()
        loader.close()
        assert list(loader) == []
    elif how == "break":
        with loader:
            for _ in loader:
                break
    elif how == "forget":
        next(loader)
        del loader
        gc.collect()
    else:

        def fail() -> None:
            with loader:
                raise KeyError(next(loader))

        with pytest.raises(KeyError):
            fail()
    assert vggdist_threads() == []


def test_closing_at_once_does_not_hang(manifest):
    start = time.perf_counter()
    for _ in range(3):
        training(manifest).close()
    assert time.perf_counter() - start < 10
    assert vggdist_threads() == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_images_are_pixels_less_the_mean_rounded_once(manifest, dtype):
    (batch,) = taken(training(manifest, last_step=1, dtype=dtype))
    assert batch.pixels.dtype == torch.uint8
    assert batch.images.dtype == dtype
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    exact = batch.pixels.double() - batch.mean.double()[:, :, None, None]
    assert torch.equal(batch.images, exact.float().to(dtype))


def test_what_goes_wrong_in_a_lane_is_raised_in_the_consumer(manifest, monkeypatch):
    def broken(mean, draws):
        raise ZeroDivisionError("of the test")

    monkeypatch.setattr(loader_module, "subtracted_mean", broken)
    loader = training(manifest)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="of the test"):
            next(loader)
    assert vggdist_threads() == []


@pytest.mark.parametrize("kept", [0.5, 0.95, 0.999])
def test_a_cut_image_is_bad_whatever_window_is_wanted_of_it(tmp_path, make_tree, kept):
    """Of a baseline JPEG the windows above the cut would decode."""
    images = open_images(make_tree(tmp_path, {"cat": 12}))
    whole = images.path(4).read_bytes()
    images.path(4).write_bytes(whole[: int(kept * len(whole))])
    plan = SamplePlan(12, DATA, GLOBAL_BATCH, seed=11)
    for batch_number, batch in enumerate(taken(training(images, last_step=12))):
        expected = plan.batch(batch_number, known_bad={4})
        np.testing.assert_array_equal(batch.index, expected.image)


def damage(path: Path, how: str) -> None:
    if how == "gone":
        path.unlink()
    elif how in ("folder", "pipe"):
        path.unlink()
        os.mkfifo(path) if how == "pipe" else path.mkdir()
    else:
        content = path.read_bytes()
        overwritten = content[:-100] + b"\xff\xd8" + content[-98:]  # decoders go on, in grey
        path.write_bytes(
            {
                "empty": b"",
                "noise": b"no image " * 99,
                "cut": content[:300],
                "overwritten": overwritten,
            }[how]
        )


@pytest.mark.parametrize("place", [0, 17, 36])
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_an_evaluation_substitutes_nothing_and_names_the_image(tmp_path, make_tree, place, how):
    images = open_images(make_tree(tmp_path, {"cat": 37}))
    damage(images.path(place), how)
    loader = EvaluationLoader(images, DATA, scale=32, batch_size=4, num_threads=2)
    seen = 0
    with loader:
        good = iter(loader)
        while True:
            try:
                seen += len(next(good))
            except DataError as error:
                message = str(error)
                break
    assert seen <= place
    assert message.startswith(f"The image {images.path(place)} cannot be used: ")
    assert "Replace it with a good copy, or delete it. An evaluation counts every image" in message
    assert vggdist_threads() == []


@pytest.mark.parametrize("how", ["cut", "overwritten", "empty", "noise", "gone", "folder", "pipe"])
@pytest.mark.parametrize(("world_size", "micro"), [(1, 24), (2, 3)])
def test_a_training_that_meets_a_bad_file_equals_one_that_knew_it(
    tmp_path, make_tree, how, world_size, micro
):
    images = open_images(make_tree(tmp_path, {"cat": 20, "dog": 17}))
    for number in (5, 30):
        damage(images.path(number), how)
    reports = []
    for rank in range(world_size):
        options = {"world_size": world_size, "micro": micro, "rank": rank, "last_step": 6}
        met = taken(training(images, **options))
        knew = taken(training(images, **options, known_bad=lambda: {5, 30}))
        assert len(met) == len(knew) == 6 * (GLOBAL_BATCH // world_size // micro)
        for one, other in zip(met, knew, strict=True):
            assert_same(one, other)
            assert not np.isin(one.index, [5, 30]).any()
            assert other.bad == ()
        reports += [bad for batch in met for bad in batch.bad]
    assert {bad.image for bad in reports} == {5, 30}
    assert all(bad.reason for bad in reports)
    assert len(reports) <= 2 * world_size  # each rank names a file at most once
    assert vggdist_threads() == []


def test_a_file_that_breaks_under_way_is_replaced_at_its_step(tmp_path, make_tree):
    images = open_images(make_tree(tmp_path, {"cat": 20, "dog": 17}))
    plan = SamplePlan(37, DATA, GLOBAL_BATCH, seed=11)
    with training(images, last_step=60) as loader:
        before = [next(loader) for _ in range(10)]
        damage(images.path(8), "cut")
        after = list(loader)
    for step, batch in enumerate(before):
        np.testing.assert_array_equal(batch.index, plan.batch(step).image)
    assert [bad.image for batch in after for bad in batch.bad] == [8]
    for step, batch in enumerate(after, 10):
        good, substituted = plan.batch(step).image, plan.batch(step, known_bad={8}).image
        read_before = step < 30 and (batch.index == good).all()  # a few batches are read ahead
        assert read_before or (batch.index == substituted).all()


def test_the_policy_fail_stops_at_the_first_bad_image(tmp_path, make_tree):
    images = open_images(make_tree(tmp_path, {"cat": 30}))
    damage(images.path(3), "cut")
    strict = DATA.model_copy(update={"policy": "fail"})
    with pytest.raises(DataError, match=r"cannot be used.*data\.policy=substitute would show"):
        taken(training(images, data=strict, last_step=3))


def test_a_rank_that_finds_too_many_gives_up_by_itself(tmp_path, make_tree):
    images = open_images(make_tree(tmp_path, {"cat": 30}))
    for number in range(0, 30, 2):
        damage(images.path(number), "noise")
    with pytest.raises(DataError, match=r"^[5-7] of 30 images could not be used, more than the 4"):
        taken(training(images, last_step=3, max_bad=4))
    assert len(taken(training(images, last_step=3, max_bad=15))) == 3


def test_a_set_without_a_good_image_is_an_error(tmp_path, make_tree):
    images = open_images(make_tree(tmp_path, {"cat": 5}))
    for number in range(5):
        damage(images.path(number), "noise")
    with pytest.raises(DataError, match=r"No image in .* can be used\. Check the disk"):
        taken(training(images, last_step=3))


def test_a_disk_that_answers_at_the_second_try_is_no_bad_file(manifest, monkeypatch):
    opened, failures = read_module.os.open, iter([True, True])

    def flaky(path, *arguments):
        if str(path).endswith(".jpg'") and next(failures, False):
            raise OSError(errno.EIO, "Input/output error")
        return opened(path, *arguments)

    monkeypatch.setattr(read_module.os, "open", flaky)
    (batch,) = taken(training(manifest, last_step=1))
    assert batch.bad == ()
    assert next(failures, None) is None


def test_the_interpreter_ends_although_a_loader_was_left_open(manifest, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from vggdist.config import DataConfig\n"
        "from vggdist.data.loader import EvaluationLoader\n"
        "from vggdist.data.dataset import open_images\n"
        "data = DataConfig(crop_size=32)\n"
        f"loader = EvaluationLoader(open_images({str(manifest.folder)!r}), data, scale=32,"
        " batch_size=2)\n"
        "next(loader)\n"
        "print('done', flush=True)\n"
    )
    ended = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr


def test_names_with_spaces_and_accents_are_read(tmp_path, make_image):
    make_image(tmp_path / "a class" / "ünï cödé.jpg", 50, 40)
    loader = EvaluationLoader(open_images(tmp_path), DATA, scale=32, batch_size=1)
    (batch,) = taken(loader)
    assert Path(open_images(tmp_path).name(int(batch.index[0]))).name == "ünï cödé.jpg"


def test_a_training_crops_images_of_extreme_shape(tmp_path):
    (tmp_path / "long").mkdir()
    for name, size in (("wide", (20_000, 1)), ("high", (1, 20_000))):
        Image.new("RGB", size, (10, 20, 30)).save(tmp_path / "long" / f"{name}.png")
    (batch,) = taken(training(open_images(tmp_path), last_step=1))
    assert batch.bad == ()
    expected = torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None]
    assert torch.equal(batch.pixels, expected.expand_as(batch.pixels))


def test_a_thread_of_the_loader_works_on_the_gpu_of_its_rank(monkeypatch):
    # Else it would start on GPU 0, and every rank would open a context there.
    gpu, chosen = torch.device("cuda", 3), []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: device)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    with prefetch._own_stream(gpu) as stream:
        assert chosen == [gpu]
        assert stream == gpu
