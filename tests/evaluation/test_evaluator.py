"""The oracle is one pass over all images in one process."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix
from torch import Tensor

from tests.ranks import run_in_ranks
from vggdist.distributed.process import Process
from vggdist.evaluation.confusion import class_errors
from vggdist.evaluation.evaluator import evaluate
from vggdist.evaluation.metrics import Errors
from vggdist.evaluation.mistakes import Mistake

NUM_IMAGES, NUM_CLASSES, NUM_MISTAKES = 23, 7, 5


@dataclass(frozen=True)
class Labelled:
    images: Tensor
    labels: Tensor
    index: NDArray[np.int64]


def network(images: Tensor) -> Tensor:
    """The logits are the image's first pixels, in the precision of training."""
    return images.flatten(1)[:, :NUM_CLASSES].bfloat16()


def all_images() -> Labelled:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(NUM_IMAGES, 3, 4, 4, generator=generator)
    labels = torch.randint(NUM_CLASSES, (NUM_IMAGES,), generator=generator)
    return Labelled(images, labels, np.arange(NUM_IMAGES))


def share(process: Process, micro: int = 4) -> list[Labelled]:
    """Every second image, in batches of which the last is smaller; the ranks' shares differ."""
    data = all_images()
    own = slice(process.rank, None, process.world_size)
    parts = (data.images[own], data.labels[own], torch.from_numpy(data.index[own]))
    batches = zip(*(part.split(micro) for part in parts), strict=True)
    return [Labelled(images, labels, index.numpy()) for images, labels, index in batches]


def expected() -> Errors:
    data = all_images()
    logits = network(data.images).float()
    top = logits.topk(5).indices == data.labels[:, None]
    return Errors(
        NUM_IMAGES,
        1 - top[:, 0].sum().item() / NUM_IMAGES,
        1 - top.any(dim=1).sum().item() / NUM_IMAGES,
        F.cross_entropy(logits, data.labels).item(),
        class_errors(confusion_matrix(data.labels, logits.argmax(1), labels=range(NUM_CLASSES))),
    )


def evaluate_share(process: Process) -> tuple[Errors, Errors, str, str]:
    """Both ranks' shares; then all images on one rank and none on the other; then too few."""
    device = process.device
    result = evaluate(network, share(process), NUM_IMAGES, NUM_CLASSES, device, NUM_MISTAKES)
    data = [all_images()] if process.rank == 1 else []
    on_one_rank = evaluate(network, data, NUM_IMAGES, NUM_CLASSES, device, NUM_MISTAKES)
    told = []
    for wrong in (share(process)[:-1], share(process) + share(process)[:1]):
        with pytest.raises(RuntimeError) as caught:
            evaluate(network, wrong, NUM_IMAGES, NUM_CLASSES, device)
        told.append(str(caught.value))
    return result, on_one_rank, told[0], told[1]


@pytest.fixture(scope="module")
def answers() -> list[tuple[Errors, Errors, str, str]]:
    return run_in_ranks(evaluate_share, 2)


@pytest.mark.multi_process
def test_two_ranks_count_every_image_once_and_agree(
    answers: list[tuple[Errors, Errors, str, str]],
) -> None:
    (first, first_alone, *_), (second, second_alone, *_) = answers
    assert first == second
    assert first_alone == second_alone
    for result in (first, first_alone):
        assert result.num_images == NUM_IMAGES
        assert result.top1_error == pytest.approx(expected().top1_error, abs=1e-12)
        assert result.top5_error == pytest.approx(expected().top5_error, abs=1e-12)
        assert result.loss == pytest.approx(expected().loss, rel=1e-6)
        assert result.classes == expected().classes
    assert 0 < first.top5_error < first.top1_error < 1


@pytest.mark.multi_process
def test_the_mistakes_are_the_surest_of_all_ranks_with_the_surest_first(
    answers: list[tuple[Errors, Errors, str, str]],
) -> None:
    data = all_images()
    posteriors = network(data.images).float().softmax(dim=1)
    sorted_by_confidence = sorted(
        (-max(row), image, row.index(max(row)))
        for image, row in enumerate(posteriors.tolist())
        if row.index(max(row)) != data.labels[image]
    )
    assert len(sorted_by_confidence) > NUM_MISTAKES
    for result in (errors for first, alone, *_ in answers for errors in (first, alone)):
        assert [m.image for m in result.mistakes] == [m[1] for m in sorted_by_confidence[:5]]
        for mistake, (surely, image, prediction) in zip(
            result.mistakes, sorted_by_confidence, strict=False
        ):
            assert mistake.confidence == pytest.approx(-surely)
            assert (mistake.truth, mistake.prediction) == (data.labels[image], prediction)


def test_mistakes_are_in_no_checkpoint() -> None:
    errors = Errors(3, 0.5, 0.0, 1.0, mistakes=(Mistake(0, 1, 2, 0.9),))
    assert "mistakes" not in errors.state()
    assert Errors.from_state(errors.state()) == errors


@pytest.mark.multi_process
def test_a_wrong_number_of_images_is_an_error_on_all_ranks(
    answers: list[tuple[Errors, Errors, str, str]],
) -> None:
    for *_, too_few, too_many in answers:
        assert too_few == "an evaluation counted 16 images of 23"
        assert too_many == "an evaluation counted 31 images of 23"
