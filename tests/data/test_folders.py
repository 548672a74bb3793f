"""Which files are images of which class, whatever else lies there."""

import os
from collections import Counter
from pathlib import Path

import pytest

from vggdist.data.folders import (
    Census,
    label_order,
    list_classes,
    list_folder,
    list_images,
    render_skipped,
)
from vggdist.errors import DataError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not looked at")


@pytest.fixture
def train(tmp_path: Path) -> Path:
    folder = tmp_path / "train"
    touch(folder / "cat" / "1.jpg", folder / "cat" / "2.jpg", folder / "dog" / "1.jpg")
    return folder


def test_links_to_folders_and_files_are_followed(train, tmp_path):
    touch(tmp_path / "more" / "9.jpg", tmp_path / "more" / "below" / "8.png", tmp_path / "one.jpg")
    (train / "cat" / "linked").symlink_to(tmp_path / "more")
    (train / "cat" / "7.jpg").symlink_to(tmp_path / "one.jpg")
    (train / "eel").symlink_to(tmp_path / "more")
    assert dict(list_classes(train)) == {
        "cat": ["1.jpg", "2.jpg", "7.jpg", "linked/9.jpg", "linked/below/8.png"],
        "dog": ["1.jpg"],
        "eel": ["9.jpg", "below/8.png"],
    }


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("cat/again", "."),
        ("cat/below/up", "../.."),
        ("all", "."),
        ("cat/root", "/"),
        ("cat/self", "self"),
        ("cat/x.jpg", "x.jpg"),
    ],
)
def test_a_link_that_leads_back_is_an_error_that_names_it(train, link, target):
    (train / "cat" / "below").mkdir()
    touch(train / "cat" / "below" / "3.jpg")
    (train / link).symlink_to(target)
    with pytest.raises(DataError) as refusal:
        list(list_classes(train))
    assert f"The link '{train / link}' leads back to " in str(refusal.value)
    (train / link).unlink()  # as the message says
    assert len(list(list_classes(train))) == 2


def test_two_links_that_lead_to_each_other_are_a_loop(train, tmp_path):
    touch(tmp_path / "a" / "1.jpg", tmp_path / "b" / "2.jpg")
    (tmp_path / "a" / "to b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "to a").symlink_to(tmp_path / "a")
    (train / "cat" / "start").symlink_to(tmp_path / "a")
    with pytest.raises(DataError, match="start/to b/to a' leads back to"):
        list(list_classes(train))


def test_two_links_to_the_same_folder_are_no_loop(train, tmp_path):
    touch(tmp_path / "more" / "9.jpg")
    (train / "cat" / "one").symlink_to(tmp_path / "more")
    (train / "cat" / "two").symlink_to(tmp_path / "more")
    assert dict(list_classes(train))["cat"][2:] == ["one/9.jpg", "two/9.jpg"]


def test_what_systems_and_programs_leave_is_no_class_and_no_image(train):
    before = dict(list_classes(train))
    for name in ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"):
        touch(train / name / "x.jpg", train / "cat" / name / "y.jpg")
    for name in (".ipynb_checkpoints", ".thumbnails", ".AppleDouble"):
        touch(train / name / "x.jpg", train / "cat" / name / "y.jpg")
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "._1.jpg", "._2.jpg"):
        touch(train / name, train / "cat" / name)
    touch(train / "cat" / "@eaDir" / "1.jpg" / "SYNOPHOTO_THUMB_M.jpg")
    census = Census()
    assert dict(list_classes(train, census)) == before
    assert {reason for reason, _ in census.skipped} == {"left by systems and programs"}
    kinds = {kind: count for (_, kind), count in census.skipped.items()}
    assert kinds["._*"] == 4
    assert kinds["@eaDir"] == kinds["Thumbs.db"] == kinds[".ipynb_checkpoints"] == 2


def test_everything_that_is_not_read_is_counted_by_reason_and_suffix(train):
    touch(train / "loose.JPG", train / "other.jpg", train / "notes.txt", train / "LICENSE")
    touch(train / "cat" / "a.gif", train / "cat" / ".b.jpg", train / "dog" / "below" / "a.xml")
    (train / "cat" / "moved").symlink_to("/nowhere/photos")
    census = Census()
    list(list_classes(train, census))
    assert census.skipped == Counter(
        {
            ("beside the class folders", ".jpg"): 2,
            ("with another suffix", ".txt"): 1,
            ("with another suffix", "no suffix"): 1,
            ("with another suffix", ".gif"): 1,
            ("with another suffix", ".xml"): 1,
            ("hidden", ".jpg"): 1,
            ("links that lead nowhere", "no suffix"): 1,
        }
    )
    line = render_skipped(census.skipped)
    assert line.startswith("with another suffix: ")
    assert "; beside the class folders: .jpg 2; " in line


def test_an_image_whose_link_is_dead_stays_in_the_list_as_one_that_cannot_be_read(train):
    (train / "cat" / "3.jpg").symlink_to("/nowhere/3.jpg")
    listing = list_folder(train / "cat", with_states=True)
    assert listing.images == ["1.jpg", "2.jpg", "3.jpg"]
    assert listing.states is not None
    assert listing.states[2].tolist() == [-1, -1]


def test_lengths_and_times_are_those_of_the_files_behind_links(train, tmp_path):
    touch(tmp_path / "b.jpg")
    os.utime(tmp_path / "b.jpg", ns=(5, 7))
    (train / "cat" / "0.jpg").symlink_to(tmp_path / "b.jpg")
    census = Census()
    list(list_classes(train, census))
    assert census.states["cat"].shape == (3, 2)
    assert census.states["cat"][0].tolist() == [len(b"not looked at"), 7]
    assert census.states_of(["dog", "cat"]).shape == (4, 2)


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["10", "2", "1", "0", "11"], ["0", "1", "2", "10", "11"]),
        (["010", "002"], ["002", "010"]),
        (["1", "-1", "01"], ["-1", "01", "1"]),
        (["10", "2", "x"], ["10", "2", "x"]),
        (["1.5", "10"], ["1.5", "10"]),
        (["٣", "١٠"], ["١٠", "٣"]),
    ],
)
def test_classes_are_in_the_order_of_their_numbers_if_all_have_whole_numbers(names, order):
    assert label_order(names) == order


def test_numbered_class_folders_get_their_numbers_as_labels(tmp_path):
    touch(*(tmp_path / str(number) / "1.jpg" for number in range(12)))
    assert [name for name, _ in list_classes(tmp_path)] == list(map(str, range(12)))


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "\x1b[31mred", "a\x7f", "a\u2028b"])
def test_a_class_name_with_control_characters_is_refused_at_the_first_look(train, name):
    touch(train / name / "1.jpg")
    with pytest.raises(DataError) as refusal:
        list(list_classes(train))
    assert "control characters" in str(refusal.value)
    assert str(refusal.value).isprintable()
    assert ascii(name) in str(refusal.value)
    (train / name).rename(train / "renamed")  # as the message says
    assert [found for found, _ in list_classes(train)] == ["cat", "dog", "renamed"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    with pytest.raises(DataError, match=f"The folder {tmp_path}/none cannot be read: No such file"):
        list_images(tmp_path / "none")
