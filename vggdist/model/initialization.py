"""Initial weights: random, or copied from a trained network (section 3.1); and frozen layers."""

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import Tensor, nn

from vggdist.artifacts.paths import quote
from vggdist.artifacts.run_folder import open_weights
from vggdist.artifacts.weights import Weights
from vggdist.config import Config, ModelConfig, trained_layers
from vggdist.errors import ConfigError
from vggdist.model.vgg import VGG, build_vgg, layer_name

logger = logging.getLogger(__name__)

Method = Literal["glorot", "gaussian", "kaiming"]

NUM_COPIED_CONVOLUTIONS = 4
"""The paper copies the first four convolutions, and the fully connected layers, of network A."""


def build_initialized(config: ModelConfig, crop_size: int, seed: int) -> VGG:
    """The configured network with random weights, drawn by `config.initialization`."""
    network = build_vgg(config, crop_size)
    initialize(network, config.initialization, config.initial_std, seed)
    return network


def build_trainable(config: Config, fresh: bool) -> VGG:
    """The network of a training, with its initial weights and its frozen layers.

    Args:
        config: of the training.
        fresh: no checkpoint is loaded afterwards, so that weights of a trained network are copied.

    Raises:
        ConfigError: the trained network does not fit, or a frozen layer would stay random.
    """
    network = build_initialized(config.model, config.data.crop_size, config.seed)
    random = _copy_weights(config, network) if fresh else ()
    trained = trained_layers(config)
    frozen = [name for name in config.model.weight_layers() if name not in trained]
    useless = [name for name in frozen if name in random]
    if useless:
        raise ConfigError(
            f"optimizer.trained_layers leaves out {', '.join(useless)}, which would stay random; "
            "set model.initialize_from to a trained network that has them, or train them too."
        )
    if frozen:
        logger.info("trained: %s; frozen: %s", ", ".join(trained), ", ".join(frozen))
    freeze(network, trained)
    return network


def _copy_weights(config: Config, network: VGG) -> tuple[str, ...]:
    """Copies matching layers of `model.initialize_from`; returns the layers that stay random."""
    if config.model.initialize_from is None:
        return config.model.weight_layers()
    trained = open_weights(config.model.initialize_from)
    _require_same_input(config, trained)
    report = copy_trained(network, trained.tensors)
    logger.info(
        "copied from %s: %s; random: %s",
        quote(trained.path),
        ", ".join(f"{own} <- {source}" for own, source in report.copied),
        ", ".join(report.random) or "nothing",
    )
    return report.random


def _require_same_input(config: Config, trained: Weights) -> None:
    """Refuses another pixel normalization than the copied layers were trained with."""
    given = trained.description
    if (given.mean, given.std) != (config.data.mean, config.data.std):
        mean, std = (f"[{', '.join(map(str, values))}]" for values in (given.mean, given.std))
        raise ConfigError(
            f"model.initialize_from: the network in {quote(trained.path)} was trained on pixels "
            f"less {mean}, divided by {std}, and this one would be fed others; set "
            f"data.mean='{mean}' data.std='{std}'."
        )


@torch.no_grad()
def initialize(model: nn.Module, method: Method, initial_std: float, seed: int) -> None:
    """Draws all weights; biases are set to 0 and batch normalizations to the identity.

    Depends only on the arguments: the numbers are drawn on the CPU in fp32, in layer order, so
    rank, device and memory format do not matter.

    RMS of the initial logits (measured on four ImageNet images minus the mean, whose RMS is 60, at
    224 pixels, without batch normalization):

    method           | A      | D      | E
    glorot           | 1.0    | 0.19   | 0.06
    kaiming          | 144    | 89     | 97
    gaussian, 0.1    | 6e7    | 1e10   | 1e12
    gaussian, 0.01   | 6e-4   | 1e-6   | 1e-7

    Args:
        model: the network, on any device.
        method: glorot: uniform within sqrt(6 / (fan_in + fan_out)), equation 16 of Glorot & Bengio
            (2010), to which section 3.1 refers. trzy/VGG16 trained D to the paper's errors with the
            normal distribution of the same variance, and the variance is what matters.
            kaiming: normal with variance 2 / fan_in (He et al. 2015), which preserves the RMS
            through ReLUs, and so the large RMS of the pixels: use it with batch normalization or a
            smaller learning rate. (It is the "Xavier-Gaussian" that did not converge at 0.01 in
            apache/mxnet issue 9866: rnd_type gaussian, factor_type in, magnitude 2.)
            gaussian: normal with `initial_std`. The paper prints a *variance* of 10^-2, which is a
            standard deviation of 0.1; many ports use 0.01. Neither trains D or E from nothing.
        initial_std: standard deviation, for gaussian only.
        seed: of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = torch.empty(module.weight.shape, dtype=torch.float32, device="cpu")
            match method:
                case "glorot":
                    nn.init.xavier_uniform_(weight, generator=generator)
                case "gaussian":
                    nn.init.normal_(weight, std=initial_std, generator=generator)
                case "kaiming":
                    nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
                case _:
                    assert_never(method)
            module.weight.copy_(weight)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()  # weight 1, bias 0, running mean 0 and variance 1


@dataclass(frozen=True)
class CopyReport:
    """Origin of the weights: `copied` has pairs (own layer, source layer), `random` the rest."""

    copied: tuple[tuple[str, str], ...]
    random: tuple[str, ...]


@torch.no_grad()
def copy_trained(model: VGG, state: Mapping[str, Tensor]) -> CopyReport:
    """Copies layers of a trained network into an initialized one (section 3.1).

    Layers match, in order, if they are in the same block and all their tensors (weight, bias, batch
    normalization) have equal shapes. The first four matching convolutions are copied, and fc6 to
    fc8. From A these are conv1_1, conv2_1, conv3_1 and conv3_2: A's first four would not fit the
    first four of a deeper network. If all convolutions of both networks match, it is the same
    configuration at another training scale S, and all are copied, as section 3.1 does for S = 384.

    Args:
        model: the deeper network, already initialized: layers that are not copied stay unchanged.
        state: the trained network's `VGG.state_dict()`.

    Raises:
        ConfigError: no convolution matches, or the state is not from a `VGG`.
    """
    own, source = _layers(model.state_dict()), _layers(state)
    convolutions, fully_connected = _fitting(own, source, "conv"), _fitting(own, source, "fc")
    if not convolutions:
        raise ConfigError(
            "model.initialize_from: no convolution of the trained network fits one of this network "
            f"in the same block (trained: {_describe(source)}; here: {_describe(own)}); choose a "
            "network that begins with the same layers, or set model.initialize_from=null."
        )
    if not len(convolutions) == _num_convolutions(own) == _num_convolutions(source):
        convolutions = convolutions[:NUM_COPIED_CONVOLUTIONS]
    copied = convolutions + fully_connected
    for own_name, source_name in copied:
        for key, tensor in own[own_name].items():
            tensor.copy_(source[source_name][key])
    random = own.keys() - dict(copied).keys()
    return CopyReport(tuple(copied), tuple(name for name in own if name in random))


def freeze(model: VGG, trained: Collection[str]) -> None:
    """Freezes all weight layers except `trained`, by their names in the paper.

    A batch normalization is frozen with its convolution.
    """
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(_weight_layer(path) in trained)


_Layers = dict[str, dict[str, Tensor]]
"""Layer name -> tensor name without the layer's number, such as `norm.running_mean` -> tensor."""


def _layers(state: Mapping[str, Tensor]) -> _Layers:
    """Groups a state by weight layer."""
    layers: _Layers = {}
    for path, tensor in state.items():
        try:
            name = _weight_layer(path)
        except ValueError as error:
            raise ConfigError(
                f"model.initialize_from: the trained network cannot be read: {error}"
            ) from error
        key = re.sub(r"\d", "", ".".join(path.split(".")[-2:]))
        layers.setdefault(name, {})[key] = tensor
    return layers


def _weight_layer(path: str) -> str:
    """The layer of a parameter or buffer of `VGG`; batch normalization is its convolution's."""
    return layer_name(path).replace("norm", "conv")


def _fitting(own: _Layers, source: _Layers, kind: str) -> list[tuple[str, str]]:
    """Pairs (own, source) of equal shapes in the same block, in order, each source layer once."""
    pairs = []
    unused = [name for name in source if name.startswith(kind)]
    for name in own:
        for candidate in unused:
            if _block_and_shapes(source, candidate) == _block_and_shapes(own, name):
                pairs.append((name, candidate))
                unused.remove(candidate)
                break
    return pairs


def _block_and_shapes(layers: _Layers, name: str) -> tuple[str, dict[str, torch.Size]]:
    """What two layers must share: `conv3` of `conv3_2` (`fc6` of `fc6`), and all shapes."""
    return name.partition("_")[0], {key: tensor.shape for key, tensor in layers[name].items()}


def _num_convolutions(layers: _Layers) -> int:
    return sum(name.startswith("conv") for name in layers)


def _describe(layers: _Layers) -> str:
    """The first convolutions, for an error message."""
    convolutions = [name for name in layers if name.startswith("conv")][:NUM_COPIED_CONVOLUTIONS]
    shapes = [f"{name} {tuple(layers[name]['conv.weight'].shape)}" for name in convolutions]
    normalized = any("norm.weight" in layer for layer in layers.values())
    return f"{', '.join(shapes)}, {'with' if normalized else 'without'} batch normalization"
