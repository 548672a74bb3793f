"""Transfer (Appendix B): a linear SVM on fixed descriptors, and the paper's Table 11 beside it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggdist.artifacts.names import shortened
from vggdist.artifacts.paths import quote
from vggdist.errors import ConfigError, DataError, WeightsError
from vggdist.transfer.features_file import Features, Recipe, load_features

logger = logging.getLogger(__name__)

CANDIDATES = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Values of C, the weight of the SVM's loss, among which the validation images choose."""
VALIDATION_SHARE = 0.2
"""Share of each class's training images on which C is chosen (Appendix B)."""

TABLE_11 = (
    # Mean class recall in %, and its standard deviation, on Caltech-101 and on Caltech-256.
    ("Zeiler & Fergus", (86.5, 0.5), (74.2, 0.3)),
    ("Chatfield et al.", (88.4, 0.6), (77.6, 0.1)),
    ("He et al.", (93.4, 0.5), None),
    ("VGG Net-D (16 layers)", (91.8, 1.0), (85.0, 0.2)),
    ("VGG Net-E (19 layers)", (92.3, 0.5), (85.1, 0.3)),
    ("VGG Net-D & Net-E", (92.7, 0.5), (86.2, 0.3)),
)


@dataclass(frozen=True)
class Split:
    """Places of the images of one random split; each class's in turn."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]


@dataclass(frozen=True)
class Outcome:
    """One split."""

    seed: int
    mean_class_recall: float
    """A fraction."""
    c: float
    """The chosen C."""
    num_train: int
    num_test: int


@dataclass(frozen=True)
class Transfer:
    """All splits."""

    name: str
    """Of the descriptors, for people."""
    dataset: str
    """Of the images, for people."""
    num_classes: int
    num_units: int
    train_per_class: int
    test_per_class: int
    outcomes: tuple[Outcome, ...]

    @property
    def mean_class_recall(self) -> float:
        """Mean over the splits, a fraction."""
        return float(np.mean([outcome.mean_class_recall for outcome in self.outcomes]))

    @property
    def std(self) -> float:
        """Standard deviation over the splits (of n - 1 degrees of freedom); 0 of a single one."""
        values = [outcome.mean_class_recall for outcome in self.outcomes]
        return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        values = asdict(self)
        outcomes = values.pop("outcomes")
        summary = {"mean_class_recall": self.mean_class_recall, "std": self.std}
        return summary | values | {"seeds": list(outcomes)}


FITS_PER_SPLIT = len(CANDIDATES) + 1


def transfer(
    paths: Sequence[Path],
    train_per_class: int,
    test_per_class: int,
    num_seeds: int,
    fitted: Callable[[], None] = lambda: None,
) -> Transfer:
    """Trains and tests a linear SVM on `num_seeds` splits of the images of features files.

    Args:
        paths: features files of the same images. Several are stacked: late fusion of networks.
        train_per_class: training images of each class, at least 2: some of them choose C.
        test_per_class: most test images of each class; of a class that has fewer, all.
        num_seeds: seeds 0 to num_seeds - 1 draw the splits.
        fitted: called after each of the `FITS_PER_SPLIT` SVMs of a split.

    Raises:
        ConfigError: too few training images of each class are asked for.
        WeightsError: a file cannot be used, or two are of different images.
        DataError: there are too few classes, or images of a class.
    """
    if train_per_class < 2:
        raise ConfigError(
            f"--train-per-class is {train_per_class}; it must be at least 2, since some of the "
            "training images choose C and the others train."
        )
    features = [load_features(path) for path in paths]
    stacked = stack(features, paths)
    splits = [
        draw_split(stacked, seed, train_per_class, test_per_class) for seed in range(num_seeds)
    ]
    outcomes = [_evaluate(stacked, split, seed, fitted) for seed, split in enumerate(splits)]
    return Transfer(
        _name(features, paths),
        _dataset(features, paths),
        len(np.unique(stacked.labels)),
        stacked.descriptors.shape[1],
        train_per_class,
        test_per_class,
        tuple(outcomes),
    )


def stack(features: Sequence[Features], paths: Sequence[Path]) -> Features:
    """Late fusion: the descriptors of several networks side by side, of length 1 if theirs are.

    Raises:
        WeightsError: they are not of the same images and classes.
    """
    first, *others = features
    if not others:
        return first
    order_of_first = np.argsort(first.files)
    columns = [first.descriptors]
    for other, path in zip(others, paths[1:], strict=True):
        order = np.empty_like(order_of_first)
        same = other.classes == first.classes and len(other.files) == len(first.files)
        if same:
            order[order_of_first] = np.argsort(other.files)
            same = first.files == tuple(other.files[place] for place in order) and np.array_equal(
                first.labels, other.labels[order]
            )
        if not same:
            raise WeightsError(
                f"{quote(path)} is not of the same images and classes as {quote(paths[0])}, so "
                "their features cannot be stacked; compute both with the same `vggdist features "
                "--data`."
            )
        _require_same_contents(first.recipe, other.recipe, paths[0], path)
        columns.append(other.descriptors[order])
    descriptors = np.concatenate(columns, axis=1) / np.float32(len(columns) ** 0.5)
    return Features(descriptors, first.labels, first.files, first.classes)


def _require_same_contents(
    first: Recipe | None, other: Recipe | None, path: Path, other_path: Path
) -> None:
    """Refuses features of images that were replaced under their names."""
    if first is None or other is None:
        return
    same = first.contents.same_as(other.contents)
    if same is False:
        raise WeightsError(
            f"Between {path} and {other_path} images were replaced under their names, so their "
            "features cannot be stacked; compute both anew with `vggdist features`."
        )
    if same is None:
        logger.warning(
            "Whether the images of %s and %s are the same under their names cannot be told; "
            "`vggdist check` notes what is in them, and `vggdist features` then says so.",
            path,
            other_path,
        )


def draw_split(features: Features, seed: int, train_per_class: int, test_per_class: int) -> Split:
    """A random split, which follows from seed, names and classes alone: not from their order.

    The images of a class are ranked by a hash of the seed and their names; the first are for
    training, the next for testing.

    Raises:
        DataError: fewer than two classes, or a class without an image left for testing.
    """
    classes = np.unique(features.labels)
    _check_counts(features, classes, train_per_class)
    train, test = [], []
    for label in classes:
        ranked = sorted(
            np.flatnonzero(features.labels == label).tolist(),
            key=lambda place: _hash(seed, features.files[place]),
        )
        train += ranked[:train_per_class]
        test += ranked[train_per_class : train_per_class + test_per_class]
    return Split(np.array(train, dtype=np.int64), np.array(test, dtype=np.int64))


def mean_class_recall(labels: NDArray[np.int64], predictions: NDArray[np.int64]) -> float:
    """The mean over classes of the share of a class's images that are recognized."""
    return float(
        np.mean([np.mean(predictions[labels == label] == label) for label in np.unique(labels)])
    )


def render_transfer(result: Transfer) -> str:
    """Table 11's columns of the Caltech sets, ours beneath, and how it was measured."""
    rows = [("method", "Caltech-101", "Caltech-256", result.dataset)]
    rows += [(name, _cell(c101), _cell(c256), "-") for name, c101, c256 in TABLE_11]
    percent = (100 * result.mean_class_recall, 100 * result.std)
    ours = _cell(percent) if len(result.outcomes) > 1 else f"{percent[0]:.1f}"
    rows.append((f"ours: {result.name}", "-", "-", ours))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    chosen = ", ".join(f"{outcome.c:g}" for outcome in result.outcomes)
    return "\n".join(
        [
            "Mean class recall in %, of a linear SVM on fixed features (Table 11 of the paper).",
            "",
            *lines,
            "",
            f"Ours is on other images, those of {result.dataset}: {result.num_classes} classes, "
            f"{result.train_per_class} training",
            f"and up to {result.test_per_class} test images of each, {len(result.outcomes)} random "
            f"splits; {result.num_units} units;",
            f"C = {chosen}, chosen on {VALIDATION_SHARE:.0%} of the training images.",
        ]
    )


def _evaluate(features: Features, split: Split, seed: int, fitted: Callable[[], None]) -> Outcome:
    """Chooses C on a part of the training images, trains on all of them, and tests."""
    x, y = features.descriptors, features.labels
    per_class = len(split.train) // len(np.unique(y))
    num_validation = max(1, round(VALIDATION_SHARE * per_class))
    is_validation = np.arange(len(split.train)) % per_class < num_validation
    validation, fit = split.train[is_validation], split.train[~is_validation]
    recalls = []
    for c in CANDIDATES:
        predictions = _fit(x[fit], y[fit], c).predict(x[validation])
        recalls.append(mean_class_recall(y[validation], predictions))
        fitted()
    c = CANDIDATES[int(np.argmax(recalls))]  # of equals the smallest
    predictions = _fit(x[split.train], y[split.train], c).predict(x[split.test])
    fitted()
    recall = mean_class_recall(y[split.test], predictions)
    return Outcome(seed, recall, c, len(split.train), len(split.test))


def _fit(x: NDArray[np.float32], y: NDArray[np.int64], c: float) -> Any:
    """One SVM for each class against the rest, solved exactly, not by stochastic gradients."""
    from sklearn.svm import LinearSVC

    return LinearSVC(C=c, dual="auto", random_state=0, max_iter=100_000).fit(x, y)


def _check_counts(features: Features, classes: NDArray[np.int64], train_per_class: int) -> None:
    if len(classes) < 2:
        raise DataError(
            "the features are of images of a single class; an SVM tells two or more apart."
        )
    counts = np.bincount(features.labels, minlength=len(features.classes))
    small = [
        f"{features.classes[label]} ({counts[label]})"
        for label in classes
        if counts[label] <= train_per_class
    ]
    if small:
        raise DataError(
            f"{train_per_class} training images and at least one test image of each class are "
            f"needed, and these classes have fewer: {shortened(small)}. Lower "
            "--train-per-class, or leave these classes out."
        )


def _hash(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogateescape")).digest()


def _name(features: Sequence[Features], paths: Sequence[Path]) -> str:
    """`D [256;512] & E [256;512], fc7, Q 256`: what is the same for all networks stands once."""
    recipes = [file.recipe for file in features if file.recipe is not None]
    if len(recipes) < len(features):
        return " & ".join(path.stem for path in paths)
    methods = dict.fromkeys(recipe.method for recipe in recipes)
    if len(methods) == 1:
        return ", ".join([" & ".join(recipe.trained for recipe in recipes), *methods])
    return " & ".join(f"{recipe.trained}, {recipe.method}" for recipe in recipes)


def _dataset(features: Sequence[Features], paths: Sequence[Path]) -> str:
    recipe = features[0].recipe
    return paths[0].stem if recipe is None else recipe.dataset


def _cell(value: tuple[float, float] | None) -> str:
    return "-" if value is None else f"{value[0]:.1f} ± {value[1]:.1f}"
