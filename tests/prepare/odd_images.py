"""Images of every odd kind as bytes, good ones and broken ones, and what may befall a decoder."""

import io
import os
import signal
import struct
import time
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from vggdist.data.examine import examine_image
from vggdist.data.manifest import Place
from vggdist.data.pillow import Examined

NOT_UTF8 = os.fsdecode(b"a b \xc3\xbc \xff.jpg")
"""A file name that is no text in UTF-8."""


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def small_set(root: Path, per_class: int = 2) -> Path:
    """train/ and val/ with cats and dogs, no two images alike."""
    for s, split in enumerate(("train", "val")):
        for c, name in enumerate(("cat", "dog")):
            for i in range(per_class):
                content = encoded(picture(40 + i, 30, seed=10 * s + c))
                write(root / split / name / f"{i}.jpg", content)
    return root


def picture(width: int = 60, height: int = 50, seed: int = 0) -> Image.Image:
    """Coarse noise: compressible, but nowhere empty."""
    coarse = np.random.default_rng([seed, width]).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def good_images() -> dict[str, bytes]:
    """Name -> an image that training can use."""
    image = picture()
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = np.tile(np.arange(60, dtype=np.uint16) * 1000, (50, 1))
    frames = {"save_all": True, "append_images": [image.rotate(90)]}
    return {
        "plain.jpg": encoded(image),
        "progressive.jpg": encoded(image, progressive=True),
        "gray.jpg": encoded(image.convert("L")),
        "cmyk.jpg": encoded(image.convert("CMYK")),
        "turned.jpg": encoded(image, exif=exif),
        "damaged exif.jpg": encoded(image, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f"),
        "1x1.jpg": encoded(picture(1, 1)),
        "7x500.jpg": encoded(picture(7, 500)),
        "garbage behind.jpg": encoded(image) + bytes(1000),
        "short metadata.jpg": short_metadata(encoded(image)),
        "damaged pixels.tif": damaged_pixels(encoded(image, "TIFF", compression="tiff_lzw")),
        "two pictures.jpg": encoded(image, "MPO", **frames),
        "png.JPEG": encoded(image, "PNG"),
        "bmp.png": encoded(image, "BMP"),
        "ppm.jpg": encoded(image, "PPM"),
        "16 bit.png": encoded(Image.fromarray(deep), "PNG"),
        "palette.png": encoded(image.convert("P"), "PNG"),
        "alpha.png": encoded(image.convert("RGBA"), "PNG"),
        "gray alpha.png": encoded(image.convert("LA"), "PNG"),
        "black and white.png": encoded(image.convert("1"), "PNG"),
        "plain.bmp": encoded(image, "BMP"),
        "plain.tiff": encoded(image, "TIFF"),
        "lzw.tif": encoded(image, "TIFF", compression="tiff_lzw"),
        "plain.webp": encoded(image, "WEBP"),
        "animated.webp": encoded(image, "WEBP", **frames),
    }


def short_metadata(jpeg: bytes) -> bytes:
    """A JPEG that Pillow does not recognize, though other decoders skip what it stumbles over."""
    return jpeg[:2] + b"\xff\xe0\x00\x07JFIF\0" + jpeg[2:]


def damaged_pixels(tiff: bytes) -> bytes:
    """A TIFF that Pillow does not decode, though other decoders hand out some pixels."""
    middle = len(tiff) // 2
    return tiff[:middle] + bytes([255]) * 8 + tiff[middle + 8 :]


def bad_images() -> dict[str, tuple[bytes, str]]:
    """Name -> an image that training cannot use, and how the reason for it begins."""
    image = picture(120, 90)
    jpeg, png, webp = encoded(image), encoded(image, "PNG"), encoded(image, "WEBP")
    unknown, truncated = "it is no image", "Pillow does not decode it: image file is truncated"
    frame = jpeg.index(b"\xff\xc0")  # marker, length (2 bytes), bits per colour
    data = png.index(b"IDAT")
    bad = {
        "empty.jpg": (b"", "the file is empty"),
        "random.jpg": (np.random.default_rng(0).bytes(5000), unknown),
        "header only.jpg": (jpeg[:20], unknown),
        "tables only.jpg": (jpeg[:400], "Pillow does not decode it: Truncated File Read"),
        "12 bit.jpg": (jpeg[: frame + 4] + b"\x0c" + jpeg[frame + 5 :], unknown),
        "lossless.jpg": (jpeg[: frame + 1] + b"\xc3" + jpeg[frame + 2 :], "Pillow does not"),
        "cut.png": (png[: len(png) // 2], truncated),
        "flipped bits.png": (
            png[: data + 100] + bytes(b ^ 255 for b in png[data + 100 : data + 110]) + png[-100:],
            "Pillow does not decode it: broken",
        ),
        "no end.png": (png[:-12], "DALI does not decode this PNG (RGB), though Pillow does"),
        "checksum.png": (
            png[:-13] + bytes([png[-13] ^ 255]) + png[-12:],
            "DALI does not decode this PNG (RGB), though Pillow does",
        ),
        "cut.webp": (webp[: len(webp) // 2], "Pillow does not decode it"),
        "bomb.png": (bomb(60_000), "its header claims more pixels than Pillow decodes"),
        "bomb.jpg": (
            jpeg[: frame + 5] + struct.pack(">HH", 14_000, 13_000) + jpeg[frame + 9 :],
            "its header claims more pixels than Pillow decodes",
        ),
        "gif.jpg": (encoded(image, "GIF"), "GIF is a format that DALI does not decode"),
        "ico.png": (encoded(image, "ICO"), "ICO is a format that DALI does not decode"),
        "1 bit.tiff": (encoded(image.convert("1"), "TIFF"), "DALI does not decode this TIFF (1)"),
    }
    for percent in (50, 70, 90, 99):
        bad[f"cut at {percent}.jpg"] = (jpeg[: len(jpeg) * percent // 100], truncated)
    return bad


def bomb(side: int) -> bytes:
    """A small PNG whose header claims side x side pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def examine_with_accidents(place: Place) -> Examined:
    """`examine_image`, except that some file names do to a process what a bad decoder can do."""
    if b"segfault" in place.path:
        os.kill(os.getpid(), signal.SIGSEGV)
    if b"abort" in place.path:
        os.abort()
    if b"exit" in place.path:
        os._exit(7)
    if b"hang" in place.path:
        time.sleep(600)
    if b"glutton" in place.path:
        return Examined(reason=_greedy())
    return examine_image(place)


def _greedy() -> str:
    try:
        return f"it has {len(bytearray(32 << 30))} bytes"
    except MemoryError:
        return "it does not fit into memory"
