"""`vggdist bench step` on tiny networks; only orders of magnitude are asserted."""

import pytest
import torch
import torch.nn.functional as F
from torch import distributed

from tests.profiling.tiny import TINY
from tests.ranks import leave_world, run_in_ranks
from vggdist.cli import parse
from vggdist.config import split_batch
from vggdist.config_file import load_config
from vggdist.errors import ConfigError
from vggdist.model.initialization import build_initialized
from vggdist.profiling import commands, step
from vggdist.profiling.loops import BareLoop, OurLoop, synthetic_batch
from vggdist.profiling.step import measure_step

BEFORE = {
    "configuration", "crop_size", "precision", "micro_batch", "accumulation_steps", "device",
    "rounds", "bare_seconds", "tuned_seconds", "vggdist_seconds", "ratio", "ratio_min", "ratio_max",
    "ratio_fastest", "images_per_second",
}  # fmt: skip
ANSWER = {
    "loader_images_per_second", "step_images_per_second", "together_images_per_second",
    "no_exchange_images_per_second", "data_wait", "bound", "advice", "world_size",
}  # fmt: skip


def bench_step(_process, *words):
    """The command in a rank of its own, every timing that of one step; its result, if any."""
    leave_world()
    step._WINDOW_SECONDS = 1e-9
    shown = []
    commands.show = lambda *result: shown.append(result)
    arguments = parse(["bench", "step", "--rounds", "1", *words])
    arguments.run(arguments)
    return shown


@pytest.mark.slow
def test_loader_and_step_are_timed_alone_and_together_and_the_table_says_what_binds(
    tiny_overrides,
):
    """Which of them it is follows from their times in `test_bound.py`."""
    (((table, result, _),),) = run_in_ranks(bench_step, 1, *tiny_overrides, "device=cpu")
    assert result.keys() == BEFORE | ANSWER
    for alone in ("loader", "step"):
        assert result[f"{alone}_images_per_second"] > 0
    assert result["together_images_per_second"] > 0
    assert 0 <= result["data_wait"] < 1
    assert result["no_exchange_images_per_second"] is None
    assert table.splitlines()[-1].startswith(f"This training is {result['bound']}-bound: ")
    assert "vggdist / bare: " in table
    assert "loader alone" in table


@pytest.mark.slow
def test_without_images_only_compute_and_exchange_are_compared(tmp_path):
    path = tmp_path / "step.json"
    (((table, result, out),),) = run_in_ranks(bench_step, 1, "--json", str(path), *TINY)
    assert out == path
    assert result.keys() == BEFORE | ANSWER
    assert result["loader_images_per_second"] is None
    assert result["together_images_per_second"] is None
    assert result["data_wait"] is None
    assert result["tuned_seconds"] is None
    assert result["bound"] == "compute"
    assert "data.root is not set, so only compute and exchange were compared." in table
    assert "loader alone" not in table


@pytest.mark.multi_process
@pytest.mark.slow
def test_two_ranks_measure_the_exchange_and_one_of_them_speaks(tiny_overrides):
    shown, nothing = run_in_ranks(bench_step, 2, *tiny_overrides, "device=cpu")
    assert nothing == []
    ((table, result, _),) = shown
    assert table.count("This training is ") == 1
    assert "step without exchange" in table
    assert result["world_size"] == 2
    assert result["no_exchange_images_per_second"] > 0
    assert result["micro_batch"] == 4
    assert result["images_per_second"] == pytest.approx(8 / result["vggdist_seconds"])


@pytest.mark.multi_process
@pytest.mark.slow
def test_under_zero_the_exchange_cannot_be_left_out_and_the_advice_says_so():
    shown, nothing = run_in_ranks(bench_step, 2, *TINY, "zero_stage=1")
    assert nothing == []
    ((_, result, _),) = shown
    assert result["no_exchange_images_per_second"] is None
    assert "The exchange of zero_stage 1 is DeepSpeed's" in result["advice"]


@pytest.mark.multi_process
@pytest.mark.slow
def test_without_exchange_only_the_flags_are_sent_and_afterwards_gradients_are_again():
    for counts in run_in_ranks(_collectives_of_three_steps, 2):
        exchanged, kept, exchanged_again = counts
        assert exchanged == exchanged_again > 1
        assert kept == 1


def _collectives_of_three_steps(process):
    config = load_config(None, [*TINY, "batch.global=8", "batch.micro=2"])
    split = split_batch(config.batch, process.world_size)
    loop = OurLoop(config, split, process)
    batches = [synthetic_batch(config, split.micro, process.device)] * split.accumulation_steps
    loop.step(batches)
    count, real = 0, distributed.all_reduce

    def counting(*arguments, **options):
        nonlocal count
        count += 1
        return real(*arguments, **options)

    distributed.all_reduce = counting
    counts = []
    for keep in (False, True, False):
        count = 0
        if keep:
            with loop.gradients_kept():
                loop.step(batches)
        else:
            loop.step(batches)
        counts.append(count)
    distributed.all_reduce = real
    return counts


def test_the_tuned_loop_lets_cudnn_try_its_algorithms_in_its_own_steps_only(monkeypatch):
    config = load_config(None, [*TINY, "batch.global=2", "batch.micro=2"])
    device = torch.device("cpu")
    network = build_initialized(config.model, config.data.crop_size, config.seed)
    loop, tried = BareLoop(network, config, device), []
    monkeypatch.setattr(F, "cross_entropy", noting(tried, F.cross_entropy))
    batches = [synthetic_batch(config, 2, device)]
    for take_step in (loop.step, loop.tuned_step, loop.step):
        take_step(batches)
    assert tried == [False, True, False]


def noting(tried, function):
    def noted(*arguments):
        tried.append(torch.backends.cudnn.benchmark)
        return function(*arguments)

    return noted


def test_classes_that_the_network_lacks_are_an_error(tiny_overrides):
    config = load_config(None, [*tiny_overrides, "model.num_classes=2"])
    with pytest.raises(ConfigError, match=r"model.num_classes is 2, but .* has 3 classes; set "):
        measure_step(config, 1)
