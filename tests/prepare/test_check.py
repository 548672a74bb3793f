"""`vggdist check`: what training cannot use is named, whatever it does to its decoder."""

import hashlib
import logging
import os
from pathlib import Path

import pytest
from PIL import Image

from tests.prepare.odd_images import (
    NOT_UTF8,
    bad_images,
    encoded,
    examine_with_accidents,
    good_images,
    picture,
    small_set,
    write,
)
from vggdist.config import BatchConfig, DataConfig, split_batch
from vggdist.data.dataset import open_dataset, open_images
from vggdist.data.loader import TrainingLoader
from vggdist.data.manifest import Manifest
from vggdist.data.manifest_file import (
    MANIFEST_NAME,
    QUARANTINE_NAME,
    load_contents,
    load_quarantine,
)
from vggdist.data.plan import SamplePlan
from vggdist.errors import DataError
from vggdist.prepare.check import check
from vggdist.prepare.findings import CheckResult, ClassCount, Extreme, Spread, render_check
from vggdist.prepare.packing import Packing
from vggdist.prepare.preparation import prepare
from vggdist.prepare.sources import FolderSource


def reasons(result: CheckResult) -> dict[str, str]:
    return {image.file: image.reason for image in result.quarantine}


def batches(manifest: Manifest, num_steps: int, **options: object) -> TrainingLoader:
    """Batches of 24, as a training sees them."""
    data = DataConfig(crop_size=32, train_scale_min=32, train_scale_max=512)
    split = split_batch(BatchConfig(**{"global": 24}), 1)
    plan = SamplePlan(manifest.num_images, data, 24, seed=5)
    return TrainingLoader(
        manifest, plan, data, split, last_step=num_steps, num_threads=2, **options
    )


@pytest.fixture(scope="module")
def odd_folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("odd")
    for name, content in good_images().items():
        write(root / "good" / name, content)
    write(root / "good" / NOT_UTF8, encoded(picture(61, 50)))
    for name, (content, _) in bad_images().items():
        write(root / "bad" / name, content)
    (root / "bad" / "gone.jpg").symlink_to(root / "nowhere")
    return root


@pytest.fixture(scope="module")
def odd_result(odd_folder) -> CheckResult:
    return check(odd_folder, jobs=2)


def test_every_odd_image_is_accepted_or_refused_with_its_reason(odd_result):
    found = reasons(odd_result)
    expected = {f"bad/{name}": reason for name, (_, reason) in bad_images().items()}
    expected["bad/gone.jpg"] = "it cannot be read: there is no such file"
    assert {file: reason for file, reason in found.items() if file.startswith("good/")} == {}
    assert found.keys() == expected.keys()
    for file, reason in expected.items():
        assert found[file].startswith(reason), file
    assert odd_result.accepted == len(good_images()) + 1


def test_the_result_does_not_depend_on_the_number_of_processes(odd_folder, odd_result):
    assert check(odd_folder, jobs=1).to_dict() == odd_result.to_dict()


def test_every_accepted_image_goes_through_the_training_pipeline(odd_folder, odd_result, tmp_path):
    refused = reasons(odd_result)
    for path in odd_folder.glob("*/*"):
        if str(path.relative_to(odd_folder)) not in refused:
            write(tmp_path / "all" / path.name, path.read_bytes())
    manifest = open_images(tmp_path / "all")
    assert manifest.num_images == odd_result.accepted
    with batches(manifest, 60) as loader:
        assert sum(map(len, loader)) == 60 * 24


def test_a_training_refuses_every_image_that_check_refuses(odd_folder, odd_result):
    manifest = open_images(odd_folder)
    with batches(manifest, 9, max_bad=manifest.num_images) as loader:
        refused = {manifest.name(bad.image) for batch in loader for bad in batch.bad}
    assert refused == reasons(odd_result).keys()


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_only_the_file_that_ends_its_process_is_refused(tmp_path, jobs):
    for i in range(40):  # more than one task's
        write(tmp_path / "some" / f"{i:02d}.jpg", encoded(picture(20 + i, 30)))
    for name in ("03 segfault", "04 abort", "17 exit", "25 hang", "39 segfault", "40 glutton"):
        write(tmp_path / "some" / f"{name}.jpg", encoded(picture()))
    result = check(tmp_path, jobs, examine=examine_with_accidents, longest_seconds=3)
    assert result.accepted == 40
    assert reasons(result) == {
        "some/03 segfault.jpg": "the decoder crashed (signal 11)",
        "some/04 abort.jpg": "the decoder crashed (signal 6)",
        "some/17 exit.jpg": "the decoder ended its process (exit code 7)",
        "some/25 hang.jpg": "decoding took longer than 3 seconds",
        "some/39 segfault.jpg": "the decoder crashed (signal 11)",
        "some/40 glutton.jpg": "it does not fit into memory",
    }


def test_a_pipe_among_the_images_is_refused_and_keeps_nobody_waiting(tmp_path):
    write(tmp_path / "good.jpg", encoded(picture()))
    os.mkfifo(tmp_path / "pipe.jpg")
    result = check(tmp_path, 1)
    assert reasons(result) == {"pipe.jpg": "it cannot be read: it is no regular file"}


def test_counts_sizes_formats_and_modes_are_those_of_the_images(tmp_path):
    write(tmp_path / "train" / "cat" / "a.jpg", encoded(picture(300, 260)))
    write(tmp_path / "train" / "cat" / "b.png", encoded(picture(50, 90).convert("L"), "PNG"))
    write(tmp_path / "train" / "dog" / "c.jpg", encoded(picture(224, 230)))
    write(tmp_path / "train" / "dog" / "d.jpg", b"no image")
    write(tmp_path / "val" / "cat" / "e.jpg", encoded(picture(10, 20)))
    write(tmp_path / "val" / "dog" / "f.jpg", encoded(picture(500, 400)))
    result = check(tmp_path, 1)
    assert result.splits == {
        "train": {"cat": ClassCount(2, 2), "dog": ClassCount(2, 1)},
        "val": {"cat": ClassCount(1, 1), "dog": ClassCount(1, 1)},
    }
    assert (result.accepted, list(reasons(result))) == (5, ["train/dog/d.jpg"])
    assert (result.formats, result.modes) == ({"JPEG": 4, "PNG": 1}, {"RGB": 4, "L": 1})
    assert result.shorter_side == Spread(10, 224, 400)
    lengths = sorted(p.stat().st_size for p in tmp_path.glob("*/*/*") if p.name != "d.jpg")
    assert result.num_bytes == Spread(lengths[0], lengths[2], lengths[4])
    assert result.smallest == Extreme("val/cat/e.jpg", 10, 20)
    assert result.largest == Extreme("val/dog/f.jpg", 500, 400)
    assert result.num_below_crop_size == 2
    assert result.tiny_classes == {"cat": 2, "dog": 1}


def test_classes_of_ten_training_images_are_not_tiny(tmp_path):
    assert check(small_set(tmp_path, per_class=10), 1).tiny_classes == {}


def test_copies_are_found_across_splits_across_classes_and_within_a_class(tmp_path):
    root = small_set(tmp_path)
    train, val = root / "train", root / "val"
    write(val / "cat" / "leak.jpg", (train / "cat" / "0.jpg").read_bytes())
    write(train / "dog" / "x.jpg", (train / "cat" / "1.jpg").read_bytes())
    write(train / "dog" / "y.jpg", (train / "dog" / "0.jpg").read_bytes())
    write(train / "dog" / "z.jpg", (train / "dog" / "0.jpg").read_bytes())
    for name in ("p.jpg", "q.jpg"):  # broken files are no duplicates
        write(train / "dog" / name, b"no image")
    duplicates = check(root, 1).duplicates
    assert duplicates.across_splits == [["train/cat/0.jpg", "val/cat/leak.jpg"]]
    assert duplicates.different_labels == [["train/cat/1.jpg", "train/dog/x.jpg"]]
    assert duplicates.num_same_label == 2


def test_afterwards_the_manifest_knows_everything_and_has_the_same_digest(tmp_path):
    root = small_set(tmp_path)
    write(root / "train" / "dog" / "broken.jpg", b"no image")
    before = open_dataset(root)
    check(root, 1)
    after = open_dataset(root, write=True)
    assert after.train.digest == before.train.digest
    assert after.val.digest == before.val.digest
    assert [after.train.name(i) for i in after.train.quarantine] == ["dog/broken.jpg"]
    contents = load_contents(root / MANIFEST_NAME, root)
    for manifest in (after.train, after.val):
        known = contents[manifest.split]
        for i in range(manifest.num_images):
            content = manifest.path(i).read_bytes()
            assert manifest.num_bytes[i] == len(content)
            assert known.sha256[i].tobytes() == hashlib.sha256(content).digest()
            if i not in manifest.quarantine:
                with Image.open(manifest.path(i)) as image:
                    assert tuple(known.sizes[i]) == image.size


def test_nothing_but_the_two_lists_is_written(tmp_path):
    root = small_set(tmp_path)
    write(root / "train" / "dog" / "broken.jpg", b"no image")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    check(root, 1)
    after = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    assert after.keys() - before.keys() == {root / MANIFEST_NAME, root / QUARANTINE_NAME}
    assert {path: after[path] for path in before} == before


def test_an_image_that_was_mended_leaves_the_quarantine_and_is_named_as_changed(tmp_path):
    root = small_set(tmp_path)
    broken = write(root / "train" / "dog" / "broken.jpg", b"no image")
    assert check(root, 1).changed == []
    assert (root / QUARANTINE_NAME).exists()
    write(broken, encoded(picture(33, 33)))
    result = check(root, 1)
    assert (result.changed, result.quarantine) == (["train/dog/broken.jpg"], [])
    assert not (root / QUARANTINE_NAME).exists()
    assert check(root, 1).changed == []


def test_a_set_that_is_not_the_one_of_its_manifest_is_refused(tmp_path):
    root = small_set(tmp_path)
    check(root, 1)
    (root / "train" / "cat" / "0.jpg").unlink()
    with pytest.raises(DataError, match=r"In .*/train/cat, '0\.jpg' is gone\."):
        check(root, 1)


def test_images_that_came_and_went_are_accepted_if_asked_for_and_listed(tmp_path):
    root = small_set(tmp_path)
    before = check(root, 1)
    (root / "train" / "cat" / "0.jpg").unlink()
    write(root / "val" / "dog" / "new.jpg", encoded(picture(50, 40, 9)))
    with pytest.raises(DataError, match=rf"`vggdist check {root} --accept-changes`"):
        check(root, 1)
    result = check(root, 1, accept_changes=True)
    assert (result.added, result.removed) == (["val/dog/new.jpg"], ["train/cat/0.jpg"])
    assert result.accepted == before.accepted
    text = render_check(result, None)
    assert "Added since the manifest was written, accepted: 1\n  val/dog/new.jpg\n" in text
    assert "Removed since the manifest was written, accepted: 1\n  train/cat/0.jpg\n" in text
    again = check(root, 1, accept_changes=True)
    assert (again.added, again.removed, again.changed) == ([], [], [])


def test_broken_images_are_moved_if_asked_for_and_nothing_is_overwritten(tmp_path):
    root, aside = small_set(tmp_path / "set"), tmp_path / "aside"
    for name in ("train/cat/bad.jpg", "val/dog/bad.jpg"):
        write(root / name, b"no image")
    write(aside / "val" / "dog" / "bad.jpg", b"precious")
    assert "--accept-changes`, or let --move-broken DIR" in render_check(check(root, 1), None)
    result = check(root, 1, move_broken=aside)
    assert (result.moved, result.not_moved) == (["train/cat/bad.jpg"], ["val/dog/bad.jpg"])
    assert (aside / "train" / "cat" / "bad.jpg").read_bytes() == b"no image"
    assert (aside / "val" / "dog" / "bad.jpg").read_bytes() == b"precious"
    assert [bad.file for bad in load_quarantine(root)] == ["val/dog/bad.jpg"]
    assert "Moved: 1\n  train/cat/bad.jpg\n" in render_check(result, None)
    dataset = open_dataset(root, write=True)  # the manifest is that of what is left
    assert [dataset.train.num_images, dataset.val.quarantine] == [4, {4}]
    assert check(root, 1, move_broken=tmp_path / "elsewhere").moved == ["val/dog/bad.jpg"]
    assert load_quarantine(root) == []


def test_turned_images_are_counted_and_noted_in_the_manifest(tmp_path):
    root, exif = small_set(tmp_path), Image.Exif()
    exif[0x0112] = 6
    write(root / "train" / "cat" / "turned.jpg", encoded(picture(50, 40, 9), exif=exif))
    result = check(root, 1)
    assert result.num_turned == 1
    assert "EXIF orientation, by which a viewer turns them: 1\n" in render_check(result, None)
    known = load_contents(root / MANIFEST_NAME, root)["train"].orientations
    assert sorted(known.tolist()) == [1, 1, 1, 1, 6]


def test_a_folder_that_cannot_be_written_is_checked_all_the_same(tmp_path, caplog):
    root = small_set(tmp_path)
    write(root / "val" / "dog" / "broken.jpg", b"no image")
    root.chmod(0o555)
    try:
        with caplog.at_level(logging.WARNING):
            result = check(root, 1)
    finally:
        root.chmod(0o755)
    assert list(reasons(result)) == ["val/dog/broken.jpg"]
    assert "so a training will not know of it" in caplog.text
    assert "Make one of these folders writable." in caplog.text
    assert not (root / MANIFEST_NAME).exists()


def test_images_with_a_suffix_that_training_does_not_read_are_refused_by_name(tmp_path):
    root = small_set(tmp_path / "set")
    for name in ("a.gif", "below/b.AVIF", "c.mpo", "d.ppm", "notes.txt", "film.mpg", "LICENSE"):
        write(root / "train" / "cat" / name, b"not looked at")
    write(root / "train" / "cat" / ".hidden.gif", b"")
    linked = write(tmp_path / "elsewhere" / "dog" / "e.gif", b"").with_name("1.jpg")
    linked.write_bytes(encoded(picture(70, 70)))
    for split in ("train", "val"):
        (root / split / "eel").symlink_to(linked.parent)
    result = check(root, 1)
    gif = "GIF is a format that DALI does not decode; convert it to JPEG or PNG"
    other = "training does not look at files that end in {}; convert it to JPEG or PNG"
    assert reasons(result) == {
        "train/cat/a.gif": gif,
        "train/cat/below/b.AVIF": gif.replace("GIF", "AVIF"),
        "train/cat/c.mpo": other.format(".mpo"),
        "train/cat/d.ppm": other.format(".ppm"),
        "train/eel/e.gif": gif,
        "val/eel/e.gif": gif,
    }
    assert result.left_out == {
        "with another suffix": {".mpg": 1, ".txt": 1, "no suffix": 1},
        "hidden": {".gif": 1},
    }
    assert not (root / QUARANTINE_NAME).exists()  # a training does not list them anyway


@pytest.mark.parametrize("name", ["images", "a/images", "train"])
def test_any_folder_with_images_can_be_checked(tmp_path, name):
    write(tmp_path / name / "bad.jpg", b"no image")
    write(tmp_path / name / "good.jpg", encoded(picture()))
    write(tmp_path / "no class" / "a.txt", b"")
    folder = tmp_path if "/" in name else (tmp_path / name)
    result = check(folder, 1)
    assert result.accepted == 1
    assert list(reasons(result)) == [f"{name}/bad.jpg" if "/" in name else "bad.jpg"]
    assert not list(tmp_path.rglob("vggdist-*"))


def test_a_folder_without_images_is_refused_with_the_remedy(tmp_path):
    write(tmp_path / "text" / "a.txt", b"")
    with pytest.raises(DataError, match=r"holds no images: no file in it ends in \.jpg,"):
        check(tmp_path, 1)


def test_images_in_shards_are_examined_where_they_are(tmp_path):
    contents = [encoded(picture(30 + i, 40)) for i in range(3)]
    contents[1] = contents[1][: len(contents[1]) // 2]
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            for letter, content in zip("abc", contents, strict=True):
                write(tmp_path / "files" / split / name / f"{letter}.jpg", content)
    root = tmp_path / "packed"
    prepare(FolderSource(tmp_path / "files"), root, Packing("shards"))
    before = open_dataset(root).val
    result = check(root, 1)
    bad = ("train/cat/b.jpg", "train/dog/b.jpg", "val/cat/b.jpg", "val/dog/b.jpg")
    assert tuple(reasons(result)) == bad
    assert result.accepted == 8
    again = open_dataset(root, write=True).val
    assert again.quarantine == {1, 4}
    assert again.place(2) == before.place(2)


def test_a_large_group_of_copies_is_shown_by_its_ends(tmp_path):
    root = small_set(tmp_path)
    for i in range(6):
        content = encoded(picture(seed=99))
        write(root / ("train" if i < 5 else "val") / "cat" / f"copy{i}.jpg", content)
    report = render_check(check(root, 1), None)
    assert "    train/cat/copy0.jpg = (4 more) = val/cat/copy5.jpg\n" in report


def test_a_long_quarantine_is_cut_short_with_a_way_to_the_rest(tmp_path):
    for i in range(25):
        write(tmp_path / "set" / f"{i:02d}.jpg", b"no image" if i < 23 else b"")
    result = check(tmp_path, 1)
    report = render_check(result, tmp_path / "check.json")
    assert "  23: it is no image" in report
    assert "set/19.jpg" in report
    assert "set/20.jpg" not in report
    assert f"and 5 more; the whole list is in {tmp_path / 'check.json'}" in report
