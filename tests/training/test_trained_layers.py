"""Fine-tuning: only some weight layers are trained.

The oracle is plain torch, in one process, whose optimizer has only the parameters of these layers.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.ranks import run_in_ranks, train_in_ranks
from tests.training.small_engine import (
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    State,
    batch_of_step,
    engine_step,
    equal,
    loss_of,
    momentum_of,
    relative_difference,
    small_config,
    small_network,
    weights_of,
)
from vggdist.artifacts.weights import Description, save_weights
from vggdist.config import Config, split_batch, trained_layers
from vggdist.config_file import load_config
from vggdist.distributed.process import Process
from vggdist.errors import CheckpointError, ConfigError
from vggdist.model.initialization import freeze
from vggdist.model.vgg import VGG, build_vgg
from vggdist.training.engine import Engine
from vggdist.training.flags import SharedFlags
from vggdist.training.zero import build_engine

STAGES = (0, 1, 2)
CHOICES = {
    "fully-connected": "fully-connected",
    "last": ["fc8"],
    "scattered": ["conv2_1", "fc7"],
}
PATHS = {  # of the small network; a batch normalization belongs to its convolution
    "conv1_1": ("features.block1.conv1", "features.block1.norm1"),
    "conv2_1": ("features.block2.conv1", "features.block2.norm1"),
    "conv2_2": ("features.block2.conv2", "features.block2.norm2"),
    "fc6": ("fc6.linear",),
    "fc7": ("fc7.linear",),
    "fc8": ("fc8.linear",),
}
TRAINED = {
    "fully-connected": ("fc6", "fc7", "fc8"),
    "last": ("fc8",),
    "scattered": ("conv2_1", "fc7"),
}


def is_trained(name: str, choice: str) -> bool:
    return name.startswith(tuple(path for layer in TRAINED[choice] for path in PATHS[layer]))


def frozen_network(config: Config, seed: int = 1) -> VGG:
    network = small_network(config, seed)
    with torch.no_grad():  # statistics unlike those of any batch, so that using others shows
        for name, buffer in network.named_buffers():
            if "running" in name:
                buffer.copy_(torch.linspace(0.5, 2.0, len(buffer)))
    freeze(network, trained_layers(config))
    return network


def tuning_config(choice: str, **changes: object) -> Config:
    config = small_config(**changes)
    values = config.optimizer.model_dump() | {"trained_layers": CHOICES[choice]}
    return Config.model_validate(config.model_dump(by_alias=True) | {"optimizer": values})


def tuning_engine(process: Process, choice: str, seed: int = 1, **changes: object) -> Engine:
    config = tuning_config(choice, **changes)
    split = split_batch(config.batch, process.world_size)
    return build_engine(frozen_network(config, seed), config, split, process)


def plain_tuning(config: Config, choice: str, num_steps: int) -> tuple[State, State, Tensor]:
    """Weights, momentum and the last gradient's norm, of torch with only the layers of `choice`."""
    network = frozen_network(config).requires_grad_(True)
    named = {n: p for n, p in network.named_parameters() if is_trained(n, choice)}
    for path, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d) and not is_trained(path, choice):
            module.eval()
    optimizer = torch.optim.SGD(
        named.values(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
    )
    for step in range(num_steps):
        network.zero_grad()
        loss_of(network, *batch_of_step(step)).backward()
        optimizer.step()
    buffers = {name: optimizer.state[p]["momentum_buffer"] for name, p in named.items()}
    norm = torch.cat([p.grad.flatten() for p in named.values()]).norm()
    return dict(network.state_dict()), buffers, norm


def tune(process: Process) -> dict[str, Any]:
    """All measurements that need engines, on any number of ranks."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for stage in STAGES:
        for choice in CHOICES:
            results[f"{choice}, stage {stage}"] = steps(process, choice, stage)
        results[f"resume, stage {stage}"] = resume(process, stage)
        results[f"statistics, stage {stage}"] = statistics(process, stage)
    return results


def steps(process: Process, choice: str, stage: int) -> dict[str, Any]:
    engine = tuning_engine(process, choice, zero_stage=stage, micro=2)
    origin = weights_of(engine)
    num_micro = 4 // process.world_size
    for step in (0, 1):
        engine.measure_norm = step == 1
        engine_step(engine, process, step, num_micro)
    weights, momentum, norm = plain_tuning(engine.config, choice, 2)
    after = weights_of(engine)
    return {
        "difference": relative_difference(only(after, choice), only(weights, choice), origin),
        "momentum": relative_difference(momentum_of(engine), momentum),
        "norm": engine.gradient_norm() / norm.item(),
        "frozen": all(
            torch.equal(after[name].view(torch.uint8), tensor.view(torch.uint8))
            for name, tensor in origin.items()
            if not is_trained(name, choice)
        ),
        "no gradient": not any(
            parameter.requires_grad or parameter.grad is not None
            for name, parameter in engine.module.named_parameters()
            if not is_trained(name, choice)
        ),
        "with momentum": set(momentum_of(engine)),
    }


def only(weights: State, choice: str) -> State:
    return {name: tensor for name, tensor in weights.items() if is_trained(name, choice)}


def resume(process: Process, stage: int) -> dict[str, Any]:
    """A step, all into another engine, a step; beside two steps of one engine."""
    first = tuning_engine(process, "scattered", zero_stage=stage, batch_norm=True)
    engine_step(first, process, 0)
    other = tuning_engine(process, "scattered", seed=2, zero_stage=stage, batch_norm=True)
    other.load(weights_of(first), momentum_of(first), {})
    for engine in (first, other):
        engine_step(engine, process, 1)
    told = ""
    try:
        tuning_engine(process, "last", zero_stage=stage, batch_norm=True).load(
            weights_of(first), momentum_of(first), {}
        )
    except CheckpointError as error:
        told = str(error)
    return {
        "weights": equal(weights_of(first), weights_of(other)),
        "momentum": equal(momentum_of(first), momentum_of(other)),
        "names": sorted(momentum_of(first)),
        "other layers": told,
    }


def statistics(process: Process, stage: int) -> dict[str, Any]:
    """What batch normalization does in a step, and after an evaluation."""
    engine = tuning_engine(process, "scattered", zero_stage=stage, batch_norm=True)
    frozen = engine.module.features.block1.norm1.running_mean
    flags = SharedFlags(engine)
    assert engine.module.features.block1.norm1.running_mean is frozen, "it must not be sent"
    before = weights_of(engine)
    for step in range(3):
        flags.begin()
        engine_step(engine, process, step)
        flags.end(engine, stop_requested=False)
        engine.eval()
        engine.train()
    after = weights_of(engine)
    return {
        name: torch.equal(tensor, before[name])
        for name, tensor in after.items()
        if "running" in name or "tracked" in name
    }


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.multi_process)])
def tuned(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_in_ranks(tune, request.param)


each_stage = pytest.mark.parametrize("stage", STAGES)
each_choice = pytest.mark.parametrize("choice", CHOICES)


@each_stage
@each_choice
def test_trained_layers_make_the_steps_of_torchs_sgd_on_them_alone(
    tuned: list[dict[str, Any]], choice: str, stage: int
) -> None:
    for results in tuned:
        result = results[f"{choice}, stage {stage}"]
        assert result["difference"] < 1e-5
        assert result["momentum"] < 1e-5
        assert result["norm"] == pytest.approx(1, rel=1e-5)


@each_stage
@each_choice
def test_frozen_layers_keep_their_bits_and_have_neither_gradient_nor_momentum(
    tuned: list[dict[str, Any]], choice: str, stage: int
) -> None:
    names = dict(small_network(small_config()).named_parameters())
    for results in tuned:
        result = results[f"{choice}, stage {stage}"]
        assert result["frozen"]
        assert result["no gradient"]
        assert result["with momentum"] == {name for name in names if is_trained(name, choice)}


@each_stage
def test_a_checkpoint_holds_the_momentum_of_trained_layers_and_goes_on_bit_for_bit(
    tuned: list[dict[str, Any]], stage: int
) -> None:
    for results in tuned:
        result = results[f"resume, stage {stage}"]
        assert result["weights"]
        assert result["momentum"]
        assert result["names"] == [
            "fc7.linear.bias",
            "fc7.linear.weight",
            "features.block2.conv1.bias",
            "features.block2.conv1.weight",
            "features.block2.norm1.bias",
            "features.block2.norm1.weight",
        ]
        assert "in its momentum, 8 tensors differ" in result["other layers"]


@each_stage
def test_only_the_statistics_of_trained_convolutions_move(
    tuned: list[dict[str, Any]], stage: int
) -> None:
    for results in tuned:
        unmoved = results[f"statistics, stage {stage}"]
        assert unmoved == {
            f"features.{block}.norm{number}.{name}": (block, number) != ("block2", 1)
            for block, number in (("block1", 1), ("block2", 1), ("block2", 2))
            for name in ("running_mean", "running_var", "num_batches_tracked")
        }


def test_the_backward_pass_ends_at_the_first_trained_layer() -> None:
    network = frozen_network(tuning_config("fully-connected"))
    reached = []

    def note(path: str, output: Tensor) -> None:
        if output.requires_grad:
            reached.append(path)

    for path, module in network.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _, __, output, path=path: note(path, output))
    network(batch_of_step(0)[0])
    assert reached == ["fc6.linear", "fc6.dropout", "fc7.linear", "fc7.dropout", "fc8.linear"]


@pytest.mark.parametrize("configuration", ["A-LRN", "C", "E"])
def test_weight_layers_have_the_names_of_the_networks_parameters(configuration: str) -> None:
    config = Config.model_validate({"model": {"configuration": configuration}})
    network = build_vgg(config.model, 224, "meta")
    names = config.model.weight_layers()
    assert len(names) == {"A-LRN": 11, "C": 16, "E": 19}[configuration]
    for name in names:
        freeze(network, [name])
        (weight, bias) = (p for p in network.parameters() if p.requires_grad)
        assert weight.dim() == (4 if name.startswith("conv") else 2)
        assert bias.dim() == 1


def test_the_choices_of_layers() -> None:
    def chosen(*overrides: str) -> tuple[str, ...]:
        return trained_layers(load_config(None, ["model.configuration=A", *overrides]))

    every = ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "conv4_1", "conv4_2", "conv5_1", "conv5_2")
    assert chosen() == (*every, "fc6", "fc7", "fc8")
    assert chosen("optimizer.trained_layers=fully-connected") == ("fc6", "fc7", "fc8")
    assert chosen("optimizer.trained_layers=[fc8, conv5_2]") == ("conv5_2", "fc8")


@pytest.mark.parametrize("value", ["fc8", "none", "[]", "[fc8, 3]", "3"])
def test_what_is_not_a_choice_of_layers_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="neither all, fully-connected, nor a list of weight"):
        load_config(None, [f"optimizer.trained_layers={value}"])


def test_unknown_layers_are_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(
            None,
            ["model.configuration=[[3-8],[3-8,3-8]]", "optimizer.trained_layers=[conv3_1,fc8,fc9]"],
        )
    assert (
        "optimizer.trained_layers: this network has no weight layer conv3_1, fc9; it has conv1_1, "
        "conv2_1, conv2_2, fc6, fc7, fc8." in str(caught.value)
    )


# The whole training


def write_trained(path: Path, overrides: list[str], only_convolutions: bool = False) -> VGG:
    """A network of seven classes and the configuration of `overrides`, as a weights file."""
    config = load_config(None, [*overrides, "model.num_classes=7"])
    network = small_network(config, seed=9)
    tensors = {
        name: tensor
        for name, tensor in network.state_dict().items()
        if not only_convolutions or name.startswith("features.")
    }
    data = config.data
    save_weights(path, tensors, Description(config.model, data.crop_size, data.mean, data.std))
    return network


def weights_after(folder: Path, step: int) -> dict[str, Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / "weights.safetensors")


@pytest.mark.multi_process
@pytest.mark.slow
def test_new_classes_train_on_frozen_layers_of_another_network_and_resume(
    tiny_overrides: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = write_trained(tmp_path / "imported.safetensors", tiny_overrides)
    tuning = [
        *tiny_overrides,
        f"model.initialize_from={tmp_path / 'imported.safetensors'}",
        "optimizer.trained_layers=[fc7, fc8]",
    ]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train_in_ranks(1, [*tuning, f"run.folder={whole}"]) == [0]
    log = (whole / "log.txt").read_text()
    assert "conv1_1 <- conv1_1, conv2_1 <- conv2_1, fc6 <- fc6, fc7 <- fc7; random: fc8" in log
    assert "trained: fc7, fc8; frozen: conv1_1, conv2_1, fc6" in log
    after = weights_after(whole, 6)
    assert after["fc8.linear.weight"].shape[0] == 3
    for name, tensor in source.state_dict().items():
        kept = name.startswith(("features.", "fc6."))
        assert name.startswith("fc8.") or torch.equal(after[name], tensor) == kept, name

    parts_folder = f"run.folder={parts}"
    assert train_in_ranks(1, [*tuning, parts_folder, "schedule.num_steps=3"]) == [0]
    assert train_in_ranks(1, [*tuning, parts_folder]) == [0]
    assert equal(weights_after(parts, 6), after)
    capfd.readouterr()
    changed = [*tuning, parts_folder, "optimizer.trained_layers=[fc8]"]
    assert train_in_ranks(1, changed) == [CheckpointError.exit_code]
    assert "optimizer.trained_layers: ('fc7', 'fc8') -> ('fc8',)" in capfd.readouterr().err


@pytest.mark.multi_process
@pytest.mark.slow
def test_a_file_of_convolutions_alone_is_a_start_unless_a_frozen_layer_would_stay_random(
    tiny_overrides: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = write_trained(tmp_path / "convolutions.safetensors", tiny_overrides, True)
    tuning = [
        *tiny_overrides,
        f"model.initialize_from={tmp_path / 'convolutions.safetensors'}",
        "schedule.num_steps=2",
    ]
    assert train_in_ranks(1, [*tuning, "optimizer.trained_layers=[fc8]"]) == [2]
    assert (
        "error: optimizer.trained_layers leaves out fc6, fc7, which would stay random; set "
        "model.initialize_from" in capfd.readouterr().err
    )
    good = [*tuning, "optimizer.trained_layers=fully-connected"]
    assert train_in_ranks(1, good) == [0]
    folder = Path(load_config(None, tiny_overrides).run_folder)
    assert "random: fc6, fc7, fc8" in (folder / "log.txt").read_text()
    after = weights_after(folder, 2)
    for name, tensor in source.features.state_dict(prefix="features.").items():
        assert torch.equal(after[name], tensor), name
