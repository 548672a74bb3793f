"""Fusions are means of posteriors, and their errors are counts."""

import tracemalloc
from collections.abc import Iterator, Sequence
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import top_k_accuracy_score

from tests.evaluation.stored_posteriors import naive_errors, random_posteriors, store
from vggdist.artifacts.contents import UNKNOWN, ContentsDigest
from vggdist.artifacts.posteriors import Posteriors, PosteriorsFile, open_posteriors
from vggdist.errors import WeightsError
from vggdist.evaluation import fusion
from vggdist.evaluation.fusion import ErrorRates, errors_of_fusions
from vggdist.evaluation.metrics import count_errors
from vggdist.evaluation.report import Evaluated, summarize


def fuse(folder: Path, several: Sequence[Posteriors]) -> ErrorRates:
    """Errors of the mean of posteriors, which are stored in `folder`."""
    files = [open_posteriors(path) for path in store(folder, several)]
    everything = tuple(range(len(files)))
    return errors_of_fusions(files, [everything])[everything]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_fusion_of_one_file_is_that_file(dtype: type, tmp_path: Path) -> None:
    posteriors = random_posteriors(dtype=dtype)
    errors = fuse(tmp_path, [posteriors])
    assert (errors.top1_error, errors.top5_error) == naive_errors(
        [posteriors.values], posteriors.labels
    )


def test_a_fusion_is_the_mean_and_its_errors_are_those_of_a_sort(tmp_path: Path) -> None:
    several = [random_posteriors(seed, num_images=200) for seed in range(4)]
    values = [one.values for one in several]
    errors = fuse(tmp_path, several)
    assert (errors.top1_error, errors.top5_error) == naive_errors(values, several[0].labels)
    assert errors.num_images == 200
    assert errors.top5_error < errors.top1_error < fuse(tmp_path, several[:1]).top1_error


def test_float16_posteriors_add_up_to_the_same_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = [random_posteriors(seed, dtype=np.float16) for seed in range(4)]
    means: list[bytes] = []
    count = fusion._count

    def noted(values: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
        means.append(values.tobytes())
        return count(values, labels)

    monkeypatch.setattr(fusion, "_count", noted)
    for order in permutations(several):
        fuse(tmp_path, order)
    assert len(means) == 24
    assert len(set(means)) == 1


def test_errors_are_those_of_scikit_learn(tmp_path: Path) -> None:
    posteriors = random_posteriors(num_images=500, num_classes=20)
    errors = fuse(tmp_path, [posteriors])
    for k, error in ((1, errors.top1_error), (5, errors.top5_error)):
        right = top_k_accuracy_score(
            posteriors.labels, posteriors.values, k=k, labels=range(20), normalize=False
        )
        assert error == (500 - right) / 500


def test_ties_and_missing_numbers_are_counted_as_everywhere_else() -> None:
    generator = np.random.default_rng(3)
    values = generator.integers(0, 4, (400, 9)).astype(np.float32) / 4
    values[generator.random(values.shape) < 0.05] = np.nan
    labels = generator.integers(0, 9, 400)
    top1, top5 = count_errors(torch.from_numpy(values), torch.from_numpy(labels)).tolist()
    assert 0 < top5 < top1 < 400
    assert fusion._count(values.astype(np.float64), labels).tolist() == [top1, top5]


@pytest.mark.parametrize("at_once", [1, 300, 2**22])
def test_many_fusions_in_one_pass_are_what_each_is_alone(
    at_once: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fusion, "_VALUES_AT_ONCE", at_once)
    several = [
        random_posteriors(seed, num_classes=11, dtype=(np.float16, np.float32)[seed % 2])
        for seed in range(4)
    ]
    paths = store(tmp_path, several)
    members = [one for size in (1, 2, 3, 4) for one in combinations(range(4), size)]
    counted: list[int] = []
    files = [open_posteriors(path) for path in paths]
    confusion = np.zeros((11, 11), np.int64)
    found = errors_of_fusions(files, members, counted.append, confusion)
    assert sum(counted) == 23
    mean = np.mean([posteriors.values.astype(np.float64) for posteriors in several], axis=0)
    expected = np.zeros((11, 11), np.int64)
    for label, row in zip(several[0].labels, mean, strict=True):
        expected[label, row.argmax()] += 1
    assert (confusion == expected).all()
    for one in members:
        alone = [tuple(range(len(one)))]
        assert found[one] == errors_of_fusions([files[number] for number in one], alone)[alone[0]]
        values = [several[number].values for number in one]
        rates = found[one].top1_error, found[one].top5_error
        assert rates == naive_errors(values, several[0].labels)


def test_the_report_of_an_evaluation_reads_each_file_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    paths = store(tmp_path, [random_posteriors(seed, num_classes=11) for seed in range(2)])
    read: list[Path] = []
    rows = PosteriorsFile.rows

    def counted(file: PosteriorsFile, count: int) -> Iterator[NDArray[Any]]:
        read.append(file.path)
        return rows(file, count)

    monkeypatch.setattr(PosteriorsFile, "rows", counted)
    summary = summarize(Evaluated(tuple(paths), 0, 0.0))
    assert read == paths
    wrong = sum(
        found["top1_error"] * found["num_images"]
        for found in summary["classes"]
        if found["num_images"]
    )
    assert wrong == pytest.approx(summary["top1_error"] * 23)


def test_files_are_never_in_memory_as_a_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    several = [random_posteriors(seed, num_images=4000, num_classes=50) for seed in range(4)]
    files = [open_posteriors(path) for path in store(tmp_path, several)]
    monkeypatch.setattr(fusion, "_VALUES_AT_ONCE", 4000)
    tracemalloc.start()
    errors_of_fusions(files, [(0, 1, 2, 3)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < several[0].values.nbytes / 2


def test_a_file_that_is_damaged_inside_is_refused_while_it_is_read(tmp_path: Path) -> None:
    posteriors = random_posteriors()
    (path,) = store(tmp_path, [posteriors])
    whole = path.read_bytes()
    place = whole.index(posteriors.values[11].tobytes())
    path.write_bytes(whole[:place] + b"\x55" + whole[place + 1 :])
    with pytest.raises(WeightsError, match=r"0\.npz cannot be read .*CRC"):
        errors_of_fusions([open_posteriors(path)], [(0,)])


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"images": "2b" * 32}, "images \\(the digests"),
        ({"num_images": 24}, "images \\(23 and 24\\)"),
        ({"num_classes": 9}, "classes \\(1,000 and 9"),
    ],
)
def test_posteriors_of_other_images_are_refused_by_both_names(
    other: dict[str, object], difference: str, tmp_path: Path
) -> None:
    several = [random_posteriors(), random_posteriors(**other)]
    names = f"{tmp_path}/0.npz and {tmp_path}/1.npz"
    with pytest.raises(WeightsError, match=f"{names} .* different {difference}"):
        fuse(tmp_path, several)


def test_posteriors_of_images_that_were_replaced_in_between_are_refused(tmp_path: Path) -> None:
    noted = [ContentsDigest("1", "2", sha256) for sha256 in ("3", "4", "")]
    several = [random_posteriors(contents=one) for one in (*noted, UNKNOWN)]
    with pytest.raises(WeightsError, match="of different images under the same names"):
        fuse(tmp_path, several[:2])
    fuse(tmp_path, [several[0], *several[2:]])


def test_posteriors_with_other_labels_or_names_of_classes_are_refused(tmp_path: Path) -> None:
    one, other = random_posteriors(), random_posteriors()
    other.labels[5] += 1
    with pytest.raises(WeightsError, match="different labels"):
        fuse(tmp_path, [one, other])
    renamed = random_posteriors(num_classes=7)
    renamed = type(renamed)(
        renamed.source, renamed.values, renamed.labels, renamed.names, tuple("abcdefg")
    )
    with pytest.raises(WeightsError, match="with other names"):
        fuse(tmp_path, [random_posteriors(num_classes=7), renamed])
