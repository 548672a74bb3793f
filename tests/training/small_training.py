"""A whole training of the small engine on images in memory, part by part if wanted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from tests.training.small_engine import (
    CROP_SIZE,
    GLOBAL_BATCH,
    NUM_CLASSES,
    momentum_of,
    small_config,
    small_network,
    weights_of,
)
from vggdist.artifacts import checkpoint
from vggdist.config import split_batch, total_steps
from vggdist.data.batch import Batch
from vggdist.data.manifest import Manifest, from_classes
from vggdist.distributed import process as world
from vggdist.distributed.process import Process
from vggdist.evaluation.evaluator import evaluate
from vggdist.evaluation.metrics import Errors
from vggdist.training.bad_images import KnownBad
from vggdist.training.flags import until_stopped
from vggdist.training.loop import Training
from vggdist.training.metrics import MetricLog
from vggdist.training.schedule import Schedule
from vggdist.training.signals import StopSignal
from vggdist.training.zero import build_engine

NUM_TRAINING_IMAGES = 4 * GLOBAL_BATCH
"""An epoch has four steps."""
NUM_VALIDATION_IMAGES, EVALUATION_MICRO = 11, 2

Evaluate = Callable[[Training, StopSignal], Errors]


def batch_of(seed: int, count: int) -> Batch:
    """Images that are the same in every process."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(NUM_CLASSES, (count,), generator=generator)
    shape = (count, 3, CROP_SIZE, CROP_SIZE)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    mean = torch.full((count, 3), 128.0)
    return Batch(pixels, mean, labels, labels, labels.numpy(), std=(64.0, 64.0, 64.0))


def part_of(batch: Batch, first: int, last: int | None, step: int = 1) -> Batch:
    """Some images of a batch."""
    part = slice(first, last, step)
    tensors = (batch.pixels, batch.mean, batch.labels, batch.dropout_keys)
    return Batch(*(tensor[part] for tensor in tensors), batch.index[part], std=batch.std)


@contextmanager
def training_batches(process: Process, first_step: int) -> Iterator[Iterator[Batch]]:
    """This rank's share of every step's images, without end."""

    def batches() -> Iterator[Batch]:
        step = first_step
        while True:
            share = GLOBAL_BATCH // process.world_size
            first = process.rank * share
            yield part_of(batch_of(step, GLOBAL_BATCH), first, first + share)
            step += 1

    yield batches()


def validation_batches(process: Process) -> Iterator[Batch]:
    """This rank's share, of which the last batch is smaller."""
    share = part_of(batch_of(999, NUM_VALIDATION_IMAGES), process.rank, None, process.world_size)
    for first in range(0, len(share), EVALUATION_MICRO):
        yield part_of(share, first, first + EVALUATION_MICRO)


class Part:
    """A training from the newest checkpoint of its folder on, as a start of a process would do it.

    Args:
        evaluate: in place of the true evaluation.
        changes: of the configuration, as `small_config` takes them.
    """

    def __init__(
        self,
        process: Process,
        folder: Path,
        evaluate: Evaluate | None = None,
        network_seed: int = 1,
        **changes: object,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        config = small_config(**changes)
        split = split_batch(config.batch, process.world_size)
        engine = build_engine(small_network(config, network_seed), config, split, process)
        newest = checkpoint.newest(folder / "checkpoints")
        saved = checkpoint.load(newest) if newest is not None else None
        self.log = None
        if process.is_main:
            self.log = MetricLog(folder, saved.step if saved else 0, has_top5=False)
            self.log.write_start(config, "cpu", {"config": "of this start"})
        self.training = Training(
            config,
            process,
            split,
            engine,
            Schedule(
                config.schedule,
                config.optimizer.learning_rate,
                NUM_TRAINING_IMAGES / GLOBAL_BATCH,
                total_steps(config, NUM_TRAINING_IMAGES),
            ),
            num_images=NUM_TRAINING_IMAGES,
            open_batches=lambda step: training_batches(process, step),
            evaluate=lambda stop: (
                evaluate(self.training, stop) if evaluate else self._evaluate(process, stop)
            ),
            data_digests={},
            known_bad=KnownBad(_images(), 0.0),
            log=self.log,
            run_folder=folder,
        )
        if saved is not None:
            self.training.load(saved)

    def train(self, stop: StopSignal | None = None) -> bool:
        """Whether the training has come to its end."""
        try:
            return self.training.train(stop or StopSignal())
        finally:
            if self.log is not None:
                self.log.__exit__()
            world.all_agree(True, self.training.process.device)  # the main rank has saved

    def weights(self) -> dict[str, Tensor]:
        return weights_of(self.training.engine)

    def momentum(self) -> dict[str, Tensor]:
        return momentum_of(self.training.engine)

    def _evaluate(self, process: Process, stop: StopSignal) -> Errors:
        rounds = -(-len(range(0, NUM_VALIDATION_IMAGES, process.world_size)) // EVALUATION_MICRO)
        batches = until_stopped(validation_batches(process), rounds, stop, process.device)
        engine, num_classes = self.training.engine, self.training.config.model.num_classes
        return evaluate(engine, batches, NUM_VALIDATION_IMAGES, num_classes, process.device)


class StopAfter(StopSignal):
    """A signal that has come once `step` steps are finished."""

    def __init__(self, training: Training, step: int) -> None:
        super().__init__()
        self._training, self._step = training, step

    @property
    def requested(self) -> bool:  # type: ignore[override]
        return self._training.step >= self._step

    @requested.setter
    def requested(self, value: bool) -> None:
        pass


def _images() -> Manifest:
    return from_classes(Path("/nowhere"), "train", [("class", ["image.jpg"])])
