"""Loaders: order and bits are the plan's, whatever the world size, the start and the pace."""

import gc
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
from vggdist.data.color import color_shift
from vggdist.data.dataset import open_images
from vggdist.data.geometry import source_windows
from vggdist.data.loader import Batch, EvaluationLoader, TrainingLoader
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
        torch.cat([batch.images for batch in batches]),
        torch.cat([batch.labels for batch in batches]),
        torch.cat([batch.dropout_keys for batch in batches]),
        np.concatenate([batch.index for batch in batches]),
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


def test_what_goes_wrong_in_the_producer_is_raised_in_the_consumer(manifest, monkeypatch):
    def broken(mean, draws):
        raise ZeroDivisionError("of the test")

    monkeypatch.setattr(loader_module, "subtracted_mean", broken)
    loader = training(manifest)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="of the test"):
            next(loader)
    assert vggdist_threads() == []


@pytest.mark.parametrize("place", [0, 17, 36])
def test_an_unreadable_image_is_named_and_good_batches_before_it_arrive(tmp_path, make_tree, place):
    tree = make_tree(tmp_path, {"cat": 37})
    bad = sorted((tree / "cat").iterdir())[place]
    bad.write_bytes(bad.read_bytes()[:300])
    loader = EvaluationLoader(open_images(tree), DATA, scale=32, batch_size=4, num_threads=2)
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
    assert message.startswith(f"The image {bad} cannot be used: ")
    assert "Replace it with a good copy" in message
    assert vggdist_threads() == []


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
