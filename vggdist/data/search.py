"""Finds every bad image of a set, once one has been met: reads all files, and decodes most."""

from __future__ import annotations

from contextlib import closing

from vggdist.data.bad_image import BadImage
from vggdist.data.header import START_OF_JPEG
from vggdist.data.manifest import Manifest
from vggdist.data.pillow import decoding_problem
from vggdist.data.probe import WindowProbe
from vggdist.data.read import EncodedImage, Reader, chunks
from vggdist.terminal import Progress


def find_every_bad(manifest: Manifest) -> list[BadImage]:
    """Images that cannot be read, have no header, are damaged JPEGs, or are not decoded.

    Of JPEGs, which are nearly all of a large set, the markers tell; decoding takes far longer.
    """
    bad = []
    with (
        closing(Reader(manifest)) as reader,
        WindowProbe() as probe,
        closing(Progress(manifest.num_images, unit="files", is_usual=False)) as progress,
    ):
        for part in chunks(range(manifest.num_images)):
            for image, read in zip(part, reader.read(part), strict=True):
                if isinstance(read, str):
                    bad.append(BadImage(image, read))
                elif not _is_jpeg(read) and not probe.decodes(read.encoded):
                    bad.append(BadImage(image, decoding_problem(read.encoded)))
                progress.advance()
    return bad


def _is_jpeg(image: EncodedImage) -> bool:
    return image.encoded[:2].tobytes() == START_OF_JPEG
