"""ImageNet's names are torchvision's, in the order of the WordNet numbers."""

import pytest
from torchvision.models import ResNet50_Weights

from vggdist.artifacts.weights import Description
from vggdist.config import ModelConfig
from vggdist.model.class_names import class_names

WORDNET = tuple(f"n{number:08d}" for number in range(1440764, 1441764))


def description(num_classes: int, classes: tuple[str, ...] = ()) -> Description:
    return Description(ModelConfig(num_classes=num_classes), 224, (0.0,) * 3, classes=classes)


@pytest.mark.parametrize("classes", [(), WORDNET], ids=["unknown", "wordnet"])
def test_a_thousand_classes_without_names_are_imagenets(classes: tuple[str, ...]) -> None:
    names = class_names(description(1000, classes))
    assert names == tuple(ResNet50_Weights.IMAGENET1K_V2.meta["categories"])
    assert (names[0], names[1], names[999]) == ("tench", "goldfish", "toilet tissue")


def test_names_of_ones_own_stay() -> None:
    own = tuple(f"thing {number}" for number in range(1000))
    assert class_names(description(1000, own)) == own
    assert class_names(description(2, ("cat", "dog"))) == ("cat", "dog")


def test_a_part_of_imagenet_or_another_order_keeps_its_numbers() -> None:
    assert class_names(description(10, WORDNET[:10])) == WORDNET[:10]
    turned = tuple(reversed(WORDNET))
    assert class_names(description(1000, turned)) == turned


def test_other_classes_without_names_are_numbers() -> None:
    assert class_names(description(3)) == ("0", "1", "2")
