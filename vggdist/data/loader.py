"""Batches of crops on the rank's device: plan and manifest in, tensors out.

A loader makes batches in its own threads, a few ahead of the consumer. It knows its rank and the
world size only as integers and does not communicate with other ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from vggdist.config import BatchSplit, Config, DataConfig
from vggdist.data.bad_image import BadImages
from vggdist.data.batch import Batch
from vggdist.data.color import subtracted_mean
from vggdist.data.decode import Graph
from vggdist.data.lanes import BatchSamples, Lanes
from vggdist.data.manifest import Manifest
from vggdist.data.plan import SamplePlan, Samples, evaluation_samples, evaluation_share
from vggdist.data.prefetch import Prefetcher
from vggdist.data.resize import BatchMemory, resize_windows
from vggdist.data.search import find_every_bad
from vggdist.distributed.precision import DTYPES
from vggdist.distributed.process import Process


class TrainingLoader(Prefetcher[Batch]):
    """The micro batches of one rank, step by step, without end.

    Micro batch k of a step on rank r is the global batch's images from (k x world size + r) x
    micro on, so the ranks together see the same images in the same order, whatever their number.

    Args:
        manifest: the training set.
        plan: the sample plan, for this manifest and the split's global batch.
        data: crop size, mean, prefetch.
        split: how a global batch is divided.
        rank: of `split.world_size`.
        device: of the batches.
        dtype: of the images: float32, bfloat16 or float16.
        first_step: the step that comes first, counted from 0.
        last_step: the step before which to end; None: never.
        known_bad: returns the images to replace; called for every batch.
        max_bad: how many more this rank may find before it fails; None: all.
        num_threads: decoding threads.
    """

    def __init__(
        self,
        manifest: Manifest,
        plan: SamplePlan,
        data: DataConfig,
        split: BatchSplit,
        *,
        rank: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        first_step: int = 0,
        last_step: int | None = None,
        known_bad: Callable[[], Set[int]] = frozenset,
        max_bad: int | None = None,
        num_threads: int = 1,
    ) -> None:
        assert plan.num_images == manifest.num_images
        assert plan.global_batch == split.global_batch

        def samples(number: int, bad: Set[int]) -> Samples | None:
            steps, k = divmod(number, split.accumulation_steps)
            step = first_step + steps
            if last_step is not None and step >= last_step:
                return None
            first = (k * split.world_size + rank) * split.micro
            return plan.batch(step, first, first + split.micro, bad)

        bad_images = BadImages(
            manifest,
            0 if data.policy == "fail" else manifest.num_images if max_bad is None else max_bad,
            "data.policy=substitute would show another in its place.",
            known_bad,
        )
        super().__init__(
            _crops(manifest, samples, bad_images, split.micro, data, device, dtype, num_threads),
            data.prefetch,
        )


def open_training_loader(
    config: Config,
    manifest: Manifest,
    split: BatchSplit,
    process: Process,
    first_step: int = 0,
    known_bad: Callable[[], Set[int]] | None = None,
    max_bad: int | None = None,
) -> TrainingLoader:
    """The loader of one rank of the training that a configuration describes.

    Args:
        config: with its precision resolved.
        known_bad: as of `TrainingLoader`; none: the quarantine.
    """
    return TrainingLoader(
        manifest,
        SamplePlan(manifest.num_images, config.data, split.global_batch, config.seed),
        config.data,
        split,
        rank=process.rank,
        device=process.device,
        dtype=DTYPES[config.resolved_precision],
        first_step=first_step,
        known_bad=known_bad or (lambda: manifest.quarantine),
        max_bad=max_bad,
        num_threads=config.data.num_threads or process.num_cores,
    )


class EvaluationLoader(Prefetcher[Batch]):
    """Centre crops of one rank's share of the images: each image of the set on one rank, once.

    Attributes:
        num_images: of this rank's share.
        num_batches: that they make.
        num_rounds: batches of the rank that has the most.

    Args:
        manifest: the set.
        data: crop size, mean, prefetch.
        scale: Q, the rescaled shorter side, pixels.
        batch_size: images per batch; a rank's last batch may have fewer.
        only: numbers of the images to share, instead of the whole set.
        repeats: begin again behind the last batch, without end; the first batches of the next pass
            are then made ahead.
        rank: of `world_size`.
        world_size: ranks that share the set.
        device: of the batches.
        dtype: of the images.
        num_threads: decoding threads.
    """

    def __init__(
        self,
        manifest: Manifest,
        data: DataConfig,
        *,
        scale: int,
        batch_size: int,
        only: Sequence[int] | None = None,
        repeats: bool = False,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        num_threads: int = 1,
    ) -> None:
        images = np.asarray(range(manifest.num_images) if only is None else only, dtype=np.int64)
        share = images[evaluation_share(len(images), rank, world_size)]
        self.num_images = len(share)
        self.num_batches = -(-len(share) // batch_size)
        # All ranks may need the same number of collectives.
        most = len(evaluation_share(len(images), 0, world_size))
        self.num_rounds = -(-most // batch_size)

        num_batches = self.num_batches

        def samples(number: int, _known_bad: Set[int]) -> Samples | None:
            if number >= num_batches and not (repeats and num_batches):
                return None
            first = number % num_batches * batch_size
            return evaluation_samples(share[first : first + batch_size], scale)

        bad_images = BadImages(manifest, search=find_every_bad)
        super().__init__(
            _crops(manifest, samples, bad_images, batch_size, data, device, dtype, num_threads),
            data.prefetch,
        )


def _crops(
    manifest: Manifest,
    samples: BatchSamples,
    bad_images: BadImages,
    batch_size: int,
    data: DataConfig,
    device: torch.device | str,
    dtype: torch.dtype,
    num_threads: int,
) -> Lanes[Batch]:
    """What makes batches of crops."""
    device = with_index(device)
    on_gpu, memory = device.type == "cuda", BatchMemory(device)

    def on_device(numbers: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(numbers).to(device)

    def make(samples: Samples, decoded: Any) -> Batch:
        return Batch(
            # From DALI's memory into torch's own, which lives as long as the network reads it.
            from_dlpack(decoded.as_tensor()).clone().permute(0, 3, 1, 2)
            if on_gpu
            else resize_windows(decoded, samples.flip, data.crop_size, memory),
            on_device(subtracted_mean(data.mean, samples.color_draw)),
            on_device(manifest.labels[samples.image]),
            on_device(samples.dropout_key),
            samples.image,
            dtype,
            data.std,
            bad_images.take_new(),
        )

    graph = Graph(
        batch_size,
        device,
        data.crop_size,
        resizes=on_gpu,
        upright=data.upright,
        hardware_decoder_share=data.hardware_decoder_share,
    )
    return Lanes(
        manifest,
        samples,
        bad_images,
        graph,
        make,
        read_ahead=data.read_ahead,
        num_threads=num_threads,
    )


def with_index(device: torch.device | str) -> torch.device:
    """`device` with a number if it is a GPU: the caller's current one is not the threads'."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
