"""Checks the images of an evaluation first, so that it does not fail on one hours later."""

from __future__ import annotations

from vggdist.artifacts.names import listed
from vggdist.data.bad_image import BadImage
from vggdist.data.glance import find_bad
from vggdist.data.manifest import Manifest
from vggdist.data.plan import evaluation_share
from vggdist.distributed import process as world
from vggdist.distributed.process import Process
from vggdist.distributed.rank import on_main
from vggdist.errors import DataError


def require_whole(images: Manifest, process: Process) -> None:
    """Checks the first and last bytes of all images, shared by the ranks; collective.

    Raises:
        DataError: some are bad.
    """
    share = evaluation_share(images.num_images, process.rank, process.world_size)
    found = [bad for of_rank in world.gather(find_bad(images, share.tolist())) for bad in of_rank]
    on_main(process, lambda: _refuse(found, images))


def _refuse(found: list[BadImage], images: Manifest) -> None:
    if not found:
        return
    first, *others = sorted(found, key=lambda bad: bad.image)
    message, remedy = f"{first.sentence(images)}.", "it with a good copy"
    if others:
        names = listed([images.described(bad.image) for bad in others])
        message += f" Of the {images.num_images} images of this set, neither can {names}."
        remedy = "them with good copies"
    raise DataError(
        f"{message} Replace {remedy}. An evaluation counts every image, so none takes its place."
    )
