"""Images that were touched, replaced or only looked at again: which are told to have changed."""

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from vggdist.data import known_contents
from vggdist.data.dataset import open_dataset, open_split
from vggdist.data.manifest_file import MANIFEST_NAME, load_contents, save_manifest
from vggdist.data.survey import Survey, survey_dataset, survey_images
from vggdist.errors import DataError
from vggdist.prepare.check import check
from vggdist.prepare.packing import Packing
from vggdist.prepare.preparation import prepare
from vggdist.prepare.sources import FolderSource


@pytest.fixture
def root(tmp_path: Path, make_tree) -> Path:
    make_tree(tmp_path / "set" / "train", {"cat": 4, "dog": 3})
    make_tree(tmp_path / "set" / "val", {"cat": 2, "dog": 2})
    return tmp_path / "set"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of images that were hashed, as it goes on."""
    numbers: list[int] = []
    read = known_contents._read

    def noting(manifest, images):
        numbers.extend(images)
        return read(manifest, images)

    monkeypatch.setattr(known_contents, "_read", noting)
    return numbers


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets are not hashed for being small."""
    monkeypatch.setattr(known_contents, "HASHED_BYTES", 0)


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def noted(root: Path) -> Survey:
    survey = survey_dataset(root)
    survey.save()
    return survey


def same(before: Survey, after: Survey) -> list[bool | None]:
    return [
        one.contents.same_as(other.contents)
        for one, other in zip(before.splits, after.splits, strict=True)
    ]


def test_images_that_changed_places_are_told_and_nothing_else_is_hashed(root, hashed):
    before = noted(root)
    assert len(hashed) == 11
    swap(root / "val" / "cat" / "000.jpg", root / "val" / "dog" / "001.jpg")
    after = survey_dataset(root)
    assert after.changed == ("val/cat/000.jpg", "val/dog/001.jpg")
    assert same(before, after) == [True, False]
    assert sorted(hashed[11:]) == [0, 3]
    assert any("2 images have changed since" in remark for remark in after.remarks)


def test_the_same_length_and_time_of_change_cost_nothing(root, hashed):
    before = noted(root)
    again = survey_dataset(root)
    assert (same(before, again), again.changed, again.is_outdated) == ([True, True], (), False)
    assert len(hashed) == 11


def test_a_touched_but_equal_file_costs_one_hash_once(root, hashed):
    before = noted(root)
    os.utime(root / "train" / "cat" / "002.jpg")
    for num_hashed in (1, 1):  # the second time nothing is new
        after = noted(root)
        assert (same(before, after), after.changed) == ([True, True], ())
        assert len(hashed) == 11 + num_hashed


def test_a_copy_with_other_times_is_the_same(root, tmp_path):
    before = noted(root)
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)
    assert same(before, survey_dataset(tmp_path / "copy")) == [True, True]


def test_an_image_of_the_same_length_and_name_is_told_by_its_hash(root):
    before = noted(root)
    file = root / "val" / "cat" / "001.jpg"
    content = bytearray(file.read_bytes())
    content[-10] ^= 1
    file.write_bytes(content)
    assert same(before, survey_dataset(root)) == [True, False]


@pytest.mark.usefixtures("large")
def test_of_large_sets_lengths_and_times_decide(root, hashed):
    before = noted(root)
    assert before.splits[0].contents.sha256 == ""
    assert same(before, survey_dataset(root)) == [True, True]
    os.utime(root / "train" / "cat" / "002.jpg")
    touched = survey_dataset(root)
    assert (same(before, touched), touched.changed) == ([None, True], ("train/cat/002.jpg",))
    (root / "val" / "cat" / "001.jpg").write_bytes(b"of another length")
    assert same(before, survey_dataset(root)) == [None, False]
    assert hashed == []


@pytest.mark.usefixtures("large")
def test_what_check_has_hashed_stays_known_when_files_are_touched(root, hashed):
    before = noted(root)  # a run that began then
    check(root, 1)
    for file in root.rglob("*.jpg"):
        os.utime(file)
    after = noted(root)
    assert (same(before, after), after.changed) == ([True, True], ())
    assert len(hashed) == 11
    file = root / "train" / "dog" / "000.jpg"
    file.write_bytes(file.read_bytes() + b"\0")
    assert same(before, survey_dataset(root)) == [False, True]


def test_folders_and_the_shards_of_them_hold_the_same(root, tmp_path):
    before = noted(root)
    for form in ("shards", "folders"):
        prepare(FolderSource(root), tmp_path / form, Packing(form, shard_megabytes=0.01))
        assert same(before, noted(tmp_path / form)) == [True, True]


def test_touched_shards_are_hashed_once_and_replaced_ones_refused(root, tmp_path, hashed):
    packed = tmp_path / "packed"
    prepare(FolderSource(root), packed, Packing("shards"))
    before, shard = noted(packed), packed / "train" / "shard-000000.tar"
    hashed.clear()
    os.utime(shard)
    assert same(before, noted(packed)) == [True, True]
    assert hashed == list(range(7))
    assert same(before, noted(packed)) == [True, True]
    assert len(hashed) == 7
    content = bytearray(shard.read_bytes())
    content[before.splits[0].place(4).offset + 50] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError) as refusal:
        survey_dataset(packed)
    assert "'train/dog/000.jpg' is not the image that was packed." in str(refusal.value)
    assert "Undo the change, or prepare the shards again." in str(refusal.value)


def without_contents(root: Path) -> None:
    """The manifest as earlier versions wrote it."""
    dataset = open_dataset(root)
    splits = [replace(one, num_bytes=None) for one in (dataset.train, dataset.val)]
    save_manifest(replace(dataset, train=splits[0], val=splits[1]), [root / MANIFEST_NAME])


def with_hashes_only(root: Path) -> None:
    """The manifest as `vggdist check` wrote it in earlier versions."""
    check(root, 1)
    contents = load_contents(root / MANIFEST_NAME, root)
    assert contents is not None
    save_manifest(
        open_dataset(root),
        [root / MANIFEST_NAME],
        {split: replace(one, times=None, file_times=None) for split, one in contents.items()},
    )


@pytest.mark.parametrize("write", [without_contents, with_hashes_only])
def test_a_manifest_of_before_is_read_with_a_sentence_and_completed(
    root, write: Callable[[Path], None]
):
    now = noted(root)
    write(root)
    digest = open_dataset(root).train.digest
    survey = noted(root)
    assert any("by a version that did not note what is in" in remark for remark in survey.remarks)
    assert survey.changed == ()
    assert same(now, survey) == [True, True]
    assert open_dataset(root).train.digest == digest
    assert survey_dataset(root).remarks == ()


def test_what_an_earlier_check_had_hashed_is_compared(root):
    with_hashes_only(root)
    swap(root / "val" / "cat" / "000.jpg", root / "val" / "dog" / "001.jpg")
    assert survey_dataset(root).changed == ("val/cat/000.jpg", "val/dog/001.jpg")


def test_what_cannot_be_written_is_found_out_anew(root, caplog):
    noted(root)
    os.utime(root / "train" / "cat" / "000.jpg")
    root.chmod(0o555)
    try:
        with caplog.at_level(logging.WARNING):
            assert noted(root).changed == ()
    finally:
        root.chmod(0o755)
    assert "The updated manifest is not saved" in caplog.text


def test_images_that_nobody_listed_are_looked_at_without_a_manifest(root):
    shutil.rmtree(root / "train")
    images = open_split(root, "val")
    before = survey_images(images)
    assert before.splits[0].contents.sha256
    swap(root / "val" / "cat" / "000.jpg", root / "val" / "dog" / "001.jpg")
    assert same(before, survey_images(images)) == [False]
    (root / "val" / "cat" / "000.jpg").unlink()
    with pytest.raises(DataError, match=r"While the images in .* were listed, they changed: In"):
        survey_images(images)
    assert not (root / MANIFEST_NAME).exists()


def test_the_digest_does_not_depend_on_the_order_of_classes(root):
    train = survey_dataset(root).splits[0]
    turned = train.with_classes(("dog", "cat"))
    assert [turned.name(i) for i in (0, 6)] == ["dog/000.jpg", "cat/003.jpg"]
    assert turned.labels.tolist() == [0] * 3 + [1] * 4
    assert turned.digest != train.digest
    assert survey_images(turned).splits[0].contents == train.contents


def test_with_other_labels_shards_and_quarantine_keep_their_images(root, tmp_path):
    prepare(FolderSource(root), tmp_path / "packed", Packing("shards", shard_megabytes=0.01))
    train = replace(open_dataset(tmp_path / "packed").train, quarantine=frozenset({1, 6}))
    turned = train.with_classes(("dog", "cat"))
    assert {turned.name(i) for i in turned.quarantine} == {"cat/001.jpg", "dog/002.jpg"}
    for i in range(7):
        (number,) = (n for _, n in train.numbers([turned.name(i)]))
        assert turned.place(i) == train.place(number)


def test_classes_that_look_the_same_are_said_to_be(tmp_path, make_tree):
    for split in ("train", "val"):
        make_tree(tmp_path / split, {"caf\u00e9": 1, "cafe\u0301": 1})
    remarks = survey_dataset(tmp_path).remarks
    assert any("are equal after Unicode normalization" in remark for remark in remarks)


def test_a_class_that_was_renamed_to_what_looks_the_same_is_said_to_be(tmp_path, make_tree):
    for split in ("train", "val"):
        make_tree(tmp_path / split, {"caf\u00e9": 1, "dog": 1})
    noted(tmp_path)
    (tmp_path / "val" / "caf\u00e9").rename(tmp_path / "val" / "cafe\u0301")
    with pytest.raises(DataError) as refusal:
        survey_dataset(tmp_path)
    assert r"the class folder 'cafe\u0301' is new." in str(refusal.value)
    assert "are equal after Unicode normalization" in str(refusal.value)
    (tmp_path / MANIFEST_NAME).unlink()
    with pytest.raises(DataError, match=r"only .*/train has 'café'; only .*/val has 'cafe\\u0301'"):
        survey_dataset(tmp_path)
