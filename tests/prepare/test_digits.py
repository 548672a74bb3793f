"""scikit-learn's digits as a data set."""

import errno
import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggdist.data.dataset import open_dataset
from vggdist.errors import DataError
from vggdist.prepare import digits as digits_module
from vggdist.prepare.digits import write_digits


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits") / "set")


def content(root: Path) -> str:
    sha = hashlib.sha256()
    for path in sorted(root.rglob("*.jpg")):
        sha.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return sha.hexdigest()


def test_all_1797_digits_are_there_a_fifth_of_each_class_in_val(digits):
    dataset = open_dataset(digits)
    assert dataset.train.classes == tuple("0123456789")
    assert dataset.train.num_images + dataset.val.num_images == 1797
    # UCI's test part, which scikit-learn ships, holds this many of each digit.
    counts = np.array([178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    np.testing.assert_array_equal(np.bincount(dataset.val.labels), counts // 5)
    np.testing.assert_array_equal(np.bincount(dataset.train.labels), counts - counts // 5)


def test_images_are_rgb_jpegs_wide_and_high_with_sides_from_80_to_160(digits):
    sizes = []
    for path in digits.rglob("*.jpg"):
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            sizes.append(image.size)
    width, height = np.array(sizes).T
    assert min(width.min(), height.min()) >= 80
    assert max(width.max(), height.max()) <= 160
    assert (width > height).mean() > 0.4
    assert (height > width).mean() > 0.4


def test_writing_again_changes_nothing_and_elsewhere_gives_the_same_files(digits, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
    assert write_digits(digits) == digits
    assert {path: path.stat().st_mtime_ns for path in digits.rglob("*")} == before
    assert content(write_digits(tmp_path / "other")) == content(digits)


def test_an_interrupted_run_leaves_nothing_and_is_done_again(tmp_path, monkeypatch):
    def interrupted(folder: Path) -> None:
        folder.mkdir(parents=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(digits_module, "_write_images", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_digits(tmp_path / "set")
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(DataError, match=f"{tmp_path} is not empty.*Choose another folder"):
        write_digits(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(digits_module, "_write_images", full)
    with pytest.raises(DataError, match=r"cannot be written to .*: No space left on device\. "):
        write_digits(tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []
