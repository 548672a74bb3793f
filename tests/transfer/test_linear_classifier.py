"""The oracles are scikit-learn, used by hand, and hashlib."""

import hashlib
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score
from sklearn.svm import LinearSVC

from tests.conftest import Call
from vggdist.artifacts.contents import UNKNOWN, ContentsDigest
from vggdist.errors import ConfigError, DataError, VggdistError, WeightsError
from vggdist.transfer.features_file import Features, Recipe, load_features, save_features
from vggdist.transfer.linear_classifier import (
    draw_split,
    mean_class_recall,
    render_transfer,
    transfer,
)

CLASSES = ("daisy", "rose", "tulip", "weed")
COUNTS = (20, 13, 31, 16)
TRAIN, TEST = 10, 8
RECIPE = Recipe("D", (256, 512), "0" * 64, "fc7", (256, 384), "stack", True, "bf16", "flowers")


def blobs(seed: int = 0, noise: float = 1.1, num_units: int = 12) -> Features:
    """Four overlapping clouds of points on the unit sphere."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((4, num_units))
    labels = np.repeat(np.arange(4), COUNTS)
    points = centres[labels] + noise * generator.standard_normal((len(labels), num_units))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    names = tuple(
        f"{name}/{i}.jpg" for name, n in zip(CLASSES, COUNTS, strict=True) for i in range(n)
    )
    return Features(points.astype(np.float32), labels, names, CLASSES, RECIPE)


def reordered(features: Features, order: NDArray[np.int64]) -> Features:
    return replace(
        features,
        descriptors=features.descriptors[order],
        labels=features.labels[order],
        files=tuple(features.files[place] for place in order),
    )


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., Path]:
    def store(features: Features, name: str = "features") -> Path:
        path = tmp_path / f"{name}.npz"
        save_features(path, features)
        return path

    return store


def names(features: Features, places: NDArray[np.int64]) -> list[str]:
    return [features.files[place] for place in places]


# Splits


def test_a_split_has_as_many_training_images_of_each_class_as_asked_and_other_test_images() -> None:
    features = blobs()
    split = draw_split(features, 0, TRAIN, TEST)
    assert np.bincount(features.labels[split.train]).tolist() == [TRAIN] * 4
    # Up to TEST of what is left.
    assert np.bincount(features.labels[split.test]).tolist() == [8, 3, 8, 6]
    everything = [*split.train, *split.test]
    assert len(set(everything)) == len(everything)


def test_a_split_is_a_ranking_by_a_hash_of_seed_and_name() -> None:
    features = blobs()
    roses = [name for name in features.files if name.startswith("rose/")]
    for seed in range(3):
        ranked = sorted(roses, key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).digest())
        split = draw_split(features, seed, TRAIN, TEST)
        assert names(features, split.train)[TRAIN : 2 * TRAIN] == ranked[:TRAIN]
        assert names(features, split.test)[8:11] == ranked[TRAIN:]


def test_splits_do_not_depend_on_the_order_of_the_images_and_differ_between_seeds() -> None:
    features = blobs()
    shuffled = reordered(features, np.random.default_rng(1).permutation(sum(COUNTS)))
    seen = []
    for seed in range(3):
        ours = draw_split(features, seed, TRAIN, TEST)
        theirs = draw_split(shuffled, seed, TRAIN, TEST)
        assert names(features, ours.train) == names(shuffled, theirs.train)
        assert names(features, ours.test) == names(shuffled, theirs.test)
        seen.append(frozenset(names(features, ours.train)))
    assert len(set(seen)) == 3


def test_classes_with_too_few_images_are_named() -> None:
    features = blobs()
    assert len(draw_split(features, 0, 12, 50).test) == 8 + 1 + 19 + 4
    with pytest.raises(DataError) as caught:
        draw_split(features, 0, 16, 50)
    assert str(caught.value) == (
        "16 training images and at least one test image of each class are needed, and these "
        "classes have fewer: rose (13), weed (16). Lower --train-per-class, or leave these "
        "classes out."
    )


def test_a_single_class_is_refused() -> None:
    only = reordered(blobs(), np.arange(COUNTS[0]))
    with pytest.raises(DataError, match="of a single class"):
        draw_split(only, 0, 2, 2)


# The measure and the classifier


def test_mean_class_recall_is_scikit_learns_balanced_accuracy() -> None:
    generator = np.random.default_rng(0)
    labels = generator.choice(5, 200, p=[0.5, 0.3, 0.1, 0.05, 0.05])
    predictions = np.where(generator.random(200) < 0.6, labels, generator.integers(0, 5, 200))
    expected = balanced_accuracy_score(labels, predictions)
    assert mean_class_recall(labels, predictions) == pytest.approx(expected, abs=1e-12)
    assert abs(expected - np.mean(labels == predictions)) > 0.005, "the classes must be uneven"


def by_hand(features: Features, seed: int) -> tuple[float, float]:
    """Recall and C of one split: C by the first fifth of each class's training images."""
    x, y = features.descriptors, features.labels
    split = draw_split(features, seed, TRAIN, TEST)
    validation = [i for k in range(4) for i in split.train[TRAIN * k : TRAIN * k + TRAIN // 5]]
    fit = [i for i in split.train if i not in validation]
    best = (-1.0, 0.0)
    for c in (0.01, 0.1, 1.0, 10.0, 100.0):
        svm = LinearSVC(C=c, dual=False, tol=1e-6).fit(x[fit], y[fit])
        recall = balanced_accuracy_score(y[validation], svm.predict(x[validation]))
        best = max(best, (recall, c), key=lambda pair: pair[0])
    svm = LinearSVC(C=best[1], dual=False, tol=1e-6).fit(x[split.train], y[split.train])
    return balanced_accuracy_score(y[split.test], svm.predict(x[split.test])), best[1]


@pytest.mark.parametrize("num_units", [12, 60])  # more units than images take liblinear's dual
def test_transfer_is_scikit_learns_linear_svm_used_by_hand(
    stored: Callable[..., Path], num_units: int
) -> None:
    features = blobs(num_units=num_units, noise=1.1 if num_units == 12 else 2.5)
    result = transfer([stored(features)], TRAIN, TEST, 4)
    expected = [by_hand(features, seed) for seed in range(4)]
    assert [(o.mean_class_recall, o.c) for o in result.outcomes] == [
        (pytest.approx(recall), c) for recall, c in expected
    ]
    recalls = [recall for recall, _ in expected]
    assert result.mean_class_recall == pytest.approx(statistics.mean(recalls))
    assert result.std == pytest.approx(statistics.stdev(recalls))
    assert 0.4 < result.mean_class_recall < 0.99, "neither hopeless nor easy"
    assert [o.seed for o in result.outcomes] == [0, 1, 2, 3]


def test_test_images_have_no_say_in_the_choice_of_c(stored: Callable[..., Path]) -> None:
    features = blobs()
    test = draw_split(features, 0, TRAIN, TEST).test
    spoiled = features.descriptors.copy()
    spoiled[test] = -spoiled[test]
    before = transfer([stored(features)], TRAIN, TEST, 1).outcomes[0]
    after = transfer([stored(replace(features, descriptors=spoiled))], TRAIN, TEST, 1).outcomes[0]
    assert after.c == before.c
    assert after.mean_class_recall < before.mean_class_recall - 0.2


def test_one_split_has_no_spread(stored: Callable[..., Path]) -> None:
    result = transfer([stored(blobs())], TRAIN, TEST, 1)
    assert result.std == 0
    assert "±" not in render_transfer(result).split("ours")[1]


def test_one_training_image_of_each_class_cannot_choose_c(stored: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="--train-per-class is 1; it must be at least 2"):
        transfer([stored(blobs())], 1, TEST, 1)


# Several networks


def test_features_of_two_networks_are_stacked_whatever_the_order_of_their_images(
    stored: Callable[..., Path],
) -> None:
    one, other = blobs(seed=0, noise=1.6), blobs(seed=1, noise=1.6)
    both = np.concatenate([one.descriptors, other.descriptors], axis=1) / np.sqrt(2)
    together = replace(one, descriptors=both.astype(np.float32))
    shuffled = reordered(other, np.random.default_rng(2).permutation(sum(COUNTS)))
    fused = transfer([stored(one, "d"), stored(shuffled, "e")], TRAIN, TEST, 3)
    assert fused.outcomes == transfer([stored(together)], TRAIN, TEST, 3).outcomes
    assert fused.num_units == 24
    alone = transfer([stored(one, "d")], TRAIN, TEST, 3)
    assert fused.mean_class_recall > alone.mean_class_recall + 0.05


@pytest.mark.parametrize("difference", ["a file", "a label", "the number", "the classes"])
def test_features_of_other_images_are_not_stacked(
    stored: Callable[..., Path], difference: str
) -> None:
    one = blobs()
    labels = one.labels.copy()
    labels[0] = 1
    other = {
        "a file": replace(one, files=("daisy/other.jpg", *one.files[1:])),
        "a label": replace(one, labels=labels),
        "the number": reordered(one, np.arange(1, sum(COUNTS))),
        "the classes": replace(one, classes=("daisy", "rose", "tulip", "wood")),
    }[difference]
    with pytest.raises(WeightsError, match=r"e\.npz is not of the same images and classes as"):
        transfer([stored(one, "d"), stored(other, "e")], TRAIN, TEST, 1)


# What is printed


def test_the_command_prints_table_11_with_ours_beneath_and_writes_json(
    stored: Callable[..., Path], tmp_path: Path, call: Call
) -> None:
    file, out = stored(blobs()), tmp_path / "result.json"
    numbers = ["--train-per-class", "10", "--test-per-class", "8", "--seeds", "3"]
    code, printed, progress = call("transfer", file, *numbers, "--json", out)
    assert code == 0
    values = json.loads(out.read_text())
    assert values["mean_class_recall"] == pytest.approx(
        statistics.mean(seed["mean_class_recall"] for seed in values["seeds"])
    )
    assert [(seed["seed"], seed["num_train"], seed["num_test"]) for seed in values["seeds"]] == [
        (seed, 40, 25) for seed in range(3)
    ]
    rows = [" ".join(line.split()) for line in printed.splitlines()]
    assert "VGG Net-D (16 layers) 91.8 ± 1.0 85.0 ± 0.2 -" in rows
    assert "VGG Net-D & Net-E 92.7 ± 0.5 86.2 ± 0.3 -" in rows
    assert "He et al. 93.4 ± 0.5 - -" in rows
    mean, std = 100 * values["mean_class_recall"], 100 * values["std"]
    assert f"ours: D [256;512], fc7, Q 256, 384 stacked - - {mean:.1f} ± {std:.1f}" in rows
    assert "Ours is on other images, those of flowers: 4 classes, 10 training" in printed
    assert "18 of 18 fits" in progress


def test_a_file_that_numpy_alone_has_written_will_do(tmp_path: Path, call: Call) -> None:
    features, path = blobs(), tmp_path / "mine.npz"
    np.savez(
        path,
        X=features.descriptors.astype(np.float64),
        y=features.labels.astype(np.int32),
        files=list(features.files),
        classes=list(CLASSES),
    )
    numbers = ["--train-per-class", "10", "--test-per-class", "8", "--seeds", "1"]
    code, printed, _ = call("transfer", path, *numbers)
    assert code == 0
    assert "ours: mine" in printed


def test_features_of_images_that_were_replaced_in_between_are_not_stacked(
    stored: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    def noted(name: str, contents: ContentsDigest) -> Path:
        return stored(replace(blobs(), recipe=replace(RECIPE, contents=contents)), name)

    first = noted("first", ContentsDigest("1", "2", "3"))
    transfer([first, noted("same", ContentsDigest("1", "4", "3"))], 10, 8, 1)
    assert caplog.text == ""
    with pytest.raises(WeightsError, match=r"Between .*first.npz and .*other.npz images were repl"):
        transfer([first, noted("other", ContentsDigest("1", "2", "4"))], 10, 8, 1)
    transfer([first, noted("before", UNKNOWN)], 10, 8, 1)
    assert "are the same under their names cannot be told" in caplog.text


# Files


def test_a_features_file_keeps_everything(stored: Callable[..., Path]) -> None:
    features = replace(blobs(), files=("daisy/\udce9.jpg", *blobs().files[1:]))
    for recipe in (RECIPE, None):
        loaded = load_features(stored(replace(features, recipe=recipe)))
        assert np.array_equal(loaded.descriptors, features.descriptors)
        assert np.array_equal(loaded.labels, features.labels)
        assert (loaded.files, loaded.classes, loaded.recipe) == (features.files, CLASSES, recipe)


def test_a_features_file_is_cut_off_or_changed_anywhere_and_each_time_it_is_a_sentence(
    stored: Callable[..., Path],
) -> None:
    path = stored(blobs())
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match="cannot be read as a features file"):
            load_features(path)
    middle = whole.index(blobs().descriptors.tobytes()) + 1000
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(WeightsError, match="Bad CRC-32"):
        load_features(path)


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "no X": ({"X": None}, "X is not a file in the archive"),
    "X of words": ({"X": np.array([["a"]])}, "Cannot cast"),
    "X of objects": ({"X": np.array([[{}]])}, "it holds Python objects, which could run any code"),
    "flat X": ({"X": np.zeros(80, np.float32)}, "its X has the shape (80,)"),
    "too few rows": ({"X": np.zeros((79, 3), np.float32)}, "do not belong together"),
    "nan": ({"X": np.full((80, 3), np.nan, np.float32)}, "infinite or not numbers"),
    "label too large": ({"y": np.full(80, 4)}, "its labels do not fit its 4 classes"),
    "label of a fraction": ({"y": np.full(80, 0.5)}, "Cannot cast"),
    "a file twice": ({"files": np.full(80, "a.jpg")}, "it has 'a.jpg' twice"),
    "files of numbers": ({"files": np.arange(80)}, "its names are int64"),
    "a header of words": ({"header": np.array("hello")}, "Expecting value"),
    "a header without format": ({"header": np.array("{}")}, "format"),
    "another version": ({"header": np.array('{"format": 99}')}, "another version of vggdist"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_features_file_is_refused_in_a_sentence(tmp_path: Path, case: str) -> None:
    changes, message = WRONG[case]
    features, path = blobs(), tmp_path / "wrong.npz"
    parts: dict[str, object] = {
        "X": features.descriptors,
        "y": features.labels,
        "files": np.array(features.files),
        "classes": np.array(CLASSES),
    } | changes
    np.savez(path, **{name: part for name, part in parts.items() if part is not None})  # type: ignore[arg-type]
    with pytest.raises(WeightsError) as caught:
        load_features(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_other_files_and_none_are_refused_in_a_sentence(tmp_path: Path) -> None:
    array, text = tmp_path / "array.npz", tmp_path / "text.npz"
    with array.open("wb") as file:
        np.save(file, np.zeros(3))
    text.write_text("hello")
    for path in (array, text, tmp_path):
        with pytest.raises(WeightsError, match="cannot be read as a features file"):
            load_features(path)
    with pytest.raises(WeightsError, match="there is no features file"):
        load_features(tmp_path / "none.npz")


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    stored: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stored(blobs())
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(VggdistError, match="no space left"):
        save_features(path, blobs(seed=1))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
