"""The two training loops that `bench step` times, and synthetic images for them.

Both take a step's micro batches and make one weight update.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggdist.config import BatchSplit, Config
from vggdist.data.batch import Batch
from vggdist.distributed.precision import DTYPES
from vggdist.distributed.process import Process
from vggdist.model.initialization import build_initialized
from vggdist.model.vgg import VGG
from vggdist.training.flags import DelayedFlags, SharedFlags
from vggdist.training.step import Meter, train_step
from vggdist.training.zero import build_engine


class BareLoop:
    """What a person would write by hand: SGD, autocast, channels_last."""

    def __init__(self, network: nn.Module, config: Config, device: torch.device) -> None:
        self._network = network.to(device).to(memory_format=torch.channels_last)
        self._optimizer = torch_sgd(self._network, config)
        self._dtype = DTYPES[config.resolved_precision]
        self._scaler = torch.amp.GradScaler(
            device.type, enabled=config.resolved_precision == "fp16"
        )

    def step(self, micro_batches: Sequence[Batch]) -> None:
        """One update."""
        for batch in micro_batches:
            mixed = self._dtype != torch.float32
            with torch.autocast(batch.images.device.type, dtype=self._dtype, enabled=mixed):
                logits: Tensor = self._network(batch.images)
            loss = F.cross_entropy(logits.float(), batch.labels) / len(micro_batches)
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()

    def tuned_step(self, micro_batches: Sequence[Batch]) -> None:
        """One update with the convolutions that cuDNN finds fastest by trying them."""
        before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
        try:
            self.step(micro_batches)
        finally:
            torch.backends.cudnn.benchmark = before


class OurLoop:
    """The steps of `training/loop.py`.

    Args:
        network: none: the configured one.

    Attributes:
        meter: of all steps so far.
    """

    def __init__(
        self, config: Config, split: BatchSplit, process: Process, network: VGG | None = None
    ) -> None:
        if network is None:
            network = build_initialized(config.model, config.data.crop_size, config.seed)
        self._engine = build_engine(network, config, split, process)
        # DeepSpeed's own exchange, at the other stages, cannot be left out.
        self.can_keep_gradients = config.zero_stage == 0 and split.world_size > 1
        self._flags = SharedFlags(self._engine)
        self.meter = Meter(process.device)
        self._delayed = DelayedFlags(process.device)

    def step(self, micro_batches: Iterable[Batch]) -> None:
        """One update and its flags, as in a training: those of the step before are read."""
        self._flags.begin()
        train_step(self._engine, micro_batches, self.meter)
        self._delayed.push(self._flags.end(self._engine, False), 0)

    @contextmanager
    def gradients_kept(self) -> Iterator[None]:
        """Every rank keeps its own gradients."""
        with self._engine.exchange.paused():
            yield


def torch_sgd(network: nn.Module, config: Config) -> torch.optim.SGD:
    """PyTorch's own optimizer with the configured settings."""
    settings = config.optimizer
    return torch.optim.SGD(
        network.parameters(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def synthetic_batch(config: Config, micro: int, device: torch.device, number: int = 0) -> Batch:
    """Noise of the loader's type, range and memory format, another one for each `number`."""
    generator = torch.Generator().manual_seed(config.seed + number)
    crop = config.data.crop_size
    pixels = torch.randint(256, (micro, crop, crop, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(config.model.num_classes, (micro,), generator=generator)
    keys = torch.randint(-(2**63), 2**63 - 1, (micro,), generator=generator)
    return Batch(
        pixels.to(device).permute(0, 3, 1, 2),
        torch.tensor([config.data.mean] * micro).to(device),
        labels.to(device),
        keys.to(device),
        labels.numpy(),
        DTYPES[config.resolved_precision],
    )
