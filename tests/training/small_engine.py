"""A network that trains in milliseconds, its engine, and the plain torch training beside it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggdist.config import Config, OptimizerConfig, Precision, split_batch
from vggdist.distributed.precision import DTYPES
from vggdist.distributed.process import Process
from vggdist.model.initialization import initialize
from vggdist.model.vgg import VGG, build_vgg
from vggdist.training.engine import Engine
from vggdist.training.zero import build_engine

NUM_CLASSES, CROP_SIZE, GLOBAL_BATCH = 5, 32, 8
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 0.01
State = dict[str, Tensor]


def small_config(**changes: object) -> Config:
    """Two blocks; a learning rate and a weight decay large enough to show in one step.

    `changes` are sections or keys at the top; `micro`, `clip`, `momentum`, `dropout` and
    `batch_norm` for short.
    """
    values: dict[str, object] = {
        "model": {
            "configuration": [["3-4"], ["3-6", "1-8"]],
            "batch_norm": changes.pop("batch_norm", False),
            "num_classes": NUM_CLASSES,
            "fc_width": 12,
            "dropout": changes.pop("dropout", 0.0),
        },
        "data": {"crop_size": CROP_SIZE, "train_scale_min": 32, "train_scale_max": 32},
        "batch": {"global": GLOBAL_BATCH, "micro": changes.pop("micro", None)},
        "optimizer": {
            "learning_rate": LEARNING_RATE,
            "momentum": changes.pop("momentum", MOMENTUM),
            "weight_decay": WEIGHT_DECAY,
            "gradient_clipping": changes.pop("clip", 0.0),
        },
        "precision": "fp32",
        # `auto` measures, and need not decide alike twice.
        "exchange": "auto" if changes.get("zero_stage") else "factors",
    }
    return Config.model_validate(values | changes)


def small_network(config: Config, seed: int = 1) -> VGG:
    network = build_vgg(config.model, config.data.crop_size)
    initialize(network, "kaiming", initial_std=0.1, seed=seed)
    return network


def small_engine(process: Process, seed: int = 1, **changes: object) -> Engine:
    config = small_config(**changes)
    split = split_batch(config.batch, process.world_size)
    return build_engine(small_network(config, seed), config, split, process)


def batch_of_step(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and dropout keys of a whole step, the same in every process."""
    generator = torch.Generator().manual_seed(100 + step)
    images = torch.randn(GLOBAL_BATCH, 3, CROP_SIZE, CROP_SIZE, generator=generator)
    labels = torch.randint(NUM_CLASSES, (GLOBAL_BATCH,), generator=generator)
    keys = torch.randint(-(2**63), 2**63 - 1, (GLOBAL_BATCH,), generator=generator)
    return images, labels, keys


def share(tensor: Tensor, process: Process, num_micro: int) -> Sequence[Tensor]:
    """This rank's micro batches of a step's images, labels or keys."""
    return tensor.chunk(process.world_size)[process.rank].chunk(num_micro)


def loss_of(network: nn.Module, images: Tensor, labels: Tensor, keys: Tensor) -> Tensor:
    images = images.to(memory_format=torch.channels_last)
    return F.cross_entropy(network(images, keys).float(), labels)


def engine_step(engine: Engine, process: Process, step: int, num_micro: int = 1) -> None:
    """One step on this rank's share of the step's images."""
    shares = [share(tensor, process, num_micro) for tensor in batch_of_step(step)]
    for images, labels, keys in zip(*shares, strict=True):
        engine.backward(loss_of(engine, images, labels, keys))
        engine.step()


def weights_of(engine: Engine) -> State:
    """Copies of the parameters and buffers, on the CPU."""
    return {name: _copy(tensor) for name, tensor in engine.weights()}


def momentum_of(engine: Engine) -> State:
    """Copies of the momentum, on the CPU; collective under ZeRO."""
    return {name: _copy(tensor) for name, tensor in engine.momentum()}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", memory_format=torch.contiguous_format, copy=True)


def given_gradients(engine: Engine) -> State:
    """Copies of what the optimizer is given, by parameter; for a hook before its step."""
    parameters = dict(engine.module.named_parameters())
    gradients = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
    names = {id(parameter): name for name, parameter in parameters.items()}
    for product in engine.optimizer.products:
        whole = torch.empty_like(product.weight)
        product.write(slice(None), whole)
        gradients[names[id(product.weight)]] = whole
    return gradients


def plain_training(
    network: nn.Module,
    num_steps: int,
    num_micro: int = 1,
    precision: Precision = "fp32",
    clip: float = 0.0,
    momentum: float = MOMENTUM,
) -> tuple[State, State]:
    """What torch alone makes of the network in a few steps: weights and momentum by name."""
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=LEARNING_RATE, momentum=momentum, weight_decay=WEIGHT_DECAY
    )
    for step in range(num_steps):
        optimizer.zero_grad()
        tensors = [tensor.chunk(num_micro) for tensor in batch_of_step(step)]
        for images, labels, keys in zip(*tensors, strict=True):
            with torch.autocast("cpu", DTYPES[precision], enabled=precision != "fp32"):
                loss = loss_of(network, images, labels, keys)
            (loss / num_micro).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()
    buffers = {
        name: optimizer.state[parameter]["momentum_buffer"]
        for name, parameter in network.named_parameters()
        if momentum
    }
    return dict(network.state_dict()), buffers


def optimizer_config(**changes: float) -> OptimizerConfig:
    values = {"learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY}
    return OptimizerConfig.model_validate(values | changes)


def relative_difference(ours: State, theirs: State, origin: State | None = None) -> float:
    """The largest over tensors of |ours - theirs| / |theirs - origin|, in Euclidean norms."""
    assert ours.keys() == theirs.keys()
    differences = []
    for name, expected in theirs.items():
        base = origin[name] if origin else torch.zeros_like(expected)
        moved = (expected - base).double().norm()
        assert moved > 0, name
        differences.append(((ours[name] - expected).double().norm() / moved).item())
    return max(differences)


def whole_difference(ours: State, theirs: State, origin: State) -> float:
    """|ours - theirs| / |theirs - origin|, in the Euclidean norm of all tensors together."""
    assert ours.keys() == theirs.keys() == origin.keys()
    apart, moved = (
        torch.cat([(one[name] - other[name]).double().flatten() for name in theirs]).norm()
        for one, other in ((ours, theirs), (theirs, origin))
    )
    return (apart / moved).item()


def equal(ours: State, theirs: State) -> bool:
    """Bit for bit."""
    return ours.keys() == theirs.keys() and all(
        torch.equal(tensor, theirs[name]) for name, tensor in ours.items()
    )
