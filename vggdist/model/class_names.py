"""What classes are called; ImageNet's names come with torchvision, so they need no network."""

import re

from vggdist.artifacts.weights import Description

NUM_IMAGENET_CLASSES = 1000


def class_names(description: Description) -> tuple[str, ...]:
    """A name for each class, in the order of labels.

    The file's own names; ImageNet's where the file has none for 1000 classes, or WordNet numbers
    such as n01440764 for all of them (labels are in the order of these numbers, in every network
    of ImageNet); else the labels as numbers.
    """
    classes, num_classes = description.classes, description.model.num_classes
    is_imagenet = num_classes == NUM_IMAGENET_CLASSES and (
        not classes
        or (
            all(re.fullmatch(r"n\d{8}", name) for name in classes)
            and list(classes) == sorted(classes)
        )
    )
    if is_imagenet:
        from torchvision.models import VGG16_Weights  # takes a second

        return tuple(VGG16_Weights.IMAGENET1K_V1.meta["categories"])
    return classes or tuple(map(str, range(num_classes)))
