"""What an experiment will take, before anything is submitted: jobs, GPU hours, disk.

It is arithmetic on configurations and on a speed that is assumed, so it needs neither a GPU nor the
images; it is printed with its assumptions.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from vggdist.config import Config, steps_of_epochs, total_steps, trained_layers
from vggdist.data.count import ImageCounts, count_images
from vggdist.data.geometry import map_side
from vggdist.experiments.stages import Evaluation, Experiment, Training
from vggdist.model.summary import summarize

GPU_TERAFLOPS = 100.0
"""Sustained by a GPU in 16-bit arithmetic, where nothing else is said: a third of what the maker of
an A100 promises. `vggdist bench step` measures it."""
CPU_TERAFLOPS = 0.2
"""Sustained by a rank on some CPU cores."""

SHAPE = 4 / 3
"""Longer side over shorter side of a whole image; ImageNet's usual 500 x 375 pixels."""
_CROPS = 50
_BYTES_PER_PARAMETER = 8  # weight and momentum, fp32
_BYTES_PER_POSTERIOR = 4


@dataclass(frozen=True)
class StageEstimate:
    """What one stage takes."""

    stage: str
    num_epochs: float | None
    """At most; of a training only."""
    petaflop: float
    """Floating-point operations, 10^15."""
    device_hours: float
    """Hours of one GPU, or of one rank on a CPU."""
    num_bytes: int
    """Checkpoints that are kept, or posteriors files."""


@dataclass(frozen=True)
class Estimate:
    """What the stages that are not done yet take."""

    stages: tuple[StageEstimate, ...]
    images: ImageCounts
    teraflops: float
    """Assumed for each rank, sustained."""
    world_size: int
    on_gpus: bool
    longest_hours: float
    """Of the stages that wait for each other, if every job starts at once."""

    @property
    def device_hours(self) -> float:
        """Of all stages."""
        return sum(stage.device_hours for stage in self.stages)

    @property
    def num_bytes(self) -> int:
        """Of all stages."""
        return sum(stage.num_bytes for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """All numbers, ready for JSON."""
        return {
            "jobs": len(self.stages),
            "device": "gpu" if self.on_gpus else "cpu",
            "device_hours": self.device_hours,
            "longest_hours": self.longest_hours,
            "bytes": self.num_bytes,
            "world_size": self.world_size,
            "assumed": {"teraflops": self.teraflops, **asdict(self.images)},
            "stages": {stage.stage: asdict(stage) for stage in self.stages},
        }


def estimate(
    experiment: Experiment,
    wanted: Collection[str],
    world_size: int,
    on_gpus: bool,
    teraflops: float | None = None,
) -> Estimate:
    """What the stages `wanted` take on `world_size` ranks; a report runs on one.

    Args:
        teraflops: sustained by each rank; None: `GPU_TERAFLOPS` or `CPU_TERAFLOPS`.
    """
    speed = teraflops or (GPU_TERAFLOPS if on_gpus else CPU_TERAFLOPS)
    roots = (training.config.data.root for training in experiment.trainings)
    images = count_images(next((root for root in roots if root is not None), None))
    estimates, ends = [], dict[str, float]()
    for stage in experiment.stages.values():
        if stage.name not in wanted:
            continue
        flop, num_bytes, num_epochs = 0.0, 0, None
        match stage:
            case Training(config=config):
                num_epochs = _num_epochs(config, images)
                flop = _training_flop(config, images)
                parameters = summarize(config.model, config.data.crop_size).num_parameters
                num_bytes = _BYTES_PER_PARAMETER * parameters * config.checkpoint.keep
            case Evaluation(network=network):
                config = experiment.training(network).config
                flop = images.num_val * _evaluation_flop(stage, config)
                num_files = len(stage.protocols) * max(1, len(stage.scales))
                values = images.num_val * config.model.fc8_width
                num_bytes = _BYTES_PER_POSTERIOR * values * num_files
        petaflop = flop / 1e15
        hours = petaflop * 1000 / speed / 3600
        estimates.append(StageEstimate(stage.name, num_epochs, petaflop, hours, num_bytes))
        before = max((ends.get(need, 0.0) for need in stage.needs), default=0.0)
        ends[stage.name] = before + hours / world_size
    longest = max(ends.values(), default=0.0)
    return Estimate(tuple(estimates), images, speed, world_size, on_gpus, longest)


def _training_flop(config: Config, images: ImageCounts) -> float:
    """A backward pass is two forward passes; it ends at the first layer that is trained."""
    summary = summarize(config.model, config.data.crop_size)
    first = [layer.name for layer in summary.layers].index(trained_layers(config)[0])
    forward = 2 * summary.multiply_adds
    backward = 4 * sum(layer.multiply_adds for layer in summary.layers[first:])
    num_images = total_steps(config, images.num_train) * config.batch.global_
    evaluations = _num_epochs(config, images) / config.evaluation.every_epochs
    return num_images * (forward + backward) + evaluations * images.num_val * forward


def _evaluation_flop(stage: Evaluation, config: Config) -> float:
    """Of one image; a dense pass is two, with the mirrored image, and crops share nothing here."""
    crop, num_blocks = config.data.crop_size, len(config.model.blocks())
    summary = summarize(config.model, crop)
    of_crop = 2.0 * summary.multiply_adds
    total = 0.0
    for scale in stage.scales or (config.data.evaluation_scale,):
        sides = scale, round(SHAPE * scale)
        places = map_side(sides[0], num_blocks, crop) * map_side(sides[1], num_blocks, crop)
        costs = {
            "center-crop": of_crop,
            "multi-crop": _CROPS * of_crop,
            "dense": 2 * 2.0 * summary.dense_multiply_adds(*sides, places),
        }
        total += sum(costs[protocol] for protocol in stage.protocols)
    return total


def _num_epochs(config: Config, images: ImageCounts) -> float:
    if config.schedule.num_steps is None:
        return config.schedule.num_epochs
    return config.schedule.num_steps / steps_of_epochs(1.0, images.num_train, config.batch.global_)
