"""Shards on a disk of the node's own: complete copies, or sentences that say why not."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from vggdist.data import local_copy
from vggdist.data.dataset import open_dataset
from vggdist.data.manifest import Dataset
from vggdist.data.read import read_encoded
from vggdist.errors import ConfigError, DataError
from vggdist.prepare.packing import Packing
from vggdist.prepare.preparation import prepare
from vggdist.prepare.sources import FolderSource


@pytest.fixture(scope="module")
def folders(tmp_path_factory, make_tree) -> Path:
    root = tmp_path_factory.mktemp("folders")
    for split, counts in (("train", {"cat": 12, "dog": 9}), ("val", {"cat": 3, "dog": 2})):
        make_tree(root / split, counts)
    return root


@pytest.fixture
def packed(folders: Path, tmp_path: Path) -> Dataset:
    """The images in shards of a few images each."""
    prepare(FolderSource(folders), tmp_path / "shards", Packing("shards", shard_megabytes=0.01))
    dataset = open_dataset(tmp_path / "shards")
    assert len(dataset.train.shards.files) > 2
    return dataset


def shards(dataset: Dataset) -> list[Path]:
    return [one.folder / name for one in (dataset.train, dataset.val) for name in one.shards.files]


def test_every_image_is_read_from_the_copy(packed, folders, tmp_path):
    local_copy.copy_shards(packed, tmp_path / "local")
    local = local_copy.local_dataset(packed, tmp_path / "local")
    shutil.rmtree(packed.root)
    original = open_dataset(folders)
    for ours, theirs in ((local.train, original.train), (local.val, original.val)):
        assert ours.digest == theirs.digest
        for i in range(ours.num_images):
            assert tmp_path / "local" in ours.path(i).parents
            assert read_encoded(ours.place(i)).tobytes() == theirs.path(i).read_bytes()


def test_what_is_there_already_is_not_copied_again(packed, tmp_path, capfd):
    local_copy.copy_shards(packed, tmp_path / "local")
    assert f"{len(shards(packed))} of {len(shards(packed))} shards" in capfd.readouterr().err
    copies = shards(local_copy.local_dataset(packed, tmp_path / "local"))
    before = [copy.stat().st_ino for copy in copies]
    copies[1].write_bytes(b"cut off by a full disk")
    local_copy.copy_shards(packed, tmp_path / "local")
    assert "1 of 1 shards" in capfd.readouterr().err
    after = [copy.stat().st_ino for copy in copies]
    assert [one == other for one, other in zip(before, after, strict=True)] == [
        i != 1 for i in range(len(copies))
    ]
    local_copy.copy_shards(packed, tmp_path / "local")
    assert capfd.readouterr().err == ""


def test_a_shard_that_was_prepared_again_is_copied_again(packed, tmp_path):
    local_copy.copy_shards(packed, tmp_path / "local")
    os.utime(shards(packed)[0])
    local_copy.copy_shards(packed, tmp_path / "local")
    copy = shards(local_copy.local_dataset(packed, tmp_path / "local"))[0]
    assert copy.stat().st_mtime_ns == shards(packed)[0].stat().st_mtime_ns


def test_two_jobs_of_a_node_copy_once(packed, tmp_path, capfd):
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(local_copy.copy_shards, packed, tmp_path / "local") for _ in range(2)]
        for job in jobs:
            job.result()
    assert capfd.readouterr().err.count("8 of 8 shards") == 1
    leftovers = list((tmp_path / "local").rglob("*.partial"))
    assert leftovers == []


def test_too_little_space_is_said_before_anything_is_copied(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(local_copy.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(DataError, match=r"take 0\.0 GB more, but .* has 0\.0 GB free"):
        local_copy.copy_shards(packed, tmp_path / "local")
    assert list((tmp_path / "local").rglob("*.tar")) == []


def test_a_disk_that_fills_up_leaves_what_was_copied(packed, tmp_path, monkeypatch):
    copied, copystat = [], shutil.copystat

    def filling(source, target):
        if len(copied) == 2:
            raise OSError(28, "No space left on device", str(target))
        copied.append(target)
        copystat(source, target)

    monkeypatch.setattr(local_copy, "_COPIES_AT_ONCE", 1)
    with monkeypatch.context() as patch:
        patch.setattr(local_copy.shutil, "copystat", filling)
        with pytest.raises(DataError, match=r"No space left on device.*What has been copied stays"):
            local_copy.copy_shards(packed, tmp_path / "local")
    assert len(list((tmp_path / "local").rglob("shard-*.tar"))) == 2
    local_copy.copy_shards(packed, tmp_path / "local")
    assert all(
        copy.is_file() for copy in shards(local_copy.local_dataset(packed, tmp_path / "local"))
    )


def test_a_folder_that_cannot_be_made_is_named(packed, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"file/vggdist-\w+ cannot be written on this node"):
        local_copy.copy_shards(packed, tmp_path / "file")


def test_class_folders_are_not_staged(folders, tmp_path):
    with pytest.raises(ConfigError, match=r"only shards are copied to the nodes. Pack them with"):
        local_copy.local_dataset(open_dataset(folders), tmp_path / "local")
