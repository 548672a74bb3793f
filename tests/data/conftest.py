"""Images and class folders that the tests of `vggdist/data` make for themselves."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakeImage = Callable[..., Path]
MakeTree = Callable[..., Path]


@pytest.fixture(scope="session")
def make_image() -> MakeImage:
    """Writes an image whose colours change smoothly, so that a pixel's shift shows."""

    def make(
        path: Path, width: int, height: int, mode: str = "RGB", seed: int = 0, **save: object
    ) -> Path:
        random = np.random.default_rng([seed, width, height])
        coarse = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        path.parent.mkdir(parents=True, exist_ok=True)
        image.convert(mode).save(path, **save)
        return path

    return make


@pytest.fixture(scope="session")
def make_tree(make_image: MakeImage) -> MakeTree:
    """Writes class folders with images of several sizes; `counts` is class name -> images."""

    def make(folder: Path, counts: dict[str, int]) -> Path:
        for label, (name, count) in enumerate(counts.items()):
            for i in range(count):
                width, height = 40 + 7 * (i % 9), 36 + 5 * ((i + label) % 11)
                make_image(folder / name / f"{i:03d}.jpg", width, height, seed=100 * label + i)
        return folder

    return make
