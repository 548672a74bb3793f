"""ImageNet's three archives in miniature: the same nesting, names and devkit, a few tiny images."""

import gzip
import io
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

TRAIN_COUNTS = {"n00000021": 4, "n00000003": 6, "n00000150": 1, "n00000008": 9}
"""Training images of each class, in the order of the archive, which is not that of the labels."""
VAL_CLASSES = ["n00000150", "n00000003", "n00000021", "n00000008", "n00000003", "n00000008"]
"""The classes of ILSVRC2012_val_00000001.JPEG and of those after it."""
IDS = {"n00000003": 4, "n00000008": 2, "n00000021": 1, "n00000150": 3}
"""ILSVRC2012_ID of each class: in another order than the WordNet ids."""

BROKEN = "n00000008/n00000008_3.JPEG"


@dataclass
class Miniature:
    """Paths of the archives, and what went into them."""

    train: Path
    val: Path
    devkit: Path
    content: dict[str, dict[str, bytes]]
    """Split -> class/file -> bytes, in the order of the archives."""

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        return self.train, self.val, self.devkit


def build_miniature(folder: Path) -> Miniature:
    """Writes the three archives into a folder; one training image is no image."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(2012)
    train = {
        f"{name}/{name}_{i * 7 % 11}.JPEG": jpeg(random, 30 + 5 * i, 44)
        for name, count in TRAIN_COUNTS.items()
        for i in range(count)
    }
    assert BROKEN in train
    train[BROKEN] = b"\xff\xd8 not an image any more"
    val = {
        f"{name}/ILSVRC2012_val_{i + 1:08d}.JPEG": jpeg(random, 60, 33 + i)
        for i, name in enumerate(VAL_CLASSES)
    }
    miniature = Miniature(
        folder / "ILSVRC2012_img_train.tar",
        folder / "ILSVRC2012_img_val.tar",
        folder / "ILSVRC2012_devkit_t12.tar.gz",
        {"train": train, "val": val},
    )
    miniature.train.write_bytes(train_tar(train))
    shuffled = sorted(val, key=lambda name: name[-7:-5] + name)
    miniature.val.write_bytes(tar((Path(name).name, val[name]) for name in shuffled))
    miniature.devkit.write_bytes(devkit())
    return miniature


def train_tar(images: Mapping[str, bytes]) -> bytes:
    """The outer archive: a tar for each class."""
    classes = dict.fromkeys(name.partition("/")[0] for name in images)
    return tar(
        (
            f"{one}.tar",
            tar((Path(name).name, images[name]) for name in images if name.startswith(one)),
        )
        for one in classes
    )


def tar(
    members: Iterable[tuple[str | tarfile.TarInfo, bytes]], format: int = tarfile.GNU_FORMAT
) -> bytes:
    """A tar of names, or of whole headers, and contents."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=format) as file:
        for name, content in members:
            header = name
            if isinstance(header, str):
                header = tarfile.TarInfo(header)
                header.size = len(content)
            file.addfile(header, io.BytesIO(content))
    return written.getvalue()


def devkit(
    ids: Mapping[str, int] = IDS,
    val_ids: Sequence[int | str] = tuple(IDS[name] for name in VAL_CLASSES),
    train_counts: Mapping[str, int] = TRAIN_COUNTS,
) -> bytes:
    """The kit as image-net.org packs it, meta.mat with inner nodes of the tree after the leaves."""
    fields = (
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    )
    leaves = [
        (number, name, "cat, true cat", "a leaf", 0, np.empty(0), 0, train_counts.get(name, 0))
        for name, number in sorted(ids.items(), key=lambda item: item[1])
    ]
    inner = [
        (len(ids) + 1, "n00000001", "animal", "inner", 2, np.array([1, 2]), 1, 0),
        (len(ids) + 2, "n00000002", "entity", "inner", 1, np.array([len(ids) + 1]), 2, 0),
    ]
    synsets = np.zeros((len(leaves) + len(inner), 1), dtype=[(name, "O") for name in fields])
    for row, values in enumerate([*leaves, *inner]):
        synsets[row, 0] = values
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    lines = "".join(f"{number}\n" for number in val_ids).encode()
    return kit_of(meta.getvalue(), lines)


def kit_of(meta: bytes, ground_truth: bytes) -> bytes:
    """The archive around the two files that matter."""
    name = "ILSVRC2012_devkit_t12"
    folder = tarfile.TarInfo(f"{name}/data")
    folder.type = tarfile.DIRTYPE
    link = tarfile.TarInfo(f"{name}/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return gzip.compress(
        tar(
            [
                (folder, b""),
                (f"{name}/readme.txt", b"read me"),
                (link, b""),
                (f"{name}/data/meta.mat", meta),
                (f"{name}/data/ILSVRC2012_validation_ground_truth.txt", ground_truth),
            ]
        )
    )


def jpeg(random: np.random.Generator, width: int, height: int) -> bytes:
    """A JPEG of noise."""
    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG", quality=80)
    return encoded.getvalue()
