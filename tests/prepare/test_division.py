"""`vggdist prepare folder SRC --validation 20%`: each class is divided, and copies are not."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Call
from tests.prepare.odd_images import encoded, picture, write
from vggdist.data.dataset import open_dataset
from vggdist.data.manifest import Manifest
from vggdist.data.read import read_encoded
from vggdist.errors import DataError
from vggdist.prepare.division import DividedFolder, choose_validation
from vggdist.prepare.packing import Packing
from vggdist.prepare.preparation import prepare

COUNTS = {"cat": 10, "dog": 7, "eel": 2}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Class folders; three of the cats are the same picture."""
    for seed, (name, count) in enumerate(COUNTS.items()):
        for number in range(count):
            content = encoded(picture(40, 30, 100 * seed + number))
            write(tmp_path / "photos" / name / f"{number}.jpg", content)
    for number in (4, 8):
        shutil.copy(tmp_path / "photos/cat/0.jpg", tmp_path / f"photos/cat/{number}.jpg")
    return tmp_path / "photos"


def contents(images: Manifest) -> dict[str, bytes]:
    return {
        images.name(i): read_encoded(images.place(i)).tobytes() for i in range(images.num_images)
    }


@pytest.mark.parametrize("form", ["folders", "shards"])
def test_every_image_is_on_one_side_a_share_of_each_class_and_copies_together(
    photos: Path, tmp_path: Path, form: str
) -> None:
    prepare(DividedFolder(photos, 0.3, seed=1), tmp_path / "out", Packing(form))
    dataset = open_dataset(tmp_path / "out", write=True)
    train, val = contents(dataset.train), contents(dataset.val)
    assert dataset.train.classes == tuple(COUNTS)
    assert train | val == {
        f"{file.parent.name}/{file.name}": file.read_bytes() for file in photos.glob("*/*")
    }
    assert len(train) + len(val) == sum(COUNTS.values())
    assert not set(train.values()) & set(val.values())
    assert np.bincount(dataset.val.labels).tolist() == [3, 2, 1]


def test_a_division_follows_from_the_seed_and_lasts_when_images_are_added() -> None:
    hashes = [bytes([number]) * 32 for number in range(200)]
    labels = np.repeat([0, 1], 100)
    first = choose_validation(labels, hashes, 0.2, seed=0)
    assert first.sum() == 40
    assert (choose_validation(labels, hashes, 0.2, seed=0) == first).all()
    assert (choose_validation(labels, hashes, 0.2, seed=1) != first).any()
    fewer = np.delete(np.arange(200), [3, 50, 150])
    kept = choose_validation(labels[fewer], [hashes[i] for i in fewer], 0.2, seed=0)
    assert (kept != first[fewer]).sum() <= 3


def test_copies_in_two_classes_are_on_the_same_side() -> None:
    hashes = [bytes([number % 6]) * 32 for number in range(12)]
    chosen = choose_validation(np.repeat([0, 1], 6), hashes, 0.34, seed=3)
    assert (chosen[:6] == chosen[6:]).all()
    assert chosen.sum() == 4


def test_what_cannot_be_divided_is_refused_in_a_sentence(photos: Path) -> None:
    write(photos / "fox" / "0.jpg", encoded(picture(40, 30, 900)))
    for number in range(3):
        write(photos / "gnu" / f"{number}.jpg", encoded(picture(40, 30, 901)))
    with pytest.raises(DataError) as caught:
        DividedFolder(photos, 0.2, seed=0)
    assert "a single image, or copies of one" in str(caught.value)
    assert "'fox' (1 images), 'gnu' (3 images). Add images to them, or remove" in str(caught.value)
    (photos / "train").mkdir()
    with pytest.raises(DataError, match="is divided already, since it has train or val/; leave"):
        DividedFolder(photos, 0.2, seed=0)


def test_the_command_says_how_many_there_are_and_the_folder_can_be_trained_on(
    photos: Path, tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["prepare", "folder", photos, "--out", tmp_path / "out", "--validation"]
    code, printed, _ = call(*words, "20%")
    assert code == 0
    assert f"{photos}: 15 training and 4 validation images (21.1%), this share of" in printed
    assert "copies of other images, which stay on their side: 2\n" in printed
    assert "it was finished before" in call(*words, "0.2")[1]
    with pytest.raises(SystemExit):
        call(*words, "120%")
    assert "120% is not more than 0 and less than 100%" in capsys.readouterr().err
