"""The oracle is Pillow, whatever the format and whatever stands before a JPEG's size."""

import io

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from tests.prepare.odd_images import good_images
from vggdist.data.header import (
    DamagedError,
    TooLargeError,
    _jpeg_size,
    image_size,
    size_from_beginning,
)


def encoded(width: int, height: int, image_format: str = "JPEG", **save: object) -> np.ndarray:
    buffer = io.BytesIO()
    mode = save.pop("mode", "RGB")
    Image.new(mode, (width, height)).save(buffer, image_format, **save)
    return np.frombuffer(buffer.getvalue(), dtype=np.uint8)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF"])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (500, 375), (37, 4096)])
def test_the_size_of_every_format_is_pillows(image_format, width, height):
    assert image_size(encoded(width, height, image_format)) == (height, width)


@pytest.mark.parametrize(
    "save",
    [
        {"progressive": True},
        {"mode": "L"},
        {"mode": "CMYK"},
        {"comment": b"\xff\xc0 is no marker here" * 99},
        {"exif": b"Exif\x00\x00" + b"\xff\xc0\x00\x11\x08\x00\x01\x00\x01" * 50},
        {"icc_profile": b"\xff" * 65000},
        {"restart_marker_blocks": 1},
        {"dpi": (300, 300)},
    ],
)
def test_a_jpegs_size_is_found_without_pillow_behind_anything(save):
    assert _jpeg_size(encoded(65, 43, **save).data) == (43, 65)


def test_filling_before_a_marker_is_passed_over():
    plain = encoded(65, 43).tobytes()
    filled = plain[:2] + b"\xff\xff\xff" + plain[2:]
    assert image_size(np.frombuffer(filled, dtype=np.uint8)) == (43, 65)


def test_an_exif_orientation_does_not_turn_the_size():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert image_size(encoded(65, 43, exif=exif)) == (43, 65)


def test_a_tiffs_orientation_does_not_turn_its_size_either():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert image_size(encoded(65, 43, "TIFF", exif=exif)) == (43, 65)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_at_any_byte_is_refused(progressive):
    thumbnail = b"Exif\x00\x00" + encoded(8, 8).tobytes()  # it has an end of its own
    whole = encoded(65, 43, progressive=progressive, exif=thumbnail)
    for length in range(len(whole)):
        with pytest.raises((DamagedError, OSError, SyntaxError)):
            image_size(whole[:length])
    assert image_size(whole) == (43, 65)


@pytest.mark.parametrize(("height", "refused"), [(13_765, False), (13_766, True)])
def test_a_jpeg_of_more_pixels_than_pillow_decodes_is_refused(height, refused):
    data = encoded(65, 43).copy()
    frame = data.tobytes().index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = np.frombuffer(
        height.to_bytes(2, "big") + (13_000).to_bytes(2, "big"), np.uint8
    )
    if refused:
        with pytest.raises(Image.DecompressionBombError):
            Image.open(io.BytesIO(data))
        with pytest.raises(TooLargeError, match="more pixels than Pillow decodes; shrink it"):
            image_size(data)
    else:
        assert image_size(data) == (height, 13_000)


def photo(**save: object) -> bytes:
    coarse = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((200, 150), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, **save)
    return buffer.getvalue()


OVERWRITTEN = {
    "the start of an image": b"\xff\xd8",
    "the start of a frame": b"\xff\xc0",
    "tables of nothing": b"\xff\xc4",
    "an unknown marker": b"\xff\x55",
}


@pytest.mark.parametrize("kind", OVERWRITTEN)
@pytest.mark.parametrize("save", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_jpeg_with_other_bytes_among_its_pixels_is_refused_as_pillow_refuses_it(kind, save):
    whole = photo(**save)
    assert image_size(np.frombuffer(whole, dtype=np.uint8)) == (150, 200)
    middle = (whole.rindex(b"\xff\xda") + len(whole)) // 2
    other = OVERWRITTEN[kind]
    damaged = whole[:middle] + other + whole[middle + len(other) :]
    with pytest.raises(OSError, match="broken data stream"):
        Image.open(io.BytesIO(damaged)).load()
    with pytest.raises(DamagedError, match=r"^it is damaged: the marker [0-9A-F]{2} stands among"):
        image_size(np.frombuffer(damaged, dtype=np.uint8))


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in good_images()
        if name.endswith((".jpg", ".JPEG")) and name != "short metadata.jpg"  # Pillow refuses it
    ],
)
def test_no_odd_image_that_pillow_decodes_is_called_damaged(name):
    content = good_images()[name]
    with Image.open(io.BytesIO(content)) as image:
        expected = image.height, image.width
    assert image_size(np.frombuffer(content, dtype=np.uint8)) == expected


def test_what_follows_the_end_of_a_jpeg_does_not_matter():
    trailing = encoded(65, 43).tobytes() + b"garbage" * 99
    assert image_size(np.frombuffer(trailing, dtype=np.uint8)) == (43, 65)


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8", b"\xff\xd8\xff\xd9" * 20])
def test_what_is_no_image_has_no_size(content):
    with pytest.raises(UnidentifiedImageError):
        image_size(np.frombuffer(content, dtype=np.uint8))


@pytest.mark.parametrize("progressive", [False, True])
def test_the_beginning_of_a_jpeg_is_enough_and_never_gives_another_size(progressive):
    thumbnail = b"Exif\x00\x00" + encoded(8, 8).tobytes()
    whole = encoded(65, 43, progressive=progressive, exif=thumbnail)
    found = [size_from_beginning(whole[:length]) for length in range(len(whole) + 1)]
    first = found.index((43, 65))
    assert first < whole.tobytes().rindex(b"\xff\xda")  # the last scan
    assert found == [None] * first + [(43, 65)] * (len(whole) + 1 - first)


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8", b"\x89PNG\r\n\x1a\n" * 9])
def test_the_beginning_of_what_is_no_jpeg_tells_nothing(content):
    assert size_from_beginning(np.frombuffer(content, dtype=np.uint8)) is None
