"""The oracle is scikit-learn's confusion matrix."""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix

from vggdist.evaluation import confusion
from vggdist.evaluation.confusion import (
    ClassErrors,
    Pair,
    class_errors,
    count_predictions,
    worst_classes,
)
from vggdist.evaluation.metrics import count_errors

CLASSES = ("cat", "dog", "owl", "eel")


def test_images_are_counted_as_scikit_learn_counts_them() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(4, 4, dtype=torch.int64)
    labels = torch.randint(4, (300,), generator=generator)
    logits = torch.randn(300, 4, generator=generator)
    for part in range(0, 300, 70):
        count_predictions(counts, logits[part : part + 70], labels[part : part + 70])
    expected = confusion_matrix(labels, logits.argmax(1))
    assert (counts.numpy() == expected).all()
    errors = class_errors(counts.numpy())
    assert sum(errors.num_wrong) == int(count_errors(logits, labels)[0])
    for label in range(4):
        of_class = logits[labels == label].argmax(1)
        assert errors.error(label) == pytest.approx((of_class != label).double().mean().item())


def test_of_equal_logits_the_first_class_is_predicted_as_errors_are_counted() -> None:
    logits, labels = torch.tensor([[1.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 1])
    counts = torch.zeros(2, 2, dtype=torch.int64)
    count_predictions(counts, logits, labels)
    assert counts.tolist() == [[1, 0], [1, 0]]
    assert int(count_errors(logits, labels)[0]) == 1


@pytest.fixture
def errors() -> ClassErrors:
    matrix = np.array([[8, 2, 0, 0], [3, 1, 0, 0], [0, 0, 9, 1], [0, 0, 0, 0]], np.int64)
    return class_errors(matrix)


def test_the_worst_classes_and_pairs_come_first(errors: ClassErrors) -> None:
    assert errors.pairs == (Pair(1, 0, 3), Pair(0, 1, 2), Pair(2, 3, 1))
    assert worst_classes(errors.to_dict(CLASSES), 2) == [
        "largest errors: dog: 75.0 % (3 of 4), cat: 20.0 % (2 of 10)",
        "most often taken for another: dog for cat (3), cat for dog (2)",
    ]


def test_names_stand_in_the_json_and_a_class_without_images_has_no_error(
    errors: ClassErrors,
) -> None:
    stored = errors.to_dict(CLASSES)
    assert stored["classes"][3] == {"name": "eel", "num_images": 0, "top1_error": None}
    assert stored["classes"][2] == {"name": "owl", "num_images": 10, "top1_error": 0.1}
    assert stored["confused"][0] == {"truth": "dog", "prediction": "cat", "num_images": 3}


def test_without_errors_nothing_is_said() -> None:
    errors = class_errors(np.diag([3, 2]).astype(np.int64))
    assert worst_classes(errors.to_dict(("a", "b"))) == []
    assert worst_classes(ClassErrors().to_dict(("a", "b"))) == []


def test_of_very_many_pairs_the_most_frequent_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confusion, "MOST_PAIRS", 3)
    matrix = np.random.default_rng(0).integers(0, 50, (20, 20)).astype(np.int64)
    errors = class_errors(matrix)
    off = sorted((matrix[i, j] for i in range(20) for j in range(20) if i != j), reverse=True)
    assert [pair.num_images for pair in errors.pairs] == off[:3]
    assert sum(errors.num_wrong) == sum(off)
