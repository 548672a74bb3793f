"""A trained network for commands that apply it: weights, settings, the network on a device."""

from __future__ import annotations

from collections.abc import Sequence

from vggdist.artifacts import checkpoint
from vggdist.artifacts.paths import quote
from vggdist.artifacts.run_folder import weights_file
from vggdist.artifacts.weights import Description, Weights, load_weights
from vggdist.config import Config
from vggdist.config_file import load_config
from vggdist.data.manifest import Manifest
from vggdist.data.manifest_file import QUARANTINE_NAME
from vggdist.distributed.precision import DTYPES
from vggdist.distributed.process import Process
from vggdist.errors import ConfigError, DataError, WeightsError
from vggdist.model.dense import DenseNetwork
from vggdist.model.loading import build_network


def open_weights(network: str) -> Weights:
    """The weights of a run folder, a checkpoint or a weights file.

    Raises:
        VggdistError: there are none, they are invalid, or they differ from what the training wrote.
    """
    weights = load_weights(weights_file(network))
    if checkpoint.written_sha256(weights.path) not in (None, weights.sha256):
        raise WeightsError(
            f"{quote(weights.path)} is damaged: it does not have the SHA-256 with which its "
            "checkpoint was written. Give another checkpoint, or train on: the training falls back "
            "to the one before by itself."
        )
    return weights


def configure(network: Description, root: str, overrides: Sequence[str]) -> Config:
    """The network's training configuration, with `section.key=value` overrides.

    Raises:
        ConfigError: lists every problem of the overrides.
    """
    low, high = network.train_scale or (network.crop_size,) * 2
    base = {
        "model": network.model.model_dump(mode="json", exclude={"initialize_from"}),
        "data": {
            "root": root,
            "crop_size": network.crop_size,
            "train_scale_min": low,
            "train_scale_max": high,
            "mean": list(network.mean),
            "std": list(network.std),
        },
    }
    return load_config(None, overrides, base)


def build_dense(weights: Weights, config: Config, process: Process) -> DenseNetwork:
    """The network in the configured precision, on the rank's device.

    Raises:
        WeightsError: the weights are not of the configured network.
    """
    network = build_network(weights, config.model)
    return DenseNetwork(network, DTYPES[config.resolved_precision], process.device)


def require_scales(scales: Sequence[int], crop_size: int) -> tuple[int, ...]:
    """The scales Q without duplicates.

    Raises:
        ConfigError: an image at a scale would be smaller than the network's input.
    """
    small = [str(scale) for scale in scales if scale < crop_size]
    if small:
        raise ConfigError(
            f"--scales: at a shorter side of {', '.join(small)} pixels images are smaller than the "
            f"network's input of {crop_size} x {crop_size}; use scales of {crop_size} or more."
        )
    return tuple(dict.fromkeys(scales))


def require_usable(images: Manifest, root: str) -> None:
    """Refuses quarantined images: here every image counts.

    Raises:
        DataError: names their number and one of them.
    """
    if images.quarantine:
        raise DataError(
            f"{QUARANTINE_NAME} in {quote(root)} lists {len(images.quarantine)} of the images, "
            f"such as {images.name(min(images.quarantine))}. Every image counts here, so each must "
            "be usable. Replace them with good copies and run `vggdist check` again."
        )
