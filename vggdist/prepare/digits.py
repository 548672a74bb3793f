"""Small data sets that need no download: scikit-learn's handwritten digits as class folders."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vggdist.artifacts.paths import quote
from vggdist.errors import DataError

SMALLEST_SIDE, LARGEST_SIDE = 80, 160
_VAL_EVERY = 5
_MARKER = ".vggdist-digits"
_VERSION = "1\n"
_SEED = 1797


def write_digits(root: str | Path) -> Path:
    """Writes scikit-learn's 1,797 handwritten digits as a data set with train/ and val/.

    The images are RGB JPEGs with sides between 80 and 160 pixels, in folders 0 to 9; every fifth
    of a class is in val/. They are always the same. A folder that is already complete is left as
    it is; an interrupted run leaves nothing under `root`, so it is simply done again.

    Returns:
        `root` as a path.

    Raises:
        DataError: `root` holds something else, or cannot be written.
    """
    root = Path(root).expanduser().absolute()
    if _is_complete(root):
        return root
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(
            f"{quote(root)} is not empty and holds no finished digits data set; nothing in it was "
            "touched. Choose another folder, or remove this one."
        )
    partial = root.with_name(f".{root.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write_images(partial)
        (partial / _MARKER).write_text(_VERSION)
        try:
            partial.rename(root)  # replaces an empty folder, fails on one with something in it
        except OSError:
            if not _is_complete(root):  # else another process was faster
                raise
    except OSError as error:
        raise DataError(
            f"The digits cannot be written to {root}: {error.strerror}. Nothing is left of them; "
            "free space there or mend its permissions, or choose another folder."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


def _is_complete(root: Path) -> bool:
    marker = root / _MARKER
    return marker.is_file() and marker.read_text() == _VERSION


def _write_images(folder: Path) -> None:
    from sklearn.datasets import load_digits  # slow to import, and only this needs it

    digits = load_digits()
    for label in range(10):
        of_class = np.flatnonzero(digits.target == label)
        for place, number in enumerate(of_class):
            split = "val" if place % _VAL_EVERY == _VAL_EVERY - 1 else "train"
            path = folder / split / str(label) / f"{number:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            _image(digits.images[number], int(number)).save(path, quality=90)


def _image(strokes: NDArray[np.float64], number: int) -> Image.Image:
    """An 8 x 8 image with values 0 to 16 as an RGB image whose sides depend on its number.

    The digit keeps its shape and stands in the middle of a black canvas, whose longer side is at
    most a quarter longer, so that crops of the shorter side's length rarely cut it.
    """
    key = np.array([_SEED, number], dtype=np.uint64)
    drawn = [int(word) for word in np.random.Philox(key=key).random_raw(3)]
    short = SMALLEST_SIDE + drawn[0] % (LARGEST_SIDE - SMALLEST_SIDE + 1)
    long = short + drawn[1] % (min(LARGEST_SIDE, short * 5 // 4) - short + 1)
    size = (short, long) if drawn[2] % 2 else (long, short)
    digit = Image.fromarray((strokes * (255 / 16)).astype(np.uint8))
    digit = digit.resize((short, short), Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", size)
    canvas.paste(digit.convert("RGB"), ((size[0] - short) // 2, (size[1] - short) // 2))
    return canvas
