"""The oracle is a loop that sorts the classes of each image in plain Python."""

import math

import pytest
import torch
from torch import Tensor

from vggdist.evaluation.metrics import count_errors


def errors_by_loop(logits: Tensor, labels: Tensor) -> list[int]:
    errors = [0, 0]
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda i: (math.isnan(row[i]), -row[i], i))
        order = [i for i in order if not math.isnan(row[i])]
        errors[0] += label not in order[:1]
        errors[1] += label not in order[:5]
    return errors


def draw(num_classes: int, values: list[float], seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(values), (400, num_classes), generator=generator)
    labels = torch.randint(num_classes, (400,), generator=generator)
    return torch.tensor(values)[chosen], labels


@pytest.mark.parametrize("num_classes", [1, 2, 4, 5, 6, 20])
@pytest.mark.parametrize(
    "values",
    [
        [-1.0, 0.0, 2.0],
        [0.0],
        [float("nan"), 0.0, 1.0],
        [float("nan"), float("inf"), float("-inf"), 0.0],
        [float("nan"), float("-inf")],
        [float("nan")],
    ],
    ids=["ties", "all equal", "nan", "nan and infinities", "nan and -inf", "all nan"],
)
def test_errors_are_those_of_a_loop(num_classes: int, values: list[float]) -> None:
    logits, labels = draw(num_classes, values, seed=num_classes)
    assert count_errors(logits, labels).tolist() == errors_by_loop(logits, labels)


def test_without_ties_errors_are_those_of_topk() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 30, generator=generator)
    labels = torch.randint(30, (500,), generator=generator)
    expected = [
        500 - int((logits.topk(k).indices == labels[:, None]).any(dim=1).sum()) for k in (1, 5)
    ]
    counted = count_errors(logits, labels)
    assert counted.tolist() == expected
    assert counted.dtype == torch.int64


def test_with_five_classes_or_fewer_there_are_no_top5_errors() -> None:
    for num_classes in range(1, 6):
        logits, labels = draw(num_classes, [0.0, 1.0], seed=0)
        assert count_errors(logits, labels)[1] == 0


def test_logits_and_posteriors_have_the_same_errors() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(300, 10, generator=generator, dtype=torch.float64)
    labels = torch.randint(10, (300,), generator=generator)
    assert torch.equal(count_errors(logits, labels), count_errors(logits.softmax(dim=1), labels))


def test_no_images_have_no_errors() -> None:
    assert count_errors(torch.zeros(0, 10), torch.zeros(0, dtype=torch.int64)).tolist() == [0, 0]


def test_the_logits_are_left_as_they_are() -> None:
    logits = torch.tensor([[float("nan"), 1.0]])
    count_errors(logits, torch.tensor([0]))
    assert logits.isnan().tolist() == [[True, False]]
