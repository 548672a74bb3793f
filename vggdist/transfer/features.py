"""Features of images for other tasks (Appendix B): what a trained network's last layers do on whole
images, averaged over places, mirror images and scales."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vggdist.artifacts.contents import ContentsDigest
from vggdist.artifacts.posteriors import require_finite
from vggdist.artifacts.run_folder import open_weights, precision_of
from vggdist.config import Config
from vggdist.data.dataset import open_dataset, open_split
from vggdist.data.folders import existing_folder, list_classes, names_in
from vggdist.data.geometry import require_scales
from vggdist.data.glance import require_whole
from vggdist.data.manifest import Manifest, from_classes
from vggdist.data.manifest_file import SPLITS, find_manifest, require_usable
from vggdist.data.survey import survey_images
from vggdist.data.whole_images import Group, WholeImageLoader, WholeImages
from vggdist.distributed import process as world
from vggdist.distributed.precision import DTYPES, resolve_precision
from vggdist.distributed.process import Process
from vggdist.evaluation.scores import maps_with_mirrored, mean_of_mirrored, most_pixels
from vggdist.model.dense import DenseNetwork
from vggdist.model.loading import build_network
from vggdist.terminal import Progress
from vggdist.transfer.features_file import Aggregate, FeatureLayer, Features, Recipe

logger = logging.getLogger("vggdist")

GROUP_SIZE = 32
"""Images that are decoded together; their windows share each pass over fc6's weights."""


@dataclass(frozen=True)
class Request:
    """Whose features of which images are wanted."""

    network: str
    """A run folder, a checkpoint or a weights file."""
    root: str
    """A data set with train/ and val/, whose images are all taken, or a folder of class folders."""
    scales: tuple[int, ...] = ()
    """Q, pixels; empty: those of Appendix B, 256, 384 and 512 for crops of 224 pixels."""
    layer: FeatureLayer = "fc7"
    """fc7 after its ReLU, at every window; or the last pooled maps."""
    aggregate: Aggregate = "average"
    """What becomes of several scales."""
    flip: bool = True
    """Average with the mirror image."""
    overrides: tuple[str, ...] = ()
    """`section.key=value`."""


@dataclass(frozen=True)
class _Part:
    """Images of one manifest, and what stands before their names."""

    prefix: str
    images: Manifest


def compute_features(request: Request) -> Features:
    """Every image once, as a descriptor of length 1 (L2).

    The activations are averaged over all places, then with those of the mirror image; scales are
    averaged, or stacked side by side; the whole descriptor is normalized in the end, as Appendix B
    says it. A descriptor of zeros stays.

    Raises:
        VggdistError: something that the user can solve.
    """
    weights = open_weights(request.network)
    network = weights.description
    config = network.configure(request.root, request.overrides)
    usual = [round(network.crop_size * scale / 224) for scale in (256, 384, 512)]
    scales = require_scales(request.scales or usual, network.crop_size)
    parts = _open_parts(request.root)
    with ExitStack() as stack:
        process = stack.enter_context(world.joined(config.device))
        trained = precision_of(request.network)
        config, why = resolve_precision(config, process, trained=trained)
        logger.info(why)
        require_whole([part.images for part in parts], process)
        dense = DenseNetwork(
            build_network(weights, config.model, convolutions_only=request.layer == "pool5"),
            DTYPES[config.resolved_precision],
            process.device,
        )
        extraction = _Extraction(dense, request, scales, config, process)
        progress = Progress(sum(part.images.num_images for part in parts))
        rows = np.concatenate([extraction.rows(part.images, progress) for part in parts])
        progress.close()
    return Features(
        rows,
        np.concatenate([part.images.labels for part in parts]).astype(np.int64),
        tuple(
            part.prefix + part.images.name(image)
            for part in parts
            for image in range(part.images.num_images)
        ),
        parts[0].images.classes,
        Recipe(
            network=network.name,
            train_scale=network.train_scale,
            weights=weights.sha256,
            layer=request.layer,
            scales=scales,
            aggregate=request.aggregate,
            flip=request.flip,
            precision=config.resolved_precision,
            dataset=existing_folder(request.root).name,
            contents=ContentsDigest.joined(part.images.contents for part in parts),
        ),
    )


class _Extraction:
    """What is done with the images of each manifest."""

    def __init__(
        self,
        network: DenseNetwork,
        request: Request,
        scales: tuple[int, ...],
        config: Config,
        process: Process,
    ) -> None:
        self._network, self._request, self._scales = network, request, scales
        self._config, self._process = config, process
        self._max_pixels = most_pixels(config.evaluation.max_megapixels, process.device)

    def rows(self, images: Manifest, progress: Progress) -> NDArray[np.float32]:
        """The descriptors of all images, in the manifest's order."""
        rows: NDArray[np.float32] | None = None
        with WholeImageLoader(
            images,
            self._config.data,
            scales=self._scales,
            group_size=GROUP_SIZE,
            device=self._process.device,
            dtype=DTYPES[self._config.resolved_precision],
            num_threads=self._config.data.num_threads or self._process.num_cores,
        ) as groups:
            for group in groups:
                index, found = self._describe(group)
                names = [images.name(image) for image in index.tolist()]
                # By a length that is infinite they would all be divided to 0.
                length = found.norm(dim=1, keepdim=True).numpy(force=True)
                require_finite(length, "features", names.__getitem__)
                if rows is None:
                    rows = np.empty((images.num_images, found.shape[1]), np.float32)
                rows[index] = F.normalize(found).numpy(force=True)
                progress.advance(len(index))
        assert rows is not None
        return rows

    def _describe(self, group: Group) -> tuple[NDArray[np.int64], Tensor]:
        """Numbers of a group's images, and their descriptors as long as they come."""
        scales = []
        for scale in self._scales:
            of_scale = [images for images in group if images.scale == scale]
            index = np.concatenate([images.index for images in of_scale])
            found = torch.cat(describe(self._network, of_scale, self._request, self._max_pixels))
            # The groups of two scales may hold the images in another order.
            scales.append(found[torch.from_numpy(index.argsort()).to(found.device)])
        stacked = self._request.aggregate == "stack"
        whole = torch.cat(scales, dim=1) if stacked else torch.stack(scales).mean(dim=0)
        return np.sort(index), whole


@torch.no_grad()
def describe(
    network: DenseNetwork, group: Sequence[WholeImages], request: Request, max_pixels: int
) -> list[Tensor]:
    """Activations averaged over places, and with those of the mirror images.

    Args:
        network: applied to whole images.
        group: images of any shapes, all at one scale.
        request: `layer` and `flip`.
        max_pixels: most pixels in the convolutions at once; a larger image goes alone.

    Returns:
        For each of the group (n, units), fp32.
    """
    flip = request.flip
    maps = [maps_with_mirrored(network, same.images, flip, max_pixels) for same in group]
    if request.layer == "pool5":
        means = [part.float().mean(dim=(2, 3)) for part in maps]
    else:
        means = [part.float().mean(dim=(1, 2)) for part in network.score_maps(maps, layer="fc7")]
    return [mean_of_mirrored(mean, flip) for mean in means]


def _open_parts(root: str) -> list[_Part]:
    """Both splits of a data set, or all class folders of a folder.

    Raises:
        DataError: there are no such images, or some cannot be used.
    """
    folder = existing_folder(root)
    names = names_in(folder)
    if find_manifest(folder) is not None or set(SPLITS) <= set(names):
        dataset = open_dataset(folder)
        parts = [_Part("train/", dataset.train), _Part("val/", dataset.val)]
    elif len(names) == 1 and names[0] in SPLITS:
        parts = [_Part(f"{names[0]}/", open_split(folder, names[0]))]
    else:
        parts = [_Part("", from_classes(folder, "", list_classes(folder)))]
    require_usable([part.images for part in parts], str(folder))
    return [_Part(part.prefix, _surveyed(part.images)) for part in parts]


def _surveyed(images: Manifest) -> Manifest:
    """The images, with what is in them now; says what is found."""
    survey = survey_images(images)
    for remark in survey.remarks:
        logger.info("%s", remark)
    return survey.splits[0]
