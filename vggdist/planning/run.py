"""What a whole training takes: hours, images from disks and CPU cores, checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vggdist.config import Config, steps_of_epochs, total_steps
from vggdist.data.count import ImageCounts
from vggdist.model.layer_costs import Layer
from vggdist.planning.devices import Device
from vggdist.planning.links import Cluster

IMAGE_BYTES = 115_400
"""Mean of ImageNet's training images: ILSVRC2012_img_train.tar, 147.9 GB, by 1,281,167."""

DEVICE_HOURS_BETWEEN_FAILURES = 8090.0
"""One failure in 7.9 hours of 1,024 GPUs (Kokolis et al., arXiv:2410.21680)."""

FORWARD_SHARE = 1 / 3
"""Of a training step's arithmetic, that of the forward pass."""


@dataclass(frozen=True)
class Supply:
    """What disks and CPU cores have to give so that the network does not wait.

    Attributes:
        num_cores: CPU cores of a node that make images ready all the time.
        data_wait_seconds: of each step; 0 where it is not known how many cores there are.
    """

    images_per_second: float
    images_per_second_per_node: float
    megabytes_per_second_per_node: float
    num_cores: float
    data_wait_seconds: float


@dataclass(frozen=True)
class Checkpoints:
    """Their size, and how far apart they lose least (Daly, FGCS 2006).

    Attributes:
        seconds: that a checkpoint holds up the training.
        written_seconds: after which it is on the disk; the steps go on meanwhile.
        hours_between_failures: mean of the whole job.
        every_steps: for `checkpoint.every_steps`.
        lost: share of the time that goes into checkpoints and into steps that are done again.
    """

    gigabytes: float
    seconds: float
    written_seconds: float
    hours_between_failures: float
    every_seconds: float
    every_steps: int
    lost: float


@dataclass(frozen=True)
class Run:
    """The whole training, evaluations and checkpoints as configured included."""

    steps: int
    epochs: float
    hours: float
    device_hours: float
    evaluation_hours: float
    checkpoint_hours: float


def estimate_supply(
    images_per_rank: int, cluster: Cluster, step_seconds: float, num_cores: int | None
) -> Supply:
    """From the images of a step and the time that it takes without waiting for them.

    Args:
        num_cores: of a node; none: as the device says.
    """
    device, num_cores = cluster.device, num_cores or cluster.device.num_cores
    per_node = images_per_rank * cluster.ranks_per_node
    wait = 0.0
    if num_cores is not None:
        supply_seconds = per_node / (num_cores * device.decoded_images_per_second)
        wait = supply_seconds if device.cores_compute else max(0.0, supply_seconds - step_seconds)
    rate = per_node / (step_seconds + wait)
    return Supply(
        images_per_second=rate * cluster.nodes,
        images_per_second_per_node=rate,
        megabytes_per_second_per_node=rate * IMAGE_BYTES / 1e6,
        num_cores=rate / device.decoded_images_per_second,
        data_wait_seconds=wait,
    )


def estimate_checkpoints(
    layers: tuple[Layer, ...], device: Device, world_size: int, step_seconds: float
) -> Checkpoints:
    """Weights and momentum in fp32: one rank copies them into its memory, and writes them behind
    the steps. On a CPU the cores that write do not compute."""
    parameters = sum(layer.num_parameters for layer in layers)
    trained = sum(layer.num_parameters for layer in layers if layer.is_trained)
    gigabytes = 4 * (parameters + trained) / 1e9
    seconds = gigabytes / device.host_gigabytes_per_second
    written = seconds + gigabytes / device.checkpoint_gigabytes_per_second
    if device.cores_compute:
        seconds = written
    failures = 3600 * DEVICE_HOURS_BETWEEN_FAILURES / world_size
    ratio = seconds / (2 * failures)
    every = math.sqrt(2 * seconds * failures) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - seconds
    every = max(every, written - seconds)  # one is written at a time
    return Checkpoints(
        gigabytes=gigabytes,
        seconds=seconds,
        written_seconds=written,
        hours_between_failures=failures / 3600,
        every_seconds=every,
        every_steps=max(1, round(every / step_seconds)),
        lost=seconds / (every + seconds) + (every / 2 + written - seconds) / failures,
    )


def estimate_run(
    config: Config,
    world_size: int,
    images: ImageCounts,
    step_seconds: float,
    checkpoint_seconds: float,
) -> Run:
    """Steps, evaluations and checkpoints as the configuration has them.

    Args:
        config: whose global batch is that of the steps.
        world_size: ranks.
        images: how many there are.
        step_seconds: with the wait for data.
        checkpoint_seconds: by which a checkpoint holds up the training.
    """
    steps = total_steps(config, images.num_train)
    global_batch = config.batch.global_
    epochs = steps * global_batch / images.num_train
    every = config.checkpoint.every_steps or steps_of_epochs(
        config.checkpoint.every_epochs, images.num_train, global_batch
    )
    num_evaluations = math.ceil(epochs / config.evaluation.every_epochs)
    evaluation = images.num_val / global_batch * step_seconds * FORWARD_SHARE
    training_hours = steps * step_seconds / 3600
    evaluation_hours = num_evaluations * evaluation / 3600
    checkpoint_hours = math.ceil(steps / every) * checkpoint_seconds / 3600
    hours = training_hours + evaluation_hours + checkpoint_hours
    return Run(steps, epochs, hours, hours * world_size, evaluation_hours, checkpoint_hours)
