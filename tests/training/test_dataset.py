"""What a training says of its images before it writes anything."""

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import train_in_ranks
from vggdist.artifacts import run_folder
from vggdist.artifacts.checkpoint import Checkpoint
from vggdist.config_file import load_config
from vggdist.data.manifest_file import MANIFEST_NAME
from vggdist.distributed import process as world
from vggdist.errors import ConfigError, DataError, VggdistError
from vggdist.prepare.sources import FolderSource
from vggdist.pretrain import pretrain
from vggdist.training.dataset import TrainingData, open_training_data
from vggdist.training.signals import StopSignal


@pytest.fixture
def root(tiny_dataset: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    shutil.copytree(tiny_dataset, folder, ignore=shutil.ignore_patterns("vggdist-*"))
    return folder


@pytest.fixture
def overrides(tiny_overrides: list[str], root: Path) -> list[str]:
    return [*tiny_overrides, f"data.root={root}"]


def opened(overrides: list[str], state: dict[str, Any] | None = None) -> TrainingData:
    """As a training opens it that continues from a checkpoint with these digests."""
    config = load_config(None, overrides)
    saved = None if state is None else Checkpoint(5, {}, {}, {"data": state})
    with world.joined("cpu") as process:
        return open_training_data(
            config, Path(config.run_folder), process, saved, StopSignal(), ExitStack()
        )


def refusal(overrides: list[str], state: dict[str, Any] | None = None) -> str:
    with pytest.raises(VggdistError) as caught:
        opened(overrides, state)
    return str(caught.value)


def replaced(file: Path) -> str:
    """Puts another image under a name; what a message calls it."""
    shutil.copy(file.parent.parent / "yellow" / "1.jpg", file)
    return f"'{file.parent.parent.name}/{file.parent.name}/{file.name}'"


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_run_is_not_continued_on_images_that_were_replaced(overrides, root, split):
    before = opened(overrides).digests
    name = replaced(root / split / "red" / "0.jpg")
    for _ in range(2):  # a refused start notes nothing, so that the next one names them too
        message = refusal(overrides, before)
        assert (
            f"were replaced under their names since this run was trained on them, such as {name}"
            in (message)
        )
        assert "choose another run.folder" in message


def test_a_run_goes_on_with_replaced_images_once_that_is_asked_for(overrides, root, caplog):
    before = opened(overrides).digests
    replaced(root / "train" / "red" / "0.jpg")
    assert "set data.accept_changed=true" in refusal(overrides, before)
    after = opened([*overrides, "data.accept_changed=true"], before).digests
    assert "data.accept_changed lets the training go on" in caplog.text
    opened(overrides, after)


def test_images_that_were_put_back_are_those_of_before(overrides, root, tmp_path):
    before = opened(overrides).digests
    file = root / "val" / "red" / "0.jpg"
    shutil.copy(file, tmp_path / "kept.jpg")
    replaced(file)
    refusal(overrides, before)
    shutil.copyfile(tmp_path / "kept.jpg", file)
    assert opened(overrides, before).digests == {
        name: digest if not name.endswith("times") else opened(overrides).digests[name]
        for name, digest in before.items()
    }


def test_touched_images_and_copies_of_the_folder_go_on(overrides, root, tmp_path):
    before = opened(overrides).digests
    for file in root.rglob("*.jpg"):
        os.utime(file)
    opened(overrides, before)
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)
    opened([*overrides, f"data.root={tmp_path / 'copy'}"], before)


def test_a_checkpoint_of_before_is_continued_with_a_sentence(overrides, caplog):
    now = opened(overrides).digests
    opened(overrides, {split: now[split] for split in ("train", "val")})
    assert (
        "its checkpoint was written by a version that did not note what is in them" in caplog.text
    )
    caplog.clear()
    opened(overrides, now)
    assert caplog.text == ""


def one_class_too_high(root: Path) -> None:
    for split in ("train", "val"):
        (root / split).rename(root / "aside")
        (root / split).mkdir()
        (root / "aside").rename(root / split / "my photos")


def test_a_folder_too_many_is_said_to_be_one_and_the_advice_mends_it(overrides, root):
    one_class_too_high(root)
    for wrong in ([], ["model.num_classes=1"]):
        message = refusal([*overrides, *wrong])
        assert message.startswith(f"{root}/train has a single class folder, 'my photos', and a")
        assert "folders of the class folders: 'green', 'red', 'yellow'." in message
    with pytest.raises(DataError, match="has a single class folder, 'my photos'"):
        FolderSource(root)
    command = message.rpartition("lie too deep: ")[2].removesuffix(".")
    assert os.system(command) == 0
    assert os.system(command.replace("/train", "/val")) == 0
    assert opened(overrides).dataset.train.classes == ("green", "red", "yellow")


def test_a_single_class_without_folders_in_it_says_how_many_images_it_has(overrides, root):
    for split in ("train", "val"):
        for name in ("green", "yellow"):
            shutil.rmtree(root / split / name)
    message = refusal([*overrides, "model.num_classes=1"])
    assert "It holds 7 images; put those of each further class into a folder beside it." in message


def test_several_folders_too_many_are_told_where_the_number_of_classes_is_wrong(overrides, root):
    for split in ("train", "val"):
        for name in ("red", "green"):
            (root / split / f"{name}s").mkdir()
            (root / split / name).rename(root / split / f"{name}s" / name)
        shutil.rmtree(root / split / "yellow")
    message = refusal(overrides)
    assert (
        "set model.num_classes=2, or leave it out. All images lie in folders of the class folders: "
        "'green'" in message
    )
    remarks = opened([*overrides, "model.num_classes=null"]).remarks
    assert any(
        "All images lie in folders of the class folders: 'green'" in text for text in remarks
    )


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (one_class_too_high, DataError),
        (lambda root: (root / "val" / "red").rename(root / "val" / "rot"), DataError),
        ("model.num_classes=4", ConfigError),
        ("model.initialize_from=/nowhere/weights", ConfigError),
        ("optimizer.trained_layers=[fc8]", ConfigError),
    ],
)
def test_a_start_that_fails_leaves_neither_manifest_nor_run_folder(
    overrides, root, change: str | Callable[[Path], object], kind
):
    if isinstance(change, str):
        overrides = [*overrides, change]
    else:
        change(root)
    with pytest.raises(kind):
        pretrain(load_config(None, overrides))
    assert not Path(load_config(None, overrides).run_folder).exists()
    assert not (root / MANIFEST_NAME).exists()


def test_a_start_that_fails_leaves_what_others_have_made(overrides, root, tmp_path):
    opened(overrides)
    before = (root / MANIFEST_NAME).stat().st_mtime_ns
    (tmp_path / "run" / "jobs").mkdir(parents=True)
    with pytest.raises(ConfigError):
        pretrain(load_config(None, [*overrides, "model.initialize_from=/nowhere/weights"]))
    assert (tmp_path / "run" / "jobs").is_dir()
    assert (root / MANIFEST_NAME).stat().st_mtime_ns == before


@pytest.mark.parametrize("left", [[], ["a"]], ids=["empty", "with a note"])
def test_a_start_that_fails_removes_the_folders_above_that_it_has_made_and_that_are_empty(
    overrides, tmp_path, monkeypatch, left
):
    def choose(config, folder):
        for name in left:  # of somebody else
            (tmp_path / "there" / name / "note").touch()
        raise ConfigError("of the test")

    (tmp_path / "there").mkdir()
    monkeypatch.setattr(run_folder, "choose_checkpoint", choose)
    with pytest.raises(ConfigError, match="of the test"):
        pretrain(load_config(None, [*overrides, f"run.folder={tmp_path}/there/a/b/run"]))
    assert [path.name for path in (tmp_path / "there").iterdir()] == left
    assert not (tmp_path / "there" / "a" / "b").exists()


def test_a_start_that_fails_leaves_the_folder_of_a_training_that_is_beginning(
    overrides, root, tmp_path
):
    with run_folder.lock(tmp_path / "run"):
        with pytest.raises(ConfigError, match="is training in"):
            pretrain(load_config(None, overrides))
        assert (tmp_path / "run" / "lock").exists()


@pytest.mark.multi_process
@pytest.mark.slow
def test_a_training_says_what_it_reads_and_stops_at_replaced_images(
    overrides, root, tmp_path, capfd
):
    shutil.copy(root / "train" / "red" / "0.jpg", root / "train" / "loose.jpg")
    shutil.copytree(root / "train" / "red", root / "train" / "red" / "@eaDir")
    more = tmp_path / "more"
    (root / "train" / "yellow").rename(more)
    (root / "train" / "yellow").symlink_to(more)
    command = [*overrides, "checkpoint.every_steps=3", "schedule.num_steps=6"]
    assert train_in_ranks(2, command) == [0, 0]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "3 classes, 20 training and 7 validation images" in log
    assert log.count("not read in") == 1
    assert f"not read in {root / 'train'}: " in log
    assert "beside the class folders: .jpg 1" in log
    assert "left by systems and programs: @eaDir 1" in log
    assert "labels, in the order of the class folders: 0 'green', 1 'red', 2 'yellow'" in log
    assert (tmp_path / "run" / "classes.txt").read_text() == "green\nred\nyellow\n"
    replaced(root / "val" / "red" / "0.jpg")
    capfd.readouterr()
    assert train_in_ranks(2, [*command, "schedule.num_steps=9"]) == [DataError.exit_code] * 2
    printed = capfd.readouterr().err
    assert printed.count("were replaced under their names") == 1
    assert "Traceback" not in printed
    accepting = [*command, "schedule.num_steps=9", "data.accept_changed=true"]
    assert train_in_ranks(2, accepting) == [0, 0]
