"""The oracle is plain torch: autocast, `torch.optim.SGD`, `clip_grad_norm_`, in one process.

DeepSpeed keeps globals that outlive an engine (`TORCH_AUTOCAST_INITIALIZED`), so every case runs in
a process of its own making; cases share one, fp32 first, because a start costs seconds.
"""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ranks import run_in_ranks
from tests.training.small_engine import (
    State,
    batch_of_step,
    engine_step,
    equal,
    loss_of,
    momentum_of,
    plain_training,
    relative_difference,
    share,
    small_config,
    small_engine,
    small_network,
    weights_of,
)
from vggdist.artifacts import checkpoint
from vggdist.config import split_batch
from vggdist.distributed.process import Process
from vggdist.errors import CheckpointError
from vggdist.training import cpu
from vggdist.training.cpu import convolutions_are_channels_last
from vggdist.training.engine import Engine, deepspeed_config
from vggdist.training.flags import SharedFlags

STAGES = (0, 1, 2)
PRECISIONS = ("fp32", "bf16", "fp16")
# Of the change that the steps made. fp32: other orders of adding up; bf16 and fp16 round most where
# the memory format chooses another kernel, fp16 also where the loss scale moves small gradients.
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2, "fp16": 1e-2}


# One rank


def one_rank(process: Process) -> dict[str, Any]:
    """All measurements that need an engine on one rank."""
    torch.set_num_threads(1)  # two that wait for each other on a busy machine take 50 times longer
    plain = {
        (precision, num_steps): plain_training(
            small_network(small_config(micro=4)), num_steps, 2, precision
        )
        for precision in PRECISIONS
        for num_steps in (1, 2)
    }
    results: dict[str, Any] = {}
    for precision in PRECISIONS:
        results[f"wide block: {precision}"] = wide_block(process, precision, plain[precision, 1])
        for stage in STAGES:
            case = f"{precision}, stage {stage}"
            messages = _Messages()
            engine = small_engine(process, micro=4, precision=precision, zero_stage=stage)
            results[f"warning: {case}"] = messages.stop()
            if precision == "fp16":
                set_loss_scale(engine, 256.0)
            origin, differences = weights_of(engine), []
            for step in (0, 1):
                engine_step(engine, process, step, num_micro=2)
                weights, momentum = plain[precision, step + 1]
                differences.append(relative_difference(weights_of(engine), weights, origin))
                differences.append(relative_difference(momentum_of(engine), momentum))
            results[f"steps: {case}"] = differences
            results[f"flags: {case}"] = (engine.masked.tolist(), engine.failed.tolist())
            results[f"channels_last: {case}"] = convolutions_are_channels_last(engine.module)
            results[f"clipping: {case}"] = clipping(process, precision, stage)
            if precision == "fp16":
                results[f"overflow: {case}"] = overflow(process, stage, plain[precision, 1])
                results[f"smallest scale: {case}"] = smallest_scale(process, stage)
    # At the end: the bf16 and fp16 of before would change an fp32 engine under ZeRO.
    for stage in STAGES:
        results[f"no momentum: stage {stage}"] = no_momentum(process, stage)
    results["other networks"] = other_networks(process)
    return results


def wide_block(process: Process, precision: str, plain: tuple[Any, Any]) -> dict[str, Any]:
    """A step as if the second block, of 8 channels, were a wide one."""
    wide, cpu.WIDE = cpu.WIDE, 8
    engine = small_engine(process, micro=4, precision=precision)
    cpu.WIDE = wide
    if precision == "fp16":
        set_loss_scale(engine, 256.0)
    taken: list[bool] = []
    narrow, wide_one = (engine.module.get_submodule(f"features.block{n}.conv1") for n in (1, 2))
    wide_one.register_forward_pre_hook(lambda _, maps: taken.append(maps[0].is_contiguous()))
    origin = weights_of(engine)
    engine_step(engine, process, step=0, num_micro=2)
    differences = [
        relative_difference(weights_of(engine), plain[0], origin),
        relative_difference(momentum_of(engine), plain[1]),
    ]
    return {
        "channels_last": [
            convolutions_are_channels_last(narrow),
            convolutions_are_channels_last(wide_one),
        ],
        "contiguous maps": set(taken),
        "differences": differences,
    }


def set_loss_scale(engine: Engine, scale: float) -> None:
    state = engine.scaler_state()
    engine.load(weights_of(engine), momentum_of(engine), state | {"scale": scale})


def clipping(process: Process, precision: str, stage: int) -> dict[str, float]:
    clip = 0.5
    engine = small_engine(process, micro=4, precision=precision, zero_stage=stage, clip=clip)
    if precision == "fp16":
        set_loss_scale(engine, 256.0)
    origin = weights_of(engine)
    engine.measure_norm = True
    engine_step(engine, process, 0, num_micro=2)
    weights, _ = plain_training(small_network(engine.config), 1, 2, precision, clip=clip)
    not_clipped, _ = plain_training(small_network(engine.config), 1, 2, precision)
    unclipped = small_network(engine.config)
    loss_of(unclipped, *batch_of_step(0)).backward()
    norm = torch.cat([p.grad.flatten() for p in unclipped.parameters()]).norm().item()
    return {
        "difference": relative_difference(weights_of(engine), weights, origin),
        "without clipping": relative_difference(weights_of(engine), not_clipped, origin),
        "norm": engine.gradient_norm(),
        "norm in plain torch": norm,
    }


def overflow(process: Process, stage: int, plain: tuple[State, State]) -> dict[str, Any]:
    """Step 0 again and again until fp16's loss scale, 65,536 at first, fits the gradients."""
    engine = small_engine(process, micro=4, precision="fp16", zero_stage=stage)
    origin, scales, flags = weights_of(engine), [], []
    unmoved, no_garbage = True, True
    while len(scales) < 10:
        engine_step(engine, process, 0, num_micro=2)
        scales.append(engine.loss_scale())
        flags.append((engine.masked.item(), engine.failed.item()))
        if not engine.masked.item():
            break
        unmoved &= equal(weights_of(engine), origin)
        no_garbage &= not any(buffer.any() for buffer in momentum_of(engine).values())
    return {
        "scales": scales,
        "flags": flags,
        "unmoved": unmoved,
        "no garbage": no_garbage,
        "difference": relative_difference(weights_of(engine), plain[0], origin),
    }


def smallest_scale(process: Process, stage: int) -> dict[str, Any]:
    engine = small_engine(process, micro=4, precision="fp16", zero_stage=stage)
    set_loss_scale(engine, 1.0)
    origin = weights_of(engine)
    engine.module.fc7.linear.bias.register_hook(lambda gradient: gradient * float("inf"))
    engine_step(engine, process, 0, num_micro=2)
    return {
        "flags": (engine.masked.tolist(), engine.failed.tolist()),
        "unmoved": equal(weights_of(engine), origin),
    }


def no_momentum(process: Process, stage: int) -> dict[str, Any]:
    engine = small_engine(process, precision="bf16", zero_stage=stage, momentum=0.0)
    origin = weights_of(engine)
    engine_step(engine, process, 0)
    weights, _ = plain_training(small_network(engine.config), 1, 1, "bf16", momentum=0.0)
    saved = (weights_of(engine), momentum_of(engine), engine.scaler_state())
    other = small_engine(process, seed=2, precision="bf16", zero_stage=stage, momentum=0.0)
    other.load(*saved)
    return {
        "difference": relative_difference(weights_of(engine), weights, origin),
        "momentum": momentum_of(engine),
        "loaded": equal(weights_of(other), weights_of(engine)),
    }


def other_networks(process: Process) -> list[str]:
    """What is said of checkpoints with another tensor, one less, and one of another shape."""
    engine = small_engine(process)
    weights, momentum, before = weights_of(engine), momentum_of(engine), weights_of(engine)
    bias = "fc8.linear.bias"
    without = {name: tensor for name, tensor in weights.items() if name != bias}
    told = []
    for wrong_weights, wrong_momentum in (
        (weights | {"fc9.linear.bias": weights[bias]}, momentum),
        (without, momentum),
        (weights | {bias: weights[bias][:1]}, momentum),  # copied, it would be broadcast
        (weights, {}),
    ):
        try:
            engine.load(wrong_weights, wrong_momentum, {})
        except CheckpointError as error:
            told.append(str(error))
    assert equal(weights_of(engine), before)
    return told


class _Messages(logging.Handler):
    """What the package logs from now until `stop`."""

    def __init__(self) -> None:
        super().__init__()
        self._texts: list[str] = []
        logging.getLogger("vggdist.training").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            self._texts.append(record.getMessage())

    def stop(self) -> list[str]:
        logging.getLogger("vggdist.training").removeHandler(self)
        return self._texts


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return run_in_ranks(one_rank, 1)[0]


each_case = pytest.mark.parametrize(
    ("precision", "stage"), [(p, s) for p in PRECISIONS for s in STAGES]
)
each_stage = pytest.mark.parametrize("stage", STAGES)


@each_case
def test_two_steps_of_two_micro_batches_are_two_steps_of_plain_sgd(
    alone: dict[str, Any], precision: str, stage: int
) -> None:
    first, first_momentum, second, second_momentum = alone[f"steps: {precision}, stage {stage}"]
    tolerance = TOLERANCE[precision]
    assert max(first, first_momentum) < tolerance
    assert max(second, second_momentum) < tolerance
    assert alone[f"flags: {precision}, stage {stage}"] == ([0.0], [0.0])


@each_case
def test_convolution_weights_are_channels_last_at_stage_0_and_a_warning_says_where_not(
    alone: dict[str, Any], precision: str, stage: int
) -> None:
    case = f"{precision}, stage {stage}"
    assert alone[f"channels_last: {case}"] == (stage == 0)
    if stage == 0:
        assert alone[f"warning: {case}"] == []
    else:
        (warning,) = alone[f"warning: {case}"]
        assert warning == (
            f"zero_stage {stage} keeps weights in one flat buffer, so convolution weights are not "
            "channels_last and are converted in every forward pass; zero_stage 0 keeps them."
        )


@each_case
def test_gradient_clipping_0_does_not_clip_and_above_0_it_does_as_torch(
    alone: dict[str, Any], precision: str, stage: int
) -> None:
    """The first test had gradients of a norm far above DeepSpeed's own default, 1.0, too."""
    result = alone[f"clipping: {precision}, stage {stage}"]
    assert result["norm in plain torch"] > 5
    assert result["difference"] < TOLERANCE[precision]
    assert result["without clipping"] > 0.5


@each_case
def test_the_gradient_norm_is_that_before_clipping_and_without_the_loss_scale(
    alone: dict[str, Any], precision: str, stage: int
) -> None:
    result = alone[f"clipping: {precision}, stage {stage}"]
    assert result["norm"] == pytest.approx(result["norm in plain torch"], rel=TOLERANCE[precision])


@each_stage
def test_an_fp16_overflow_is_a_masked_step_that_halves_the_loss_scale_once(
    alone: dict[str, Any], stage: int
) -> None:
    result = alone[f"overflow: fp16, stage {stage}"]
    *overflows, last = result["scales"]
    assert overflows == [2.0**16 / 2 ** (n + 1) for n in range(len(overflows))]
    assert overflows, "no step overflowed"
    assert last == overflows[-1]
    assert result["flags"] == [(1.0, 0.0)] * len(overflows) + [(0.0, 0.0)]
    assert result["difference"] < TOLERANCE["fp16"]


@each_stage
def test_an_overflow_in_the_first_step_leaves_nothing_in_weights_and_momentum(
    alone: dict[str, Any], stage: int
) -> None:
    result = alone[f"overflow: fp16, stage {stage}"]
    assert result["unmoved"]
    assert result["no garbage"]


@each_stage
def test_an_overflow_at_the_smallest_loss_scale_is_a_failure(
    alone: dict[str, Any], stage: int
) -> None:
    result = alone[f"smallest scale: fp16, stage {stage}"]
    assert result == {"flags": ([1.0], [1.0]), "unmoved": True}


@each_stage
def test_without_momentum_there_is_none_to_save(alone: dict[str, Any], stage: int) -> None:
    result = alone[f"no momentum: stage {stage}"]
    assert result["momentum"] == {}
    assert result["loaded"]
    assert result["difference"] < TOLERANCE["bf16"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_wide_blocks_are_contiguous_in_fp32_on_a_cpu_and_train_alike(
    alone: dict[str, Any], precision: str
) -> None:
    result = alone[f"wide block: {precision}"]
    assert result["channels_last"] == [True, precision != "fp32"]
    assert result["contiguous maps"] == {precision == "fp32"}
    assert max(result["differences"]) < TOLERANCE[precision]


def test_the_checkpoint_of_another_network_is_refused(alone: dict[str, Any]) -> None:
    other, less, shape, no_momentum = alone["other networks"]
    assert other == (
        "the checkpoint is of another network: in its weights, 1 tensors differ in name or shape, "
        "the first is fc9.linear.bias. Continue it with the configuration that it was made with, "
        "or set run.resume to another one."
    )
    assert less == shape == other.replace("fc9", "fc8")
    assert "in its momentum, 12 tensors differ" in no_momentum


# Two ranks


def two_ranks(process: Process, folder: Path) -> dict[str, Any]:
    """All measurements that need an engine on each of two ranks."""
    results: dict[str, Any] = {}
    engines = {}
    for stage in STAGES:
        engine = small_engine(process, micro=2, zero_stage=stage, dropout=0.5)
        origin = weights_of(engine)
        engine_step(engine, process, 0, num_micro=2)
        first = {"weights": weights_of(engine), "momentum": momentum_of(engine)}
        results[f"saved: stage {stage}"] = first
        if process.is_main:
            saved = checkpoint.Checkpoint(1, first["weights"], first["momentum"], {})
            checkpoint.save(folder / str(stage), saved, keep=2)
        engine_step(engine, process, 1, num_micro=2)
        plain = plain_training(small_network(engine.config), 2)
        results[f"one rank: stage {stage}"] = (
            relative_difference(weights_of(engine), plain[0], origin),
            relative_difference(momentum_of(engine), plain[1]),
        )
        engines[stage] = engine
    all_reducing = small_engine(process, micro=2, dropout=0.5, exchange="all_reduce")
    results["sent"] = sent_elements(all_reducing, process)
    results["parameters"] = sum(p.numel() for p in engines[0].module.parameters())
    for old, new in ((0, 0), (1, 1), (2, 2), (0, 1), (1, 0), (0, 2)):
        torch.distributed.barrier()
        path = checkpoint.newest(folder / str(old))
        assert path is not None
        saved = checkpoint.load(path)
        engine = small_engine(process, seed=2, micro=2, zero_stage=new, dropout=0.5)
        engine.load(saved.weights, saved.momentum, {})
        case = f"loaded: stage {old} to {new}"
        results[case] = {"weights": weights_of(engine), "momentum": momentum_of(engine)}
        engine_step(engine, process, 1, num_micro=2)
        results[case]["went on"] = relative_difference(
            weights_of(engine), weights_of(engines[old]), saved.weights
        )
        results[case]["bit for bit"] = equal(weights_of(engine), weights_of(engines[old]))
    for stage in STAGES:
        for accident in ("nan loss", "infinite loss", "nan gradient", "infinite gradient"):
            results[f"{accident}: stage {stage}"] = after_an_accident(process, stage, accident)
    for stage in STAGES:  # fp16 at the end, as above
        results[f"overflow: stage {stage}"] = overflow_on_one_rank(process, stage)
    return results


def sent_elements(engine: Engine, process: Process) -> int:
    """Elements that all-reduces of any part of DeepSpeed or ours carry in a step."""
    sizes = []
    all_reduce = torch.distributed.all_reduce

    def counted(tensor: Tensor, *arguments: Any, **named: Any) -> Any:
        sizes.append(tensor.numel())
        return all_reduce(tensor, *arguments, **named)

    torch.distributed.all_reduce = counted
    origin = weights_of(engine), momentum_of(engine)
    engine_step(engine, process, 1, num_micro=2)
    torch.distributed.all_reduce = all_reduce
    engine.load(*origin, {})
    return sum(sizes)


def after_an_accident(process: Process, stage: int, accident: str) -> dict[str, Any]:
    """A good step, one in which rank 1 meets the accident in its first micro batch, a good one."""
    engine = small_engine(process, micro=2, zero_stage=stage, batch_norm=True)
    flags = SharedFlags(engine)
    meets_it = process.rank == 1

    def spoil(gradient: Tensor) -> Tensor:
        factor = {"nan gradient": float("nan"), "infinite gradient": float("inf")}.get(accident)
        return gradient if factor is None or not meets_it else gradient.abs() * factor

    def step(number: int, with_accident: bool) -> list[float]:
        flags.begin()
        handle = engine.module.features.block2.conv1.weight.register_hook(spoil)
        shares = [share(tensor, process, 2) for tensor in batch_of_step(number)]
        for images, labels, keys in zip(*shares, strict=True):
            loss = loss_of(engine, images, labels, keys)
            if with_accident and meets_it and accident == "nan loss":
                loss = loss * float("nan")
            if with_accident and meets_it and accident == "infinite loss":
                loss = loss + float("inf")  # of finite gradients
            if not with_accident:
                handle.remove()
            engine.backward(loss)
            engine.step()
            handle.remove()
        return flags.end(engine, False).tolist()

    def state() -> tuple[State, State]:
        weights = weights_of(engine)
        # Counts forward passes, and nothing reads it.
        return {n: w for n, w in weights.items() if "tracked" not in n}, momentum_of(engine)

    good_flags = step(0, with_accident=False)
    before = state()
    bad_flags = step(1, with_accident=True)
    after = state()
    next_flags = step(2, with_accident=False)
    return {
        "flags": (good_flags, bad_flags, next_flags),
        "state": after,
        "unmoved": equal(before[0], after[0]) and equal(before[1], after[1]),
        "later unmoved": equal(before[0], state()[0]),
    }


def overflow_on_one_rank(process: Process, stage: int) -> dict[str, Any]:
    engine = small_engine(process, micro=2, zero_stage=stage, precision="fp16")
    set_loss_scale(engine, 256.0)
    before = weights_of(engine)
    bias = engine.module.features.block2.conv1.bias
    spoil = bias.register_hook(lambda gradient: gradient / (1 - process.rank))
    engine_step(engine, process, 0, num_micro=2)
    flags, scale = (engine.masked.item(), engine.failed.item()), engine.loss_scale()
    unmoved = equal(weights_of(engine), before)
    spoil.remove()
    engine_step(engine, process, 0, num_micro=2)
    plain, _ = plain_training(small_network(engine.config), 1, precision="fp16")
    return {
        "flags": flags,
        "scales": (scale, engine.loss_scale()),
        "unmoved": unmoved,
        "then": relative_difference(weights_of(engine), plain, before),
    }


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_in_ranks(two_ranks, 2, tmp_path_factory.mktemp("checkpoints"))


@pytest.mark.multi_process
@each_stage
def test_two_ranks_and_two_micro_batches_are_one_rank_and_none(
    together: list[dict[str, Any]], stage: int
) -> None:
    """With the same global batch, and dropout masks drawn from keys."""
    for results in together:
        assert max(results[f"one rank: stage {stage}"]) < TOLERANCE["fp32"]


@pytest.mark.multi_process
def test_at_stage_0_every_gradient_is_sent_once(together: list[dict[str, Any]]) -> None:
    """DeepSpeed's own reduction, at the end of the backward pass, is off."""
    for results in together:
        assert results["sent"] == results["parameters"]


@pytest.mark.multi_process
@each_stage
@pytest.mark.parametrize(
    "accident", ["nan loss", "infinite loss", "nan gradient", "infinite gradient"]
)
def test_an_accident_on_one_rank_stops_all_and_changes_nothing(
    together: list[dict[str, Any]], accident: str, stage: int
) -> None:
    """Weights, momentum and batch statistics stay as they were, bit for bit, on both ranks."""
    first, second = (results[f"{accident}: stage {stage}"] for results in together)
    for result in (first, second):
        good, bad, _ = result["flags"]
        assert good == [0.0, 0.0, 0.0, 0.0]
        assert bad == [1.0, 1.0, 0.0, 0.0]
        assert result["unmoved"]
    for ours, theirs in zip(first["state"], second["state"], strict=True):
        assert equal(ours, theirs)


@pytest.mark.multi_process
@each_stage
def test_an_fp16_overflow_on_one_rank_is_a_masked_step_of_all_with_one_loss_scale(
    together: list[dict[str, Any]], stage: int
) -> None:
    for results in together:
        result = results[f"overflow: stage {stage}"]
        assert result["flags"] == (1.0, 0.0)
        assert result["scales"] == (128.0, 128.0)
        assert result["unmoved"]
        assert result["then"] < TOLERANCE["fp16"]


@pytest.mark.multi_process
def test_after_an_accident_stage_0_stays_masked_until_the_host_has_noticed(
    together: list[dict[str, Any]],
) -> None:
    for results in together:
        result = results["nan gradient: stage 0"]
        assert result["flags"][2] == [1.0, 1.0, 0.0, 0.0]
        assert result["later unmoved"]


@pytest.mark.multi_process
@pytest.mark.parametrize(("old", "new"), [(0, 0), (1, 1), (2, 2), (0, 1), (1, 0), (0, 2)])
def test_what_a_stage_saved_any_stage_loads_and_goes_on_with(
    together: list[dict[str, Any]], old: int, new: int
) -> None:
    for results in together:
        saved, loaded = results[f"saved: stage {old}"], results[f"loaded: stage {old} to {new}"]
        assert equal(loaded["weights"], saved["weights"])
        assert equal(loaded["momentum"], saved["momentum"])
        assert loaded["went on"] < TOLERANCE["fp32"]
        if old == new:
            assert loaded["bit for bit"]


# No rank at all


def test_deepspeeds_surprising_defaults_are_written_out() -> None:
    config = small_config(precision="bf16", zero_stage=1)
    assert deepspeed_config(config, split_batch(config.batch, 2)) == {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": 1, "overlap_comm": False},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
        "timers": {"throughput": {"enabled": False}},
        "torch_autocast": {
            "enabled": True,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
    }
    assert "torch_autocast" not in deepspeed_config(small_config(), split_batch(config.batch, 2))
