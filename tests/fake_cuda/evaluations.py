"""Evaluations with VGG D under a pretended CUDA, from decoded images to posteriors and features."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.fake_cuda.runtime import PretendedTensors
from tests.fake_cuda.steps import Ranks, start, synthetic_batch
from tests.fake_cuda.watch import Watch
from vggdist.config import Config
from vggdist.data import resize
from vggdist.data.whole_images import Group, WholeImages
from vggdist.evaluation import evaluator, mistakes, scores
from vggdist.model.dense import DenseNetwork
from vggdist.model.initialization import build_initialized
from vggdist.transfer.features import Request, describe

SCALES = (226, 256)
"""At the first one some of the 25 crops are the same."""
DECODED = ((375, 500), (500, 375))
"""Heights and widths."""
STD = (58.4, 57.1, 57.4)
DTYPE = torch.bfloat16
RANKS = Ranks(world_size=8, rank=3)


def look_at_protocols() -> dict[str, list[str]]:
    """What makes the host wait, for everything that is done with a group of whole images."""
    device = start(RANKS).device
    watch = Watch(device)
    faults = {}
    with PretendedTensors(), watch:
        network = build_initialized(Config().model, 224, seed=0).eval()
        for name, compute in computations(DenseNetwork(network, DTYPE, device)).items():
            watch.start()
            compute()
            faults[name] = watch.faults
            assert watch.operators, name
    return faults


def computations(network: DenseNetwork) -> dict[str, Callable[[], object]]:
    """Names, and what is computed of one group."""
    group = finished_group(network.device)
    whole = [images for images in group if images.scale == SCALES[1]]
    coinciding = group[:1]
    crops = coinciding[0].images[:, :, :224, :224]
    max_pixels = scores.most_pixels(None, network.device)
    return {
        "rescaling": lambda: finished_group(network.device),
        "dense": lambda: scores.dense_posteriors(network, whole, True, "logits", max_pixels),
        "dense, after the soft-max": lambda: scores.dense_posteriors(
            network, whole, True, "posteriors", max_pixels
        ),
        "multi-crop": lambda: scores.multi_crop_posteriors(network, coinciding, True, max_pixels),
        "centre crop": lambda: scores.center_crop_posteriors(network, crops, True, max_pixels),
        "fc7": lambda: describe(network, whole, Request("", "", layer="fc7"), max_pixels),
        "pool5": lambda: describe(network, whole, Request("", "", layer="pool5"), max_pixels),
    }


def finished_group(device: torch.device) -> Group:
    """Decoded images, as DALI leaves them on the GPU, rescaled to every scale."""
    resize.from_dlpack = lambda image: image  # there is no memory that DLPack could hand over
    decoded = [torch.empty(*size, 3, dtype=torch.uint8, device=device) for size in DECODED]
    return [
        WholeImages(
            scale=shape.scale,
            pixels=shape.pixels,
            labels=torch.empty(len(shape.rows), dtype=torch.int64, device=device),
            index=shape.rows,
            mean=torch.empty(1, 3, device=device),
            std=STD,
            dtype=DTYPE,
        )
        for shape in resize.rescale(decoded, SCALES, resize.BatchMemory(device))
    ]


def look_at_validation(num_batches: int) -> list[str]:
    """What makes the host wait in an evaluation while training, of so many batches."""
    device = start(RANKS).device
    mistakes.gather = lambda found: [found]  # sending objects needs true tensors
    watch = Watch(device)
    with PretendedTensors(integers=1), watch:
        network = build_initialized(Config().model, 224, seed=0).eval().to(device)
        config = Config(precision="fp32")
        batches = [synthetic_batch(config, 64, device) for _ in range(num_batches)]
        watch.start()
        # Whatever is counted is read as 1, number by number, so that few classes must do.
        evaluator.evaluate(
            network, batches, num_images=1, num_classes=3, device=device, num_mistakes=2
        )
    return watch.faults
