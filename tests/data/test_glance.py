"""The oracle is Pillow, which decodes all of a file."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggdist.data.glance import find_bad, is_whole
from vggdist.data.manifest import Manifest, from_classes
from vggdist.data.manifest_file import load_manifest
from vggdist.prepare.packing import Packing
from vggdist.prepare.preparation import prepare
from vggdist.prepare.sources import FolderSource

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")


def picture(side: int = 120) -> Image.Image:
    random = np.random.default_rng(1)
    return Image.fromarray(random.integers(0, 256, (side, side + 7, 3), dtype=np.uint8))


def encoded(image_format: str, mode: str = "RGB", **save: object) -> bytes:
    buffer = io.BytesIO()
    picture().convert(mode).save(buffer, image_format, **save)
    return buffer.getvalue()


def decodes(content: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def bad_of(folder: Path, contents: list[bytes]) -> dict[int, str]:
    """Number of each bad file -> its reason."""
    names = [f"{number:04d}.jpg" for number in range(len(contents))]
    for name, content in zip(names, contents, strict=True):
        (folder / "class").mkdir(exist_ok=True)
        (folder / "class" / name).write_bytes(content)
    manifest = from_classes(folder, "val", [("class", names)])
    return {bad.image: bad.reason for bad in find_bad(manifest, range(len(names)))}


def settled_at_a_glance(content: bytes) -> bool:
    return is_whole(content[:16384], content[-64:], len(content))


GOOD = {
    **{image_format: encoded(image_format) for image_format in FORMATS},
    "progressive": encoded("JPEG", progressive=True),
    "grey": encoded("JPEG", "L"),
    "CMYK": encoded("JPEG", "CMYK"),
    "colour profile": encoded("JPEG", icc_profile=b"\xff" * 65000),
    "palette": encoded("PNG", "P"),
    "lossless": encoded("WEBP", lossless=True),
    "data behind it": encoded("JPEG") + b"\0" * 500,
    "data behind a PNG": encoded("PNG") + b"\0" * 500,
    "a size of 0 in the header": encoded("BMP")[:2] + bytes(4) + encoded("BMP")[6:],
}


def test_good_images_of_all_formats_are_good(tmp_path: Path) -> None:
    assert all(decodes(content) for content in GOOD.values())
    assert bad_of(tmp_path, list(GOOD.values())) == {}
    settled = {name for name, content in GOOD.items() if settled_at_a_glance(content)}
    assert {"JPEG", "PNG", "BMP", "WEBP", "progressive", "CMYK"} < settled


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_file_that_is_cut_off_anywhere_is_bad(tmp_path: Path, image_format: str) -> None:
    whole = encoded(image_format)
    lengths = [1, 10, 100, 700, len(whole) // 2, len(whole) - 200, len(whole) - 30]
    cut = [whole[:length] for length in lengths]
    assert not any(decodes(content) for content in cut)
    assert sorted(bad_of(tmp_path, cut)) == list(range(len(lengths)))


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    bad = bad_of(tmp_path, [GOOD["JPEG"][:-500], b"", b"text" * 100, GOOD["PNG"]])
    assert bad == {
        0: "it is cut off: its end is missing",
        1: "the file is empty",
        2: "it is no image that Pillow recognizes",
    }


def test_a_header_that_claims_too_many_pixels_is_believed_by_nobody(tmp_path: Path) -> None:
    """Both sides become 65,535 pixels in the header alone."""
    jpeg, png = GOOD["JPEG"], GOOD["PNG"]
    frame = jpeg.index(b"\xff\xc0") + 5
    claims = [
        jpeg[:frame] + b"\xff" * 4 + jpeg[frame + 4 :],
        png[:16] + b"\0\0\xff\xff" * 2 + png[24:],
    ]
    assert not any(settled_at_a_glance(content) for content in claims)
    assert sorted(bad_of(tmp_path, claims)) == [0, 1]


def test_a_png_without_its_end_is_bad_though_its_pixels_are_all_there(tmp_path: Path) -> None:
    without_end = GOOD["PNG"][:-12]
    assert decodes(without_end)
    assert bad_of(tmp_path, [without_end]) == {
        0: "DALI does not decode this PNG (RGB), though Pillow does; save it again as an RGB JPEG "
        "or PNG"
    }


def test_a_file_that_is_gone_or_a_pipe_is_bad_and_does_not_hang(tmp_path: Path) -> None:
    (tmp_path / "class").mkdir()
    os.mkfifo(tmp_path / "class" / "pipe.jpg")
    manifest = from_classes(tmp_path, "val", [("class", ["gone.jpg", "pipe.jpg"])])
    gone, pipe = find_bad(manifest, [0, 1])
    assert gone.reason == "there is no such file"
    assert pipe.reason == "it is no regular file"


@pytest.fixture
def shards(tmp_path: Path) -> Manifest:
    """The validation images of a data set in shards, of which the image number 1 is cut off."""
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for number in range(3):
                content = GOOD["PNG" if number else "JPEG"]
                cut = len(content) // 2 if (split, name, number) == ("val", "a", 1) else None
                path = tmp_path / "set" / split / name / f"{number}.jpg"
                path.write_bytes(content[:cut])
    prepare(FolderSource(tmp_path / "set"), tmp_path / "shards", Packing("shards"))
    return load_manifest(tmp_path / "shards" / "vggdist-manifest.npz", tmp_path / "shards").val


def test_images_in_shards_are_looked_at_where_they_are(shards: Manifest) -> None:
    assert shards.shards is not None
    assert [bad.image for bad in find_bad(shards, range(6))] == [1]
    assert [bad.image for bad in find_bad(shards, [4, 1])] == [1]
    assert find_bad(shards, [0, 2, 5]) == []
