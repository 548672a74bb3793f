"""Preparing data sets: both forms from both sources, killed and continued, resized, refused."""

import errno
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.prepare.miniature import BROKEN, TRAIN_COUNTS, Miniature, build_miniature, train_tar
from vggdist.data.dataset import open_dataset
from vggdist.data.manifest_file import MANIFEST_NAME, SPLITS, load_contents
from vggdist.data.read import read_encoded
from vggdist.errors import DataError
from vggdist.prepare.archives import ImageNetArchives
from vggdist.prepare.journal import JOURNAL_NAME, Journal
from vggdist.prepare.packing import Packing, Resize
from vggdist.prepare.preparation import Prepared, prepare, render_prepared
from vggdist.prepare.shards import ShardWriter
from vggdist.prepare.sources import FolderSource

SMALL = 0.02
"""MiB of a shard: the miniatures then have several."""

each_form = pytest.mark.parametrize("form", ["folders", "shards"])


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vggdist.prepare.preparation.IMAGES_PER_PART", 4)


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    return build_miniature(tmp_path_factory.mktemp("archives"))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, miniature: Miniature) -> Path:
    """The miniature's images as class folders, written by hand."""
    root = tmp_path_factory.mktemp("tree")
    for split, images in miniature.content.items():
        for name, content in images.items():
            path = root / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return root


@pytest.fixture
def archives(miniature: Miniature) -> ImageNetArchives:
    return ImageNetArchives(*miniature.paths)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def packing(form: str, **more: object) -> Packing:
    return Packing(form, **{"shard_megabytes": SMALL, "jobs": 2, **more})


def content(root: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones included, and the hash of what is in it.

    When the images were written does not count.
    """
    return {
        str(path.relative_to(root)): hashlib.sha256(_content(path)).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def _content(path: Path) -> bytes:
    if path.name != MANIFEST_NAME:
        return path.read_bytes()
    with np.load(path) as stored:
        parts = {name: array for name, array in stored.items() if not name.endswith("times")}
    for split in SPLITS:
        lengths, _, sha256 = parts[f"{split}_contents"]
        parts[f"{split}_contents"] = np.array([lengths, sha256])
    return repr([(name, array.shape, array.tobytes()) for name, array in parts.items()]).encode()


@each_form
@pytest.mark.parametrize("kind", ["imagenet", "folder"])
def test_every_image_is_where_the_manifest_says_with_its_label_and_bytes(
    miniature, archives, tree, out, form, kind
):
    source = archives if kind == "imagenet" else FolderSource(tree)
    prepared = prepare(source, out, packing(form))
    dataset = open_dataset(out, write=True)
    unprepared = open_dataset(tree)
    for manifest, before in ((dataset.train, unprepared.train), (dataset.val, unprepared.val)):
        assert manifest.digest == before.digest
        assert manifest.num_bytes is not None
        assert (manifest.shards is not None) == (form == "shards")
        expected = miniature.content[manifest.split]
        assert {manifest.name(i) for i in range(manifest.num_images)} == set(expected)
        for i in range(manifest.num_images):
            encoded = expected[manifest.name(i)]
            assert read_encoded(manifest.place(i)).tobytes() == encoded
            assert manifest.num_bytes[i] == len(encoded)
            class_name = manifest.name(i).partition("/")[0]
            assert sorted(TRAIN_COUNTS)[manifest.labels[i]] == class_name
        assert prepared.num_images[manifest.split] == len(expected)
        assert prepared.num_bytes[manifest.split] == sum(map(len, expected.values()))
    if form == "shards":
        assert len(dataset.train.shards.files) > 2
        assert prepared.num_shards["train"] == len(list((out / "train").glob("*.tar")))
        assert (out / "classes.txt").read_text().split() == sorted(TRAIN_COUNTS)
    assert not (out / JOURNAL_NAME).exists()


@each_form
def test_the_manifest_knows_size_and_hash_of_every_image(miniature, archives, out, form):
    prepared = prepare(archives, out, packing(form))
    contents = load_contents(out / MANIFEST_NAME, out)
    dataset = open_dataset(out)
    for manifest in (dataset.train, dataset.val):
        for i in range(manifest.num_images):
            encoded = miniature.content[manifest.split][manifest.name(i)]
            found = contents[manifest.split]
            assert found.sha256[i].tobytes() == hashlib.sha256(encoded).digest()
            size = (0, 0) if manifest.name(i) == BROKEN else Image.open(io.BytesIO(encoded)).size
            assert tuple(found.sizes[i]) == size
    assert prepared.num_unreadable == {"train": 1, "val": 0}


@each_form
def test_the_result_does_not_depend_on_the_number_of_threads(archives, tmp_path, form):
    for jobs in (1, 5):
        prepare(archives, tmp_path / str(jobs), packing(form, jobs=jobs))
    assert content(tmp_path / "1") == content(tmp_path / "5")


def test_shards_can_be_packed_anew_and_unpacked(tree, tmp_path):
    prepare(FolderSource(tree), tmp_path / "one", packing("shards"))
    prepare(FolderSource(tmp_path / "one"), tmp_path / "two", packing("shards", shard_megabytes=9))
    prepare(FolderSource(tmp_path / "two"), tmp_path / "three", packing("folders"))
    for split in ("train", "val"):
        assert content(tmp_path / "three" / split) == content(tree / split)


def test_names_with_accents_folders_and_bytes_that_are_no_utf8_are_kept(tree, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(tree, source)
    strange = os.fsdecode(b"below/a b \xc3\xbc \xff.Jpeg")
    path = source / "train" / "n00000003" / strange
    path.parent.mkdir()
    path.write_bytes((tree / "val/n00000021/ILSVRC2012_val_00000003.JPEG").read_bytes())
    for form in ("shards", "folders"):
        prepare(FolderSource(source), tmp_path / form, packing(form))
        prepared = open_dataset(tmp_path / form, write=True).train
        assert prepared.digest == open_dataset(source).train.digest
        number = dict(prepared.numbers([f"n00000003/{strange}"]))[f"n00000003/{strange}"]
        assert read_encoded(prepared.place(number)).tobytes() == path.read_bytes()


KILLED = """
import sys, time
from pathlib import Path
from vggdist.prepare import packing, preparation
from vggdist.prepare.archives import ImageNetArchives
from vggdist.prepare.preparation import prepare
from vggdist.prepare.sources import FolderSource

form, source, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
pack_image = preparation.pack_image
def slowly(*arguments):
    time.sleep(0.02)
    return pack_image(*arguments)
preparation.pack_image = slowly
preparation.IMAGES_PER_PART = 4
paths = [Path(path) for path in source.split(":")]
images = FolderSource(paths[0]) if len(paths) == 1 else ImageNetArchives(*paths)
prepare(images, out, packing.Packing(form, shard_megabytes=0.02, jobs=2))
"""


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", ["imagenet", "folder"])
@each_form
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_happened(
    miniature, tree, tmp_path, form, kind, seed
):
    source = ":".join(map(str, miniature.paths)) if kind == "imagenet" else str(tree)

    def start(out: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", KILLED, form, source, str(tmp_path / out)]
        return subprocess.Popen(command, stderr=subprocess.PIPE)

    moments = random.Random(f"{form}{kind}{seed}")
    kills = 0
    for _ in range(4):
        process = start("killed")
        journal = tmp_path / "killed" / JOURNAL_NAME
        while not journal.exists() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.25))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL and journal.exists()
    assert kills > 0
    for out in ("killed", "undisturbed"):
        process = start(out)
        assert process.wait() == 0, process.communicate()
    assert content(tmp_path / "killed") == content(tmp_path / "undisturbed")


@each_form
def test_after_every_single_part_the_run_can_end_and_go_on(
    archives, tmp_path, out, form, monkeypatch
):
    prepare(archives, tmp_path / "whole", packing(form))
    commit = Journal.commit
    moments = ["after", "before", "after", "after", "before", "after"]

    def interrupted(journal: Journal, *arguments: object) -> None:
        moment = moments.pop() if moments else "never"
        if moment == "before":
            raise KeyboardInterrupt
        commit(journal, *arguments)
        if moment == "after":
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "commit", interrupted)
    while moments:
        with pytest.raises(KeyboardInterrupt):
            prepare(archives, out, packing(form))
    prepare(archives, out, packing(form))
    assert content(out) == content(tmp_path / "whole")


@each_form
def test_a_run_that_is_killed_while_it_finishes_is_finished_by_the_next(tree, tmp_path, out, form):
    source = FolderSource(tree)
    prepare(source, tmp_path / "whole", packing(form))
    prepare_interrupted(shutil, "rmtree", source, out, packing(form))
    assert (out / JOURNAL_NAME).exists()
    assert prepare(source, out, packing(form)).was_finished
    assert content(out) == content(tmp_path / "whole")


def prepare_interrupted(place: object, name: str, *arguments: object) -> None:
    """A preparation that ends where it calls a function."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, raise_interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(*arguments)


def raise_interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@each_form
def test_a_finished_data_set_is_left_as_it_is(archives, out, form):
    first = prepare(archives, out, packing(form))
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = prepare(archives, out, packing(form, jobs=1))
    assert again == replace(first, was_finished=True)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == stamps
    assert "it was finished before and was left as it is" in render_prepared(again)


@pytest.mark.parametrize("finished", [True, False])
def test_another_request_for_the_same_folder_is_refused(archives, tree, out, finished):
    folders, shards = FolderSource(tree), packing("shards")
    if finished:
        prepare(folders, out, shards)
    else:
        prepare_interrupted(Journal, "commit", folders, out, shards)
    before = content(out)
    for source, changed, words in (
        (folders, packing("folders"), "form was shards, now it is folders"),
        (folders, packing("shards", resize=Resize(9)), "now it is shorter side at most"),
        (folders, packing("shards", shard_megabytes=3), "megabytes was 0.02, now it is 3"),
        (archives, shards, f"source.folder was {tree}, now it is None"),
    ):
        with pytest.raises(DataError) as refusal:
            prepare(source, out, changed)
        assert f"{out} was prepared from something else, or in another way: " in str(refusal.value)
        assert words in str(refusal.value)
        assert "Ask for the same again, choose another folder" in str(refusal.value)
    assert content(out) == before


def test_a_data_set_is_not_taken_for_that_of_images_that_were_replaced(tree, out):
    prepare(FolderSource(tree), out, packing("shards"))
    first, second = sorted((tree / "train").rglob("*.JPEG"))[:2]
    os.utime(first)
    assert prepare(FolderSource(tree), out, packing("shards")).was_finished
    first.write_bytes(second.read_bytes())
    with pytest.raises(DataError, match=r"something else.*: images have changed under their names"):
        prepare(FolderSource(tree), out, packing("shards"))


def test_a_folder_with_something_else_is_left_alone(tree, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(DataError, match=r"is not empty.*it has 'precious.txt'.*nothing in it was"):
        prepare(FolderSource(tree), tmp_path, packing("shards"))
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_two_processes_do_not_write_into_one_folder(tree, out):
    source = FolderSource(tree)
    request = {"source": source.identity(), **packing("shards").identity()}
    held = f"Another process is preparing {out}: process [0-9]+ on .*. Wait for it"
    with Journal(out, request), pytest.raises(DataError, match=held):
        prepare(source, out, packing("shards"))
    prepare(source, out, packing("shards"))


def test_a_damaged_record_is_named(tree, out):
    prepare_interrupted(Journal, "finish", FolderSource(tree), out, packing("shards"))
    record = out / JOURNAL_NAME / "part-000001.npz"
    record.write_bytes(record.read_bytes()[:100])
    with pytest.raises(DataError, match=f"The record {record} of an unfinished.*start again"):
        prepare(FolderSource(tree), out, packing("shards"))


@each_form
def test_a_full_disk_is_a_sentence_and_the_next_start_goes_on(
    tree, tmp_path, out, monkeypatch, form
):
    calls = []

    def full(*arguments: object) -> None:
        calls.append(1)
        if len(calls) > 16:  # the first part has 4 files, and one thread writes up to 9 ahead
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(*arguments)

    place, name = (ShardWriter, "add") if form == "shards" else (Path, "write_bytes")
    write = getattr(place, name)
    with monkeypatch.context() as patch:
        patch.setattr(place, name, full)
        with pytest.raises(DataError) as refusal:
            prepare(FolderSource(tree), out, packing(form, jobs=1))
    assert "stopped: No space left on device. What is finished stays there; once" in (
        str(refusal.value)
    )
    assert list((out / JOURNAL_NAME).glob("part-*"))
    with pytest.raises(DataError, match="holds a data set that is not finished yet"):
        open_dataset(out)
    prepare(FolderSource(tree), out, packing(form))
    prepare(FolderSource(tree), tmp_path / "whole", packing(form))
    assert content(out) == content(tmp_path / "whole")


def test_an_image_that_vanishes_is_named(tree, tmp_path, out):
    shutil.copytree(tree, tmp_path / "tree")
    source = FolderSource(tmp_path / "tree")
    (tmp_path / "tree" / "train" / BROKEN).unlink()
    with pytest.raises(DataError, match=f"No such file or directory: .*{BROKEN}"):
        prepare(source, out, packing("shards"))


def test_differences_are_warnings_or_with_strict_an_error_that_costs_no_work(
    miniature, archives, out, monkeypatch, caplog
):
    with pytest.raises(DataError) as refusal:
        prepare(archives, out, packing("shards"), strict=True)
    assert str(refusal.value).startswith("The source is not what it should be:\n  ")
    assert f"{miniature.train} holds 20 images; ILSVRC2012 has 1,281,167." in str(refusal.value)
    assert "leave out --strict to accept it as it is" in str(refusal.value)
    assert not (out / MANIFEST_NAME).exists()
    monkeypatch.setattr(ShardWriter, "add", raise_interrupt)
    for _ in range(2):  # also when it is finished
        caplog.clear()
        prepare(archives, out, packing("shards"))
        assert f"{miniature.val} holds 6 images; ILSVRC2012 has 50,000." in caplog.text
    with pytest.raises(DataError, match="not what it should be"):
        prepare(archives, out, packing("shards"), strict=True)


@each_form
def test_a_class_without_images_keeps_its_label(tmp_path, out, form, caplog):
    fewer = build_miniature(tmp_path / "archives")
    two = ("n00000150", "n00000021")
    images = fewer.content["train"].items()
    fewer.train.write_bytes(
        train_tar({name: content for name, content in images if name.startswith(two)})
    )
    prepare(ImageNetArchives(*fewer.paths), out, packing(form))
    assert "n00000003 (0 instead of 6), n00000008 (0 instead of 9)" in caplog.text
    train = open_dataset(out, write=True).train
    assert sorted(set(train.labels.tolist())) == [2, 3]
    assert len(train.classes) == 4


@pytest.fixture(scope="module")
def odd_tree(tmp_path_factory: pytest.TempPathFactory, make_image) -> Path:
    """Images large and small, in several modes, with metadata, of 16 bits, broken, cut."""
    root = tmp_path_factory.mktemp("odd")
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = np.arange(200 * 210, dtype=np.uint16).reshape(200, 210)
    for split in ("train", "val"):
        a, b = root / split / "a", root / split / "b"
        make_image(a / "wide.jpg", 300, 201)
        make_image(a / "high.JPEG", 130, 401)
        make_image(a / "small.jpg", 100, 99)
        make_image(a / "exact.jpg", 100, 500)
        make_image(a / "cmyk.jpg", 210, 200, mode="CMYK")
        make_image(a / "gray.jpg", 210, 200, mode="L")
        make_image(a / "alpha.png", 210, 200, mode="RGBA")
        make_image(a / "palette.png", 210, 200, mode="P")
        make_image(b / "turned.jpg", 300, 200, exif=exif, comment=b"hello")
        cut = make_image(b / "cut.jpg", 300, 200)
        cut.write_bytes(cut.read_bytes()[:-900])
        (b / "no.jpg").write_bytes(b"nothing")
        (b / "empty.jpg").write_bytes(b"")
        Image.fromarray(deep).save(b / "deep.png")
    return root


UNTOUCHED = {"small.jpg", "exact.jpg", "cut.jpg", "no.jpg", "empty.jpg", "deep.png"}
SHORTER = 100


@pytest.fixture(scope="module", params=["folders", "shards"])
def resized(request, odd_tree, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("resized") / request.param
    prepare(FolderSource(odd_tree), out, Packing(request.param, Resize(SHORTER)))
    return out


def test_images_are_resized_to_the_shorter_side_and_the_others_keep_their_bytes(resized, odd_tree):
    train = open_dataset(resized, write=True).train
    contents = load_contents(resized / MANIFEST_NAME, resized)
    assert train.num_images == 13
    for i in range(train.num_images):
        before = (odd_tree / "train" / train.name(i)).read_bytes()
        encoded = read_encoded(train.place(i)).tobytes()
        assert contents["train"].sha256[i].tobytes() == hashlib.sha256(encoded).digest()
        if Path(train.name(i)).name in UNTOUCHED:
            assert encoded == before
            continue
        source, image = Image.open(io.BytesIO(before)), Image.open(io.BytesIO(encoded))
        assert min(image.size) == SHORTER
        assert tuple(contents["train"].sizes[i]) == image.size
        for side, original in zip(image.size, source.size, strict=True):
            assert abs(side - original * SHORTER / min(source.size)) <= 0.5
        assert (image.format, image.mode) == ("JPEG", "RGB")
        # The pixels are those of the file as it lies, not inverted; and turned by who turns it.
        expected = source.convert("RGB").resize(image.size, Image.Resampling.LANCZOS)
        difference = np.asarray(image, dtype=float) - np.asarray(expected, dtype=float)
        assert np.abs(difference).mean() < 3
        assert dict(image.getexif()) == dict(source.getexif())
        assert "comment" not in image.info


def test_a_resized_png_is_a_jpg_in_a_shard_and_keeps_its_name_in_the_manifest(resized):
    train = open_dataset(resized).train
    assert "a/alpha.png" in [train.name(i) for i in range(train.num_images)]
    if train.shards is not None:
        index = (resized / "train" / "shard-000000.idx").read_text()
        extensions = [line.split()[0] for line in index.splitlines()[1:]]
        assert extensions.count("png") == 1  # the one of 16 bits
        assert extensions.count("jpg") == 12


def test_the_manifest_says_how_images_were_resized(resized, odd_tree, tmp_path):
    train = open_dataset(resized).train
    assert train.resized == "shorter side at most 100 pixels, Lanczos, JPEG quality 95 4:4:4"
    assert train.digest != open_dataset(odd_tree).train.digest
    assert train.digest == replace(open_dataset(odd_tree).train, resized=train.resized).digest
    prepare(FolderSource(resized), tmp_path / "copy", packing("folders"))
    assert open_dataset(tmp_path / "copy").train.resized == train.resized
    again = prepare(FolderSource(resized), tmp_path / "two", packing("shards", resize=Resize(50)))
    assert again.resized.startswith(f"{train.resized}; shorter side at most 50 pixels")


def vggdist(*arguments: object, **more: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vggdist.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **more)


def test_the_command_prepares_imagenet_and_warns_or_fails_with_3(miniature, tmp_path, out):
    options = zip(("--train", "--val", "--devkit"), miniature.paths, strict=True)
    command = ["prepare", "imagenet", *chain.from_iterable(options), "--out", out]
    strict = vggdist(*command, "--strict")
    assert strict.returncode == 3
    assert "error: The source is not what it should be:" in strict.stderr
    done = vggdist(*command, "--json", tmp_path / "counts.json")
    assert done.returncode == 0, done.stderr
    assert "20 of 30 images" not in done.stderr
    assert "ILSVRC2012_img_val.tar holds 6 images; ILSVRC2012 has 50,000." in done.stderr
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert counts["num_images"] == {"train": 20, "val": 6}
    assert counts["num_classes"] == 4
    assert counts == Prepared(**counts).to_dict()
    assert (out / "train" / BROKEN).read_bytes() == miniature.content["train"][BROKEN]


def test_the_command_packs_a_folder_and_shows_progress(tree, out):
    done = vggdist("prepare", "folder", tree, "--out", out, "--form", "shards")
    assert done.returncode == 0, done.stderr
    assert "26 of 26 images" in done.stderr
    assert "train: 20 images" in done.stdout
    assert open_dataset(out, write=True).train.shards is not None


def test_a_file_too_large_for_the_file_system_ends_the_command_without_traceback(tree, out):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    command = ["prepare", "folder", tree, "--out", out]
    stopped = vggdist(*command, preexec_fn=limit)
    assert stopped.returncode == 3
    assert "error: Preparing" in stopped.stderr
    assert "File too large. What is finished stays there" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert vggdist(*command).returncode == 0


def test_help_names_the_published_checksums():
    shown = vggdist("prepare", "imagenet", "--help").stdout
    assert "1d675b47d978889d74fa0da5fadfb00e" in shown
    assert "29b22e2961454d5413ddabcf34fc5622" in shown
    assert "example: vggdist prepare imagenet --train" in shown
