"""A loader's thread under a pretended CUDA; DALI's part is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.fake_cuda import runtime
from tests.fake_cuda.runtime import Call, PretendedTensors
from tests.fake_cuda.steps import Ranks, start
from vggdist.config import DataConfig
from vggdist.data import lanes, loader
from vggdist.data.batch import Batch
from vggdist.data.dataset import open_dataset
from vggdist.data.decode import EncodedBatch, Graph
from vggdist.data.loader import EvaluationLoader
from vggdist.data.plan import Samples

RANK = 3


def decoded(
    batches: Iterator[EncodedBatch], graph: Graph, _: int, make: Callable[[Samples, Any], Batch]
) -> Iterator[Batch]:
    """Stands in for `decode`, in whose generator the loader's thread works."""
    assert graph.resizes
    with PretendedTensors():
        for samples, images in batches:
            shape = len(images), graph.crop_size, graph.crop_size, 3
            crops = torch.empty(shape, dtype=torch.uint8, device=graph.device)
            yield make(samples, SimpleNamespace(as_tensor=lambda crops=crops: crops))


def look_at_loader(root: Path) -> list[Call]:
    """What the thread of a loader of all validation images asks of CUDA."""
    device = start(Ranks(world_size=8, rank=RANK)).device
    lanes.decode = decoded
    loader.from_dlpack = lambda image: image  # there is no memory that DLPack could hand over
    data = DataConfig(crop_size=32, train_scale_min=32)
    with EvaluationLoader(
        open_dataset(root).val, data, scale=32, batch_size=2, device=device
    ) as batches:
        assert len(list(batches)) == batches.num_batches
    return [call for call in runtime.calls if call.thread.startswith("vggdist-loader")]
