"""Names of classes; ImageNet's come with torchvision, so they need no network."""

import re

from vggdist.artifacts.weights import Description
from vggdist.config import NUM_IMAGENET_CLASSES


def class_names(description: Description) -> tuple[str, ...]:
    """A name for each class, in the order of labels.

    The file's own names. ImageNet's, if the file has 1000 classes without names or named only by
    WordNet numbers such as n01440764 (every ImageNet network orders its labels by these numbers).
    Else the labels as numbers.
    """
    classes, num_classes = description.classes, description.model.fc8_width
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
