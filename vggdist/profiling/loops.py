"""The training loops that `bench step` times, synthetic images for them, and a matrix product.

Each loop takes a step's micro batches and makes one weight update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggdist.config import BatchSplit, Config
from vggdist.data.batch import Batch
from vggdist.distributed.precision import DTYPES
from vggdist.distributed.process import Process
from vggdist.errors import first_line
from vggdist.model.initialization import build_initialized
from vggdist.model.vgg import VGG
from vggdist.training.compilation import compiled_features
from vggdist.training.flags import DelayedFlags, SharedFlags
from vggdist.training.graph import WARM_UP_STEPS, GraphedStep, Graphs, build_step
from vggdist.training.step import Meter
from vggdist.training.zero import build_engine


class BareLoop:
    """What a person would write by hand: SGD, autocast, channels_last."""

    def __init__(self, network: VGG, config: Config, device: torch.device) -> None:
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


class TunedLoop(BareLoop):
    """The bare loop, tuned as by a person who knows PyTorch.

    With `torch.compile` of the convolutions; on a GPU also with cuDNN's fastest convolutions and
    the whole step as one CUDA graph. The first step takes a minute or more.

    Attributes:
        settings: which of these it has, after the first step.
        missing: why it lacks any, in sentences.
    """

    def __init__(self, network: VGG, config: Config, device: torch.device) -> None:
        super().__init__(network, config, device)
        self._device = device
        self._replay: Callable[[], None] | None = None
        self._is_ready = False
        self.settings = ["cudnn.benchmark"] if device.type == "cuda" else []
        self.missing: list[str] = []

    def step(self, micro_batches: Sequence[Batch]) -> None:
        """One update, always of the same micro batches: a graph keeps where they are."""
        before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
        try:
            if not self._is_ready:
                self._is_ready = True
                self._try("torch.compile", lambda: self._compile(micro_batches))
                if self._device.type == "cuda":
                    self._try("a CUDA graph", lambda: self._capture(micro_batches))
            if self._replay is not None:
                self._replay()
            else:
                super().step(micro_batches)
        finally:
            torch.backends.cudnn.benchmark = before

    def _try(self, setting: str, work: Callable[[], None]) -> None:
        try:
            work()
            self.settings.append(setting)
        except Exception as error:  # what a compiler or a driver says has no type of its own
            self.missing.append(f"The tuned loop goes without {setting}: {first_line(error)}")

    def _compile(self, micro_batches: Sequence[Batch]) -> None:
        self._network.compiled = compiled_features(self._network)
        try:
            super().step(micro_batches)
        except BaseException:
            self._network.compiled = None
            self._optimizer.zero_grad()
            raise

    def _capture(self, micro_batches: Sequence[Batch]) -> None:
        graphs = Graphs(self._device)
        with graphs.stream():
            for _ in range(WARM_UP_STEPS):
                super().step(micro_batches)
        step = super().step
        self._replay = graphs.capture(lambda: step(micro_batches))


class MatrixProduct:
    """A large product, whose speed stands for a device's peak where that is not published.

    Attributes:
        side: of its square matrices.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self.side = 8192 if device.type == "cuda" else 2048
        dtype = DTYPES[config.resolved_precision]
        matrix = torch.randn(self.side, self.side, device=device)
        self._matrices = [matrix.to(dtype), matrix.to(dtype), torch.empty_like(matrix, dtype=dtype)]

    @property
    def flops(self) -> int:
        """Floating-point operations, a multiply-add being two."""
        return 2 * self.side**3

    def run(self) -> None:
        a, b, out = self._matrices
        torch.mm(a, b, out=out)


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
        self._flags = SharedFlags(self._engine)
        self.meter = Meter(process.device)
        self._take = build_step(self._engine, config, process, self.meter)
        # DeepSpeed's own exchange, at the other stages, cannot be left out, nor that of a graph.
        plain = config.zero_stage == 0 and not isinstance(self._take, GraphedStep)
        self.can_keep_gradients = plain and split.world_size > 1
        self._delayed = DelayedFlags(process.device)

    def step(self, micro_batches: Iterable[Batch]) -> None:
        """One update and its flags, as in a training: those of the step before are read."""
        self._flags.begin()
        self._take(micro_batches)
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
    labels = torch.randint(config.model.fc8_width, (micro,), generator=generator)
    keys = torch.randint(-(2**63), 2**63 - 1, (micro,), generator=generator)
    return Batch(
        pixels.to(device).permute(0, 3, 1, 2),
        torch.tensor([config.data.mean] * micro).to(device),
        labels.to(device),
        keys.to(device),
        labels.numpy(),
        DTYPES[config.resolved_precision],
    )
