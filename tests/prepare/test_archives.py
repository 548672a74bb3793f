"""ImageNet's archives: what comes out of them, and what is never let in."""

import gzip
import os
import re
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.prepare.miniature import (
    IDS,
    TRAIN_COUNTS,
    VAL_CLASSES,
    Miniature,
    build_miniature,
    devkit,
    jpeg,
    kit_of,
    tar,
    train_tar,
)
from vggdist.errors import DataError
from vggdist.prepare import archives
from vggdist.prepare.archives import ImageNetArchives
from vggdist.prepare.ilsvrc2012 import ARCHIVES
from vggdist.prepare.sources import SourceImage


@pytest.fixture
def miniature(tmp_path: Path) -> Miniature:
    return build_miniature(tmp_path / "archives")


def source(miniature: Miniature) -> ImageNetArchives:
    return ImageNetArchives(*miniature.paths)


def images(miniature: Miniature, skip: int = 0) -> list[SourceImage]:
    return list(source(miniature).images(skip))


def named(miniature: Miniature) -> list[tuple[str, str, bytes]]:
    classes = source(miniature).classes
    return [
        (image.split, f"{classes[image.label]}/{image.name}", image.content)
        for image in images(miniature)
    ]


def refusal(miniature: Miniature) -> str:
    with pytest.raises(DataError) as caught:
        images(miniature)
    return str(caught.value)


def test_every_image_comes_out_once_in_the_archives_order_with_its_class(miniature):
    found = named(miniature)
    train = [(name, content) for split, name, content in found if split == "train"]
    assert train == list(miniature.content["train"].items())
    val = {name: content for split, name, content in found if split == "val"}
    assert val == miniature.content["val"]
    assert len(found) == len(train) + len(val)
    assert [split for split, _, _ in found] == ["train"] * len(train) + ["val"] * len(val)


def test_labels_are_the_places_of_the_sorted_wordnet_ids_of_the_leaves(miniature):
    assert source(miniature).classes == tuple(sorted(TRAIN_COUNTS))
    assert source(miniature).num_images == sum(TRAIN_COUNTS.values()) + len(VAL_CLASSES)
    labels = {image.name: image.label for image in images(miniature) if image.split == "val"}
    for i, name in enumerate(VAL_CLASSES):
        assert labels[f"ILSVRC2012_val_{i + 1:08d}.JPEG"] == sorted(TRAIN_COUNTS).index(name)


def test_a_stream_that_skips_is_the_rest_of_the_whole_stream(miniature):
    whole = images(miniature)
    for skip in range(len(whole) + 2):
        assert images(miniature, skip) == whole[skip:]


def test_skipped_images_are_not_read(tmp_path):
    miniature = build_miniature(tmp_path)
    large = np.random.default_rng(0).bytes(300_000)
    miniature.train.write_bytes(
        train_tar({f"n00000003/n00000003_{i}.JPEG": large for i in range(40)})
    )

    def bytes_read() -> int:
        fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(fields["rchar"])

    opened = source(miniature)
    before = bytes_read()
    assert len(list(opened.images(40))) == len(VAL_CLASSES)
    assert bytes_read() - before < 40 * 300_000 / 10


def test_archives_of_gnu_tar_with_folders_and_fractions_of_seconds_are_read(tmp_path):
    miniature = build_miniature(tmp_path)
    folder = tmp_path / "unpacked"
    for name, content in miniature.content["train"].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    for class_folder in list(folder.iterdir()):
        target = tmp_path / "tars" / f"{class_folder.name}.tar"
        target.parent.mkdir(exist_ok=True)
        subprocess.run(
            ["tar", "--format=posix", "-C", class_folder, "-cf", target, "."], check=True
        )
    with tarfile.open(miniature.train, "w") as outer:
        outer.add(tmp_path / "tars", arcname=".")  # with pax headers, and ./ before names
    found = [(name, content) for split, name, content in named(miniature) if split == "train"]
    assert dict(found) == miniature.content["train"]
    assert len(found) == len(miniature.content["train"])


def header(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> bytes:
    """One tar header; TarInfo would not write some of these."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info.tobuf(tarfile.GNU_FORMAT)


GOOD = "n00000003_1.JPEG"
END = bytes(10240)


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (header(GOOD, tarfile.SYMTYPE, link="/etc/passwd"), "a link"),
        (header(GOOD, tarfile.LNKTYPE, link="n00000003_2.JPEG"), "a link"),
        (header(GOOD, tarfile.CHRTYPE), "which is no regular file"),
        (header(GOOD, tarfile.BLKTYPE), "which is no regular file"),
        (header(GOOD, tarfile.FIFOTYPE), "which is no regular file"),
        (header(GOOD, tarfile.CONTTYPE), "which is no regular file"),
        (header(GOOD, tarfile.GNUTYPE_SPARSE), "which is no regular file"),
        (header("../" + GOOD), "which is not called like n00000003_1.JPEG"),
        (header("/tmp/" + GOOD), "which is not called like n00000003_1.JPEG"),
        (header("n00000008_1.JPEG"), "which is not called like n00000003_1.JPEG"),
        (header("n00000003_1.jpeg"), "which is not called like n00000003_1.JPEG"),
        (header("n00000003_1.JPEG\n"), "which is not called like n00000003_1.JPEG"),
        (header("readme.txt"), "which is not called like n00000003_1.JPEG"),
        (header("n00000003_0.JPEG"), "for the second time"),
        (header(GOOD, size=64 * 2**20 + 1), "which has 67,108,865 bytes (at most 67,108,864"),
        (header(GOOD, size=-512), "which has -512 bytes"),
    ],
)
def test_a_class_tar_with_anything_but_its_own_images_is_refused_by_name(miniature, member, reason):
    content = b"x" * 512
    before = header("n00000003_0.JPEG", size=512) + content
    miniature.train.write_bytes(tar([("n00000003.tar", before + member + END)]))
    stream = source(miniature).images()
    assert next(stream).content == content
    with pytest.raises(DataError) as caught:
        next(stream)
    message = str(caught.value)
    assert message.startswith(f"n00000003.tar in {miniature.train} holds '")
    assert reason in message
    assert "only regular files with ImageNet's own names are taken" in message
    assert "Use the archive as image-net.org publishes it." in message


@pytest.mark.parametrize(
    ("archive", "name", "reason"),
    [
        ("train", "n00000003_1.JPEG", "which is not called like n01440764.tar"),
        ("train", "a/n00000003.tar", "which is not called like n01440764.tar"),
        ("train", "n00000004.tar", "a class that"),
        ("val", "ILSVRC2012_test_00000001.JPEG", "not called like ILSVRC2012_val_00000001.JPEG"),
        ("val", "ILSVRC2012_val_00000007.JPEG", "has 6 lines, one for each image from 1"),
        ("val", "ILSVRC2012_val_00000000.JPEG", "has 6 lines, one for each image from 1"),
    ],
)
def test_an_archive_with_other_names_is_refused(miniature, archive, name, reason):
    path = getattr(miniature, archive)
    path.write_bytes(tar([(name, b"")]))
    message = refusal(miniature)
    assert str(path) in message
    assert reason in message


def test_an_extended_header_of_any_size_is_not_read_into_memory(miniature):
    huge = header("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=2**40)
    miniature.val.write_bytes(huge + b"n" * 4096 + END)
    assert "damaged at byte 512 (a header of 1099511627776 bytes" in refusal(miniature)


def test_sparse_files_in_pax_form_are_refused(miniature):
    info = tarfile.TarInfo("ILSVRC2012_val_00000001.JPEG")
    info.size = 512
    info.pax_headers = {"GNU.sparse.map": "0,10", "GNU.sparse.size": "10"}
    miniature.val.write_bytes(tar([(info, bytes(512))], format=tarfile.PAX_FORMAT))
    assert "which is no regular file" in refusal(miniature)


@pytest.mark.parametrize("archive", ["train", "val"])
def test_a_cut_archive_gives_what_is_whole_and_then_says_that_it_is_incomplete(miniature, archive):
    whole = images(miniature)
    path = getattr(miniature, archive)
    content = path.read_bytes()
    with tarfile.open(path) as outer:
        last = outer.getmembers()[-1]
    end_of_data = last.offset_data + -(-last.size // 512) * 512
    cuts = np.random.default_rng(1).integers(0, end_of_data, 40).tolist()
    for cut in [*cuts, *range(0, end_of_data, 4096), end_of_data]:
        path.write_bytes(content[:cut])
        found: list[SourceImage] = []
        with pytest.raises(DataError) as caught:
            found.extend(source(miniature).images())
        assert found == whole[: len(found)]
        message = str(caught.value)
        assert f"{path} is incomplete or damaged at byte" in message
        assert f"its MD5 with {ARCHIVES[archive].md5}, and download it again" in message
        assert "what was prepared so far stays" in message


def test_a_damaged_header_is_not_taken_for_the_end(miniature):
    content = bytearray(miniature.val.read_bytes())
    with tarfile.open(miniature.val) as outer:
        third = outer.getmembers()[2]
    content[third.offset + 3] ^= 1
    miniature.val.write_bytes(content)
    assert f"damaged at byte {third.offset:,}" in refusal(miniature)


def test_something_else_than_a_tar_is_refused(miniature):
    packed = gzip.compress(miniature.val.read_bytes())
    for content in (b"", b"<html>not found</html>" * 100, packed):
        miniature.val.write_bytes(content)
        assert "is incomplete or damaged at byte" in refusal(miniature)


def test_an_archive_without_images_is_refused(miniature):
    miniature.train.write_bytes(tar([]))
    message = refusal(miniature)
    assert "holds no image; --train is to be the archive ILSVRC2012" in message


def test_more_images_than_any_imagenet_has_are_refused(miniature, monkeypatch):
    monkeypatch.setattr(archives, "_MAX_IMAGES", 7)
    assert "more than 7 images; ImageNet has 1,331,167" in refusal(miniature)


def test_a_missing_archive_is_named(miniature):
    miniature.val.unlink()
    assert f"--val {miniature.val} is no file; it is to be the arch" in refusal(miniature)


@pytest.mark.parametrize(
    ("kit", "sentence"),
    [
        (devkit(val_ids=[4, 2, 99]), "line 3 of ILSVRC2012_validation_ground_truth.txt is '99'"),
        (devkit(val_ids=[4, 5]), "is '5', which is no ILSVRC2012_ID of a class"),  # an inner node
        (devkit(val_ids=["n03"]), "is 'n03', which is no ILSVRC2012_ID"),
        (devkit({"n00000003": 1, "n00000008": 1}), "holds no classes, or one of them twice"),
        (devkit({}), "holds no classes, or one of them twice"),
        (devkit({"../../x": 1}), "a class in its meta.mat is called '../../x'"),
        (kit_of(b"no matlab", b"1\n"), "its meta.mat cannot be understood"),
        (kit_of(bytes(16 * 2**20 + 1), b"1\n"), "meta.mat is no regular file of at most 16 MiB"),
        (devkit()[:-100], "it cannot be unpacked"),
        (b"not gzip", "it cannot be unpacked"),
        (gzip.compress(b"no tar at all" * 100, mtime=0), "what it unpacks to is no tar file"),
        (gzip.compress(tar([("x/data/readme", b"")]), mtime=0), "it does not hold data/meta.mat"),
        (gzip.compress(bytes(65 * 2**20), mtime=0), "unpacked it has more than 64 MiB"),
    ],
)
def test_a_devkit_that_cannot_be_used_says_why(miniature, kit, sentence):
    miniature.devkit.write_bytes(kit)
    message = refusal(miniature)
    assert message.startswith(f"The devkit {miniature.devkit} cannot be used: ")
    assert sentence in message
    assert message.endswith("Use ILSVRC2012_devkit_t12.tar.gz as image-net.org publishes it.")


def test_linked_files_in_the_devkit_are_not_followed(miniature):
    link = tarfile.TarInfo("kit/data/meta.mat")
    link.type, link.linkname = tarfile.SYMTYPE, os.fspath(miniature.val)
    miniature.devkit.write_bytes(gzip.compress(tar([(link, b"")])))
    assert "meta.mat is no regular file" in refusal(miniature)


def test_every_difference_from_ilsvrc2012_and_from_the_devkit_is_a_sentence(miniature):
    surprises = source(miniature).surprises
    val = np.bincount([sorted(IDS).index(name) for name in VAL_CLASSES])
    train = np.array([TRAIN_COUNTS[name] for name in sorted(TRAIN_COUNTS)])
    assert surprises({"train": train, "val": val}) == [
        f"{miniature.train} holds 20 images; ILSVRC2012 has 1,281,167.",
        f"{miniature.val} holds 6 images; ILSVRC2012 has 50,000.",
        f"{miniature.devkit} knows 4 classes; ILSVRC2012 has 1,000.",
    ]
    fewer = surprises({"train": train - [0, 1, 0, 0], "val": val - [0, 0, 1, 0]})
    assert fewer[3:] == [
        f"{miniature.train} holds other numbers of images than the devkit says: "
        "n00000008 (8 instead of 9).",
        f"{miniature.val} holds other numbers of images than the devkit says: "
        "n00000021 (0 instead of 1).",
    ]


def test_a_whole_ilsvrc2012_has_no_surprises(miniature):
    names = [f"n{i:08d}" for i in range(1000)]
    counts = {name: 1281 + (i < 167) for i, name in enumerate(names)}
    ids = {name: 1000 - i for i, name in enumerate(names)}
    miniature.devkit.write_bytes(devkit(ids, [i % 1000 + 1 for i in range(50_000)], counts))
    assert source(miniature).num_images == 1_331_167
    train, val = np.array(list(counts.values())), np.full(1000, 50)
    assert source(miniature).surprises({"train": train, "val": val}) == []


def test_the_identity_of_archives_changes_with_them(miniature):
    before = source(miniature).identity()
    assert source(miniature).identity() == before
    miniature.val.write_bytes(
        tar([("ILSVRC2012_val_00000001.JPEG", jpeg(np.random.default_rng(0), 9, 9))])
    )
    assert source(miniature).identity() != before


@pytest.mark.parametrize(
    ("order", "options"),
    [
        ("val train devkit", ["train", "val"]),
        ("devkit val train", ["train", "devkit"]),
        ("val devkit train", ["train", "val", "devkit"]),
    ],
)
def test_archives_that_were_swapped_are_told_with_the_right_options(miniature, order, options):
    paths = dict(zip(("train", "val", "devkit"), miniature.paths, strict=True))
    swapped = replace(miniature, **dict(zip(paths, map(paths.get, order.split()), strict=True)))
    problem, _, advice = refusal(swapped).partition("; give ")
    assert re.findall(r"--(\w+) \S+ is ILSVRC2012_", problem) == options
    words = advice.rstrip(".").split()
    assert words[::2] == ["--train", "--val", "--devkit"]
    assert len(list(ImageNetArchives(*map(Path, words[1::2])).images())) > 0


def test_one_archive_for_two_options_is_told(miniature):
    assert refusal(replace(miniature, train=miniature.val)) == (
        f"--train {miniature.val} is ILSVRC2012_img_val.tar; give --train ILSVRC2012_img_train.tar "
        f"--val {miniature.val} --devkit {miniature.devkit}."
    )
