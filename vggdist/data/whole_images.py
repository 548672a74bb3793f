"""Whole images for dense and multi-crop evaluation (section 3.2): each image of a set once, at
several scales, grouped by shape.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggdist.config import DataConfig, Triple
from vggdist.data.bad_image import BadImages
from vggdist.data.batch import normalized
from vggdist.data.decode import Graph
from vggdist.data.geometry import rescaled_sizes
from vggdist.data.lanes import Lanes
from vggdist.data.loader import with_index
from vggdist.data.manifest import Manifest
from vggdist.data.manifest_file import find_manifest, load_contents
from vggdist.data.plan import Samples, evaluation_samples, evaluation_share
from vggdist.data.prefetch import Prefetcher
from vggdist.data.read import Reader
from vggdist.data.resize import BatchMemory, rescale
from vggdist.data.search import find_every_bad
from vggdist.errors import DataError
from vggdist.terminal import Progress

_PATIENCE_SECONDS = 2.0  # before progress is shown
_MAX_LANES = 2  # each holds several groups
_MOST_MEGAPIXELS = 16  # of a rescaled image; D's first maps then take 4 GB each, in fp32


@dataclass(frozen=True, eq=False)
class WholeImages:
    """n whole images of one shape, the shorter side rescaled to Q."""

    scale: int
    """Q, pixels."""
    pixels: Tensor
    """(n, 3, height, width) uint8, channels_last, RGB, on the device."""
    labels: Tensor
    """(n,) int64, on the device."""
    index: NDArray[np.int64]
    """(n,), numbers of the images in their manifest."""
    mean: Tensor
    """(1, 3) float32, subtracted from R, G and B, on the device."""
    std: Triple = (1.0, 1.0, 1.0)
    """Divisors of R, G and B."""
    dtype: torch.dtype = torch.float32
    """The type of `images`."""

    def __len__(self) -> int:
        return len(self.index)

    @property
    def images(self) -> Tensor:
        """(n, 3, height, width), channels_last, the network's input; computed on each access, since
        it is four times as large as the pixels."""
        return normalized(self.pixels, self.mean, self.std, self.dtype)


Group = list[WholeImages]
"""Images decoded together: for every scale, in order, its shapes."""


class WholeImageLoader(Prefetcher[Group]):
    """One rank's share of whole images, in groups: each image of the set on one rank, once.

    A rank's images are sorted by width over height, so images of one shape are adjacent at every
    scale, and those without a readable size come first, where they end the evaluation at once.
    Sizes come from the manifest if `vggdist check` or `vggdist prepare` has stored them, else from
    the images' headers before the first group; they only affect the order.

    Memory, besides what the consumer holds, is that of at most data.prefetch + 2 finished groups
    and six groups decoded at their own size (on a GPU data.prefetch + 1 and three), and of
    data.read_ahead groups of encoded images. A group takes 3 bytes per pixel: 32 ImageNet images
    take 18 MB decoded, and 8, 19 and 34 MB at Q = 256, 384 and 512. An image of extreme shape
    counts by its rescaled pixels.

    Args:
        manifest: the set.
        data: mean, std, prefetch, read_ahead; both count groups.
        scales: values of Q, the rescaled shorter side, pixels.
        group_size: images decoded together; the last group of a rank may have fewer.
        rank: of `world_size`.
        world_size: ranks that share the set.
        device: of the images.
        dtype: of `WholeImages.images`.
        num_threads: decoding threads.
        only: numbers of the images to share, instead of the whole set.

    Raises:
        DataError: an image is so long that it would not fit into memory when rescaled.
    """

    def __init__(
        self,
        manifest: Manifest,
        data: DataConfig,
        *,
        scales: Sequence[int],
        group_size: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        num_threads: int = 1,
        only: Sequence[int] | None = None,
    ) -> None:
        images = np.asarray(range(manifest.num_images) if only is None else only, dtype=np.int64)
        share = images[evaluation_share(len(images), rank, world_size)]
        sizes = _sizes(manifest, share, data.upright, show=rank == 0)
        _require_to_fit(manifest, share, sizes, max(scales))
        shape = np.divide(sizes[:, 1], sizes[:, 0], where=sizes[:, 0] > 0, out=np.zeros(len(share)))
        share = share[np.lexsort((share, shape))]
        self.num_images = len(share)
        self.num_groups = -(-len(share) // group_size)
        # Of the rank with the most: all ranks may need the same number of collectives.
        self.num_rounds = -(-len(evaluation_share(len(images), 0, world_size)) // group_size)

        def samples(number: int, _known_bad: Set[int]) -> Samples | None:
            part = share[number * group_size : (number + 1) * group_size]
            return evaluation_samples(part, scales[0]) if len(part) else None

        device = with_index(device)
        mean = torch.tensor([data.mean], dtype=torch.float32, device=device)
        memory = BatchMemory(device)

        def make(samples: Samples, decoded: Iterable[object]) -> Group:
            return [
                WholeImages(
                    same_shape.scale,
                    same_shape.pixels,
                    torch.from_numpy(manifest.labels[samples.image[same_shape.rows]]).to(device),
                    samples.image[same_shape.rows],
                    mean,
                    data.std,
                    dtype,
                )
                for same_shape in rescale(decoded, scales, memory)
            ]

        lanes = Lanes(
            manifest,
            samples,
            BadImages(manifest, search=find_every_bad),
            Graph(
                group_size,
                device,
                upright=data.upright,
                hardware_decoder_share=data.hardware_decoder_share,
            ),
            make,
            read_ahead=data.read_ahead,
            num_threads=num_threads,
            max_lanes=_MAX_LANES,
        )
        super().__init__(lanes, data.prefetch)


def _require_to_fit(
    manifest: Manifest, images: NDArray[np.int64], sizes: NDArray[np.int64], scale: int
) -> None:
    rescaled = rescaled_sizes(np.maximum(sizes, 1), scale)
    too_large = np.flatnonzero(rescaled.prod(axis=1) > _MOST_MEGAPIXELS * 1e6)
    if len(too_large):
        first = too_large[0]
        height, width = sizes[first].tolist()
        raise DataError(
            f"The image {manifest.described(int(images[first]))} is {width} x {height} pixels. "
            f"Whole, with its shorter side rescaled to {scale}, it would have more than the "
            f"{_MOST_MEGAPIXELS} megapixels that may be needed at once. Crop it, or evaluate "
            "centre crops."
        )


def _sizes(
    manifest: Manifest, images: NDArray[np.int64], upright: bool, show: bool
) -> NDArray[np.int64]:
    """Height and width of images, (n, 2); 0 if unknown.

    Args:
        upright: whether they are turned by their EXIF orientation.
        show: whether to show progress if it takes long.
    """
    sizes = _known_sizes(manifest, upright)[images]
    unknown = np.flatnonzero(sizes.min(axis=1, initial=1) == 0)
    progress, show_from = None, time.monotonic() + _PATIENCE_SECONDS
    with contextlib.closing(Reader(manifest, upright)) as reader:
        for done, found in enumerate(reader.sizes(images[unknown].tolist())):
            sizes[unknown[done]] = found or 0
            if progress is None and show and time.monotonic() > show_from:
                progress = Progress(len(unknown), done, unit="headers")
            if progress is not None:
                progress.advance()
    if progress is not None:
        progress.close()
    return sizes


def _known_sizes(manifest: Manifest, upright: bool) -> NDArray[np.int64]:
    """Sizes of all images that the stored manifest has, else 0."""
    unknown = np.zeros((manifest.num_images, 2), dtype=np.int64)
    root = manifest.folder.parent
    stored = find_manifest(root) if manifest.split else None
    contents = load_contents(stored, root) if stored else None
    if contents is None or len(contents[manifest.split].sizes) != manifest.num_images:
        return unknown
    known = contents[manifest.split]
    sizes = known.sizes[:, ::-1].astype(np.int64)
    if upright:
        if known.orientations is None:
            return unknown
        sizes = np.where(known.orientations[:, None] >= 5, sizes[:, ::-1], sizes)
        sizes[known.orientations == 0] = 0
    return sizes
