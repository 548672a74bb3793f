"""The list of images: what counts, how it is kept, and every sentence a user may meet."""

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vggdist.data.dataset import open_dataset, open_images
from vggdist.data.manifest import Contents, Dataset, Manifest, Names, Shards, from_classes
from vggdist.data.manifest_file import (
    MANIFEST_NAME,
    QUARANTINE_NAME,
    BadFile,
    load_contents,
    load_quarantine,
    save_manifest,
    save_quarantine,
)
from vggdist.errors import DataError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not looked at")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    for split, names in (("train", ["a.jpg", "b.JPEG", "c.Png"]), ("val", ["x.webp"])):
        for name in ("cat", "dog", "eel"):
            touch(*(folder / split / name / image for image in names))
    return folder


def names(manifest: Manifest) -> list[str]:
    return [manifest.name(i) for i in range(manifest.num_images)]


def test_labels_are_the_places_of_the_sorted_class_folders(root):
    train = open_dataset(root).train
    assert train.classes == ("cat", "dog", "eel")
    assert train.labels.dtype == np.int64
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert names(train)[2:4] == ["cat/c.Png", "dog/a.jpg"]
    assert train.path(3) == root / "train" / "dog" / "a.jpg"
    assert train.place(3) == (os.fsencode(train.path(3)), 0, -1)


def test_only_images_that_are_not_hidden_count(root):
    before = open_dataset(root).train.digest
    touch(
        root / "train" / "cat" / ".hidden.jpg",
        root / "train" / "cat" / "readme.txt",
        root / "train" / "cat" / ".cache" / "z.jpg",
        root / "train" / ".trash" / "z.jpg",
        root / "train" / "stray.jpg",
    )
    assert open_dataset(root).train.digest == before
    touch(root / "train" / "cat" / "below" / "d.tiff")
    assert names(open_dataset(root).train)[3] == "cat/c.Png"
    assert names(open_dataset(root).train)[2] == "cat/below/d.tiff"


def test_names_may_hold_spaces_accents_and_bytes_that_are_no_utf8(root):
    strange = os.fsdecode(b"a b \xc3\xbc \xff.jpg")
    touch(root / "train" / "cat" / strange)
    open_dataset(root, write=True)
    train = open_dataset(root).train
    assert train.path(0).exists()
    assert train.place(0).path.endswith(b"cat/a b \xc3\xbc \xff.jpg")


def test_the_manifest_is_written_once_and_read_back_the_same(root):
    written = open_dataset(root, write=True)
    assert sorted(p.name for p in root.iterdir()) == ["train", "val", MANIFEST_NAME]
    stamp = (root / MANIFEST_NAME).stat().st_mtime_ns
    for again in (open_dataset(root), open_dataset(root, write=True)):
        assert again.train.digest == written.train.digest
        assert again.val.digest == written.val.digest
        assert names(again.train) == names(written.train)
        assert again.train.labels.tolist() == written.train.labels.tolist()
    assert (root / MANIFEST_NAME).stat().st_mtime_ns == stamp
    assert written.train.digest != written.val.digest


def test_the_digest_does_not_depend_on_where_the_tree_is(root, tmp_path):
    digest = open_dataset(root, write=True).train.digest
    root.rename(tmp_path / "moved")
    moved = open_dataset(tmp_path / "moved", write=True).train
    assert moved.digest == digest
    assert moved.path(0).exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("rm -r {train}/dog", "In {train}, the class folder 'dog' is gone."),
        (
            "mkdir {train}/ant; touch {train}/ant/1.jpg",
            "In {train}, the class folder 'ant' is new.",
        ),
        ("mv {val}/eel {val}/els", "In {val}, the class folder 'els' is new."),
        ("rm {train}/dog/b.JPEG", "In {train}/dog, 'b.JPEG' is gone."),
        ("touch {val}/cat/1.jpg {val}/cat/2.jpg", "In {val}/cat, '1.jpg', '2.jpg' are new."),
        ("mv {val}/cat/x.webp {val}/cat/y.webp", "In {val}/cat, 'y.webp' is new."),
    ],
)
def test_a_tree_that_changed_is_refused_by_name_and_accepted_without_manifest(
    root, change, sentence
):
    open_dataset(root, write=True)
    folders = {"train": str(root / "train"), "val": str(root / "val")}
    assert os.system(change.format(**folders)) == 0
    with pytest.raises(DataError) as refusal:
        open_dataset(root, write=True)
    message = str(refusal.value)
    assert message.startswith(
        f"The images in {root} are not those that {root / MANIFEST_NAME} lists:"
    )
    assert sentence.format(**folders) in message
    assert f"as they are now: `vggdist check {root} --accept-changes`" in message


def test_many_differences_are_counted(root):
    open_dataset(root, write=True)
    for i in range(9):
        touch(root / "train" / f"new{i}" / "1.jpg")
    with pytest.raises(DataError, match="There are 4 more differences"):
        open_dataset(root, write=True)


def test_train_and_val_need_the_same_classes(root):
    touch(root / "train" / "ant" / "1.jpg", root / "val" / "fox" / "1.jpg")
    with pytest.raises(DataError) as refusal:
        open_dataset(root, write=True)
    message = str(refusal.value)
    assert f"only {root / 'train'} has 'ant'; only {root / 'val'} has 'fox'" in message
    assert "Add, rename or remove these folders" in message
    assert not (root / MANIFEST_NAME).exists()


def test_a_class_without_images_is_named(root):
    (root / "val" / "dog" / "x.webp").rename(root / "val" / "dog" / "x.txt")
    with pytest.raises(DataError, match=f"In {root / 'val'} there are no images in 'dog'; every"):
        open_dataset(root)


def test_a_root_that_is_missing_or_a_file_is_named(root):
    with pytest.raises(DataError, match=f"{root}/none does not exist; set data.root to a folder"):
        open_dataset(root / "none")
    file = root / "train" / "cat" / "a.jpg"
    with pytest.raises(DataError, match=f"{file} is a file; set data.root to a folder"):
        open_dataset(file)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_root_without_a_split_says_what_it_has(root, split):
    (root / split).rename(root / "other")
    with pytest.raises(DataError) as refusal:
        open_dataset(root)
    there = ", ".join(map(repr, sorted({"train", "val", "other"} - {split})))
    assert f"{root} has no folder {split}/ (it has {there})" in str(refusal.value)


def test_images_that_are_not_in_class_folders_are_refused(root):
    for path in sorted((root / "val").glob("*/*")):
        path.rename(root / "val" / f"{path.parent.name}.jpg")
        path.parent.rmdir()
    with pytest.raises(DataError, match="has no class folders; put the images of each class"):
        open_dataset(root)


def refuse_writing(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    """As on a read-only file system; the tests may run as root, whom permissions do not stop."""
    opened = os.open

    def read_only(file, flags, *args, **kwargs):
        if flags & os.O_CREAT and any(folder in Path(file).parents for folder in folders):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(file))
        return opened(file, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", read_only)


def test_the_manifest_of_a_read_only_root_goes_into_the_fallback_folder(
    root, tmp_path, monkeypatch
):
    refuse_writing(monkeypatch, root)
    run = tmp_path / "run"
    written = open_dataset(root, fallback=run, write=True)
    assert [path.name for path in run.iterdir()] == [MANIFEST_NAME]
    assert open_dataset(root, fallback=run).train.digest == written.train.digest
    touch(root / "train" / "cat" / "new.jpg")
    assert open_dataset(root, fallback=run).train.digest == written.train.digest
    with pytest.raises(DataError, match=f"delete {run / MANIFEST_NAME} to accept"):
        open_dataset(root, fallback=run, write=True)


def test_the_runs_own_manifest_goes_before_the_roots(root, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        refuse_writing(patch, root)
        own = open_dataset(root, fallback=tmp_path / "run", write=True)
    touch(root / "train" / "cat" / "new.jpg")
    open_dataset(root, write=True)
    assert open_dataset(root, fallback=tmp_path / "run").train.digest == own.train.digest


def test_when_nothing_can_be_written_both_places_are_named(root, tmp_path, monkeypatch):
    refuse_writing(monkeypatch, root, tmp_path / "run")
    with pytest.raises(DataError) as refusal:
        open_dataset(root, fallback=tmp_path / "run", write=True)
    for folder in (root, tmp_path / "run"):
        assert f"{folder / MANIFEST_NAME} (Read-only file system)" in str(refusal.value)
    assert open_dataset(root).train.num_images == 9


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_manifest_is_refused(root, damage):
    open_dataset(root, write=True)
    path = root / MANIFEST_NAME
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[content.index(b"a.jpg")] ^= 1
    path.write_bytes(
        content if damage == "flip" else content[: len(content) // 2 * (damage == "cut")]
    )
    with pytest.raises(DataError, match=f"The manifest {path} cannot be used.*Delete it to accept"):
        open_dataset(root)


@pytest.fixture(scope="session")
def imagenet_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the manifest of 1,281,167 packed images, everything known about each."""
    root = tmp_path_factory.mktemp("imagenet")
    (root / "val").mkdir()
    (root / "train").mkdir()
    count = 1_281_167
    labels = np.sort(np.arange(count) % 1000)
    names = Names.pack(f"n{label:08d}_{i}.JPEG" for i, label in enumerate(labels))
    classes = tuple(f"n{c:08d}" for c in range(1000))
    shards = Shards(
        ("shard-000000.tar",),
        np.array([2**40]),
        np.zeros(count, np.int32),
        np.arange(count) * 110_000,
    )
    train = Manifest(
        root / "train", "train", classes, labels, names, "", np.full(count, 109_000), shards
    )
    val = from_classes(root / "val", "val", [(name, ["1.jpg"]) for name in classes])
    contents = {
        one.split: Contents(
            np.ones((one.num_images, 2), np.int32), np.ones((one.num_images, 32), np.uint8)
        )
        for one in (train, val)
    }
    save_manifest(Dataset(train, val), [root / MANIFEST_NAME], contents)
    return root


LOAD = """
import re, sys, time
from pathlib import Path
from vggdist.data.dataset import open_dataset
start = time.process_time()
train = open_dataset(sys.argv[1]).train
seconds = time.process_time() - start
peak = re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())
print(seconds, int(peak[1]) / 1024)
assert train.num_images == 1_281_167
assert train.name(1_281_166) == "n00000999/n00000999_1281166.JPEG"
"""


def test_imagenets_list_loads_in_two_seconds_and_300_megabytes(imagenet_manifest):
    command = [sys.executable, "-c", LOAD, str(imagenet_manifest)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    seconds, megabytes = map(float, printed.split())
    assert seconds < 2
    assert megabytes < 300


def test_images_to_look_at_come_from_any_folder(root):
    assert open_images(root).num_images == 9
    assert open_images(root / "val").classes == ("cat", "dog", "eel")
    flat = open_images(root / "train" / "dog")
    assert flat.classes == ("dog",)
    assert flat.path(0) == root / "train" / "dog" / "a.jpg"
    assert not list(root.rglob(MANIFEST_NAME))


def test_a_root_that_nobody_may_write_is_left_alone_even_by_root(tmp_path, make_tree):
    root, fallback = tmp_path / "images", tmp_path / "run"
    for split in ("train", "val"):
        make_tree(root / split, {"cat": 2, "dog": 1})
    root.chmod(0o555)
    try:
        open_dataset(root, fallback=fallback, write=True)
        assert sorted(entry.name for entry in root.iterdir()) == ["train", "val"]
        assert (fallback / MANIFEST_NAME).is_file()
    finally:
        root.chmod(0o755)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A root whose images lie in two shards (of noise), prepared with a resize."""
    root = tmp_path / "packed"
    sets = []
    for split, files in (("train", ["shard-000000.tar", "shard-000001.tar"]), ("val", ["a.tar"])):
        for file in files:
            touch(root / split / file)
        count = 4 * len(files)
        sets.append(
            Manifest(
                root / split,
                split,
                ("cat", "dog"),
                np.repeat([0, 1], count // 2),
                Names.pack(f"{i}.jpg" for i in range(count)),
                "shorter side at most 512",
                np.arange(count) + 1,
                Shards(
                    tuple(files),
                    np.array([len(b"not looked at")] * len(files)),
                    np.arange(count, dtype=np.int32) % len(files),
                    np.arange(count) * 512,
                ),
            )
        )
    save_manifest(Dataset(*sets), [root / MANIFEST_NAME])
    return root


def test_the_places_of_packed_images_come_back_from_the_manifest(packed):
    assert load_contents(packed / MANIFEST_NAME, packed) is None
    train = open_dataset(packed, write=True).train
    assert train.place(5) == (os.fsencode(packed / "train" / "shard-000001.tar"), 5 * 512, 6)
    assert train.described(5) == f"{packed}/train/shard-000001.tar (dog/5.jpg)"
    assert train.resized == "shorter side at most 512"
    assert open_images(packed).digest == train.digest


def test_the_digest_tells_resized_images_but_not_their_form(packed):
    train = open_dataset(packed).train
    assert replace(train, shards=None, num_bytes=None).digest == train.digest
    assert replace(train, resized="").digest != train.digest


def test_a_shard_that_is_gone_or_cut_is_named(packed):
    (packed / "val" / "a.tar").unlink()
    touch(packed / "train" / "shard-000001.tar")
    (packed / "train" / "shard-000001.tar").write_bytes(b"short")
    with pytest.raises(DataError) as refusal:
        open_dataset(packed, write=True)
    message = str(refusal.value)
    assert f"{packed}/train/shard-000001.tar has 5 bytes, not 13." in message
    assert f"{packed}/val/a.tar: No such file or directory." in message
    assert "Undo the change, or prepare the shards again." in message


def test_shards_without_their_manifest_are_refused(packed):
    (packed / MANIFEST_NAME).unlink()
    with pytest.raises(DataError, match=r"holds 'shard-000000\.tar', 'shard-000001\.tar', but"):
        open_dataset(packed)


def test_a_file_that_moves_to_the_next_class_is_noticed(tmp_path):
    for split in ("train", "val"):
        touch(tmp_path / split / "a" / "1.jpg", tmp_path / split / "a" / "2.jpg")
        touch(tmp_path / split / "b" / "3.jpg")
    open_dataset(tmp_path, write=True)
    (tmp_path / "train" / "a" / "2.jpg").rename(tmp_path / "train" / "b" / "2.jpg")
    with pytest.raises(DataError, match=r"In .*/train/a, '2.jpg' is gone"):
        open_dataset(tmp_path, write=True)


def test_the_quarantine_is_a_list_that_does_not_renumber(root):
    before = open_dataset(root, write=True)
    save_quarantine(
        root,
        [
            BadFile("train/cat/b.JPEG", "it is cut off"),
            BadFile("train/eel/c.Png", "no image"),
            BadFile("val/dog/x.webp", "empty"),
        ],
    )
    after = open_dataset(root, write=True)
    assert after.train.quarantine == {1, 8}
    assert after.val.quarantine == {1}
    assert after.train.digest == before.train.digest
    assert [one.reason for one in load_quarantine(root)] == ["it is cut off", "no image", "empty"]
    save_quarantine(root, [])
    assert not (root / QUARANTINE_NAME).exists()
    assert open_dataset(root).train.quarantine == frozenset()


def test_a_quarantine_that_names_unknown_images_warns(root, caplog):
    open_dataset(root, write=True)
    save_quarantine(root, [BadFile("train/cat/zz.jpg", ""), BadFile("train/ant/a.jpg", "")])
    assert open_dataset(root).train.quarantine == frozenset()
    assert "names 2 images that the data set does not have, such as train/cat/zz.jpg" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", '{"quarantine": [3]}', '{"quarantine": [{}]}'])
def test_a_damaged_quarantine_is_refused(root, text):
    open_dataset(root, write=True)
    (root / QUARANTINE_NAME).write_text(text)
    with pytest.raises(DataError, match=r"cannot be read.*Mend it, or delete it"):
        open_dataset(root)
