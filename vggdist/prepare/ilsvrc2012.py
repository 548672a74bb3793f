"""ILSVRC2012 as image-net.org publishes it: names and checksums of its archives, and its size."""

from typing import NamedTuple


class Archive(NamedTuple):
    """A file to download."""

    name: str
    md5: str


ARCHIVES = {
    "train": Archive("ILSVRC2012_img_train.tar", "1d675b47d978889d74fa0da5fadfb00e"),
    "val": Archive("ILSVRC2012_img_val.tar", "29b22e2961454d5413ddabcf34fc5622"),
    "devkit": Archive("ILSVRC2012_devkit_t12.tar.gz", "fa75699e90414af021442c21a62c3abf"),
}
NUM_IMAGES = {"train": 1_281_167, "val": 50_000}
NUM_CLASSES = 1_000
