"""A loader's thread under a pretended CUDA; DALI's part is left out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from tests.fake_cuda import runtime
from tests.fake_cuda.runtime import Call, PretendedTensors
from tests.fake_cuda.steps import Ranks, start
from vggdist.config import DataConfig
from vggdist.data import producer
from vggdist.data.dataset import open_dataset
from vggdist.data.decode import CropFormat, Work
from vggdist.data.loader import EvaluationLoader

RANK = 3


class Decoded:
    """Stands in for an `ImagePipeline`, within whose context the loader's thread works."""

    def __init__(self, work: Iterator[Work], _: int, image_format: CropFormat, __: int) -> None:
        self._work, self._format = work, image_format
        self._tensors = PretendedTensors()

    def __enter__(self) -> Self:
        self._tensors.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._tensors.__exit__(None, None, None)

    def __iter__(self) -> Iterator[tuple[Work, Tensor]]:
        size = self._format.crop_size
        for work in self._work:
            shape = len(work.images), 3, size, size
            yield work, torch.empty(shape, dtype=torch.uint8, device=self._format.device)


def look_at_loader(root: Path) -> list[Call]:
    """What the thread of a loader of all validation images asks of CUDA."""
    device = start(Ranks(world_size=8, rank=RANK)).device
    producer.ImagePipeline = Decoded
    data = DataConfig(crop_size=32, train_scale_min=32)
    with EvaluationLoader(
        open_dataset(root).val, data, scale=32, batch_size=2, device=device
    ) as batches:
        assert len(list(batches)) == batches.num_batches
    return [call for call in runtime.calls if call.thread.startswith("vggdist-loader")]
