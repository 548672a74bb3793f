"""Posteriors files keep what was computed, and say so when they cannot be read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.stored_posteriors import SOURCE, random_posteriors, store
from vggdist.artifacts.posteriors import (
    Posteriors,
    format_train_scale,
    load_posteriors,
    open_posteriors,
    save_posteriors,
)
from vggdist.errors import WeightsError


@pytest.fixture
def posteriors() -> Posteriors:
    return random_posteriors(num_classes=7)


@pytest.fixture
def path(posteriors: Posteriors, tmp_path: Path) -> Path:
    """A file of them."""
    return store(tmp_path, [posteriors])[0]


def rewrite(path: Path, **changes: np.ndarray) -> None:
    """Puts other arrays into a file."""
    with np.load(path) as file:
        parts = {**file, **changes}
    with path.open("wb") as stream:
        np.savez(stream, allow_pickle=True, **parts)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_file_keeps_everything_bit_for_bit(dtype: type, tmp_path: Path) -> None:
    posteriors = replace(
        random_posteriors(dtype=dtype, num_classes=7),
        names=tuple(f"ü\udcff class/bild\n{number}" for number in range(23)),
    )
    (path,) = store(tmp_path / "new", [posteriors])
    loaded = load_posteriors(path)
    assert loaded.source == posteriors.source == open_posteriors(path).source
    assert loaded.values.dtype == dtype
    assert loaded.values.tobytes() == posteriors.values.tobytes()
    assert loaded.labels.tolist() == posteriors.labels.tolist()
    assert loaded.names == posteriors.names
    assert loaded.classes == posteriors.classes
    assert [file.name for file in path.parent.iterdir()] == ["0.npz"]


def test_numpy_alone_can_read_a_file(tmp_path: Path) -> None:
    posteriors = random_posteriors()
    (path,) = store(tmp_path, [posteriors])
    with np.load(path, allow_pickle=False) as file:
        np.testing.assert_array_equal(file["posteriors"], posteriors.values)
        np.testing.assert_array_equal(file["labels"], posteriors.labels)


@pytest.mark.parametrize("num_images", [1, 5, 22, 23, 24])
def test_rows_are_all_posteriors_in_order(
    num_images: int, posteriors: Posteriors, path: Path
) -> None:
    parts = list(open_posteriors(path).rows(num_images))
    assert {len(part) for part in parts[:-1]} <= {num_images}
    np.testing.assert_array_equal(np.concatenate(parts), posteriors.values)


def test_an_array_in_column_order_is_stored_the_same(tmp_path: Path) -> None:
    posteriors = random_posteriors()
    turned = replace(posteriors, values=np.asfortranarray(posteriors.values))
    (path,) = store(tmp_path, [turned])
    np.testing.assert_array_equal(load_posteriors(path).values, posteriors.values)


def test_a_file_that_is_cut_off_anywhere_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=rf"{path} cannot be read .* is cut off, damaged"):
            load_posteriors(path)


def test_a_changed_byte_is_never_taken_for_posteriors(posteriors: Posteriors, path: Path) -> None:
    whole = path.read_bytes()
    for place in range(0, len(whole), 31):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        try:
            loaded = load_posteriors(path)
        except WeightsError:
            continue
        # Some bytes, such as the time of day in the archive, are nobody's.
        np.testing.assert_array_equal(loaded.values, posteriors.values)
        assert loaded.source == posteriors.source
        assert loaded.names == posteriors.names


def test_a_file_that_is_not_there_or_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"there is no posteriors file .*missing\.npz"):
        load_posteriors(tmp_path / "missing.npz")
    with pytest.raises(WeightsError, match=r"cannot be read as a posteriors file"):
        load_posteriors(tmp_path)
    for number, write in enumerate((np.save, np.savez)):
        path = tmp_path / f"other{number}.npz"
        with path.open("wb") as file:
            write(file, np.zeros((3, 3)))
        with pytest.raises(WeightsError, match=rf"{path.name} cannot be read"):
            load_posteriors(path)


def test_a_pickle_is_never_opened(path: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    rewrite(path, labels=np.array([_Opened(canary)] * 23, dtype=object))
    with pytest.raises(WeightsError, match="Object arrays cannot be loaded"):
        load_posteriors(path)
    assert not canary.exists()


class _Opened:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("labels", np.full(23, 7), "labels beyond its classes"),
        ("labels", np.full(23, -1), "labels beyond its classes"),
        ("labels", np.zeros(22, np.int64), "do not belong together"),
        ("names", np.frombuffer(b"a\0b\0", np.uint8), "do not belong together"),
        ("posteriors", np.zeros((23, 7)), "float64"),
        ("posteriors", np.zeros((23, 7), np.float32, order="F"), "posteriors are float32"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    part: str, value: np.ndarray, message: str, path: Path
) -> None:
    rewrite(path, **{part: value})
    with pytest.raises(WeightsError, match=message):
        load_posteriors(path)


def test_a_file_of_another_version_says_so(path: Path) -> None:
    with np.load(path) as file:
        header = file["header"].tobytes().replace(b'"format": 1', b'"format": 9')
    rewrite(path, header=np.frombuffer(header, np.uint8))
    with pytest.raises(WeightsError, match="of another version of vggdist"):
        open_posteriors(path)


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    posteriors: Posteriors, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WeightsError, match="cannot be written"):
        save_posteriors(path / "below", posteriors)

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(WeightsError, match=r"cannot be written: .*No space left"):
        save_posteriors(path, random_posteriors(1, num_classes=7))
    np.testing.assert_array_equal(load_posteriors(path).values, posteriors.values)
    assert list(path.parent.iterdir()) == [path]


def test_a_source_is_named_as_in_the_paper() -> None:
    assert SOURCE.title == "D [256;512], dense, Q 384"
    plain = replace(SOURCE, train_scale=None, flip=False, protocol="center-crop", scale=256)
    assert plain.title == "D, center-crop, Q 256, no flip"
    assert format_train_scale((384, 384)) == "384"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_posteriors_that_are_no_numbers_are_not_written(
    value: float, posteriors: Posteriors, tmp_path: Path
) -> None:
    values = posteriors.values.copy()
    values[[4, 9], 3] = value
    with pytest.raises(WeightsError) as caught:
        store(tmp_path, [replace(posteriors, values=values)])
    assert "posteriors are infinite or not numbers for 2 of 23 images, such as" in str(caught.value)
    assert posteriors.names[4] in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_posteriors_that_are_no_numbers_are_not_read(
    posteriors: Posteriors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    posteriors.values[4, 3] = np.nan
    monkeypatch.setattr("vggdist.artifacts.posteriors.require_finite", lambda *_: None)
    (path,) = store(tmp_path, [posteriors])
    with pytest.raises(WeightsError, match="some of its posteriors are not numbers"):
        load_posteriors(path)
