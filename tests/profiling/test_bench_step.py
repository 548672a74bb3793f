"""`vggdist bench step` on tiny networks; only orders of magnitude are asserted."""

import copy
import os
import shutil
import sys

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
from vggdist.profiling.loops import BareLoop, OurLoop, TunedLoop, synthetic_batch
from vggdist.profiling.step import measure_step, render_step
from vggdist.training.utilization import training_flops

BEFORE = {
    "configuration", "crop_size", "precision", "micro_batch", "accumulation_steps", "device",
    "rounds", "bare_seconds", "tuned_seconds", "vggdist_seconds", "ratio", "ratio_min", "ratio_max",
    "ratio_fastest", "images_per_second", "ratio_tuned", "tuned_settings", "tuned_missing",
    "settings_left", "model_flop_utilization", "peak_teraflops", "peak",
}  # fmt: skip
ANSWER = {
    "loader_images_per_second", "step_images_per_second", "together_images_per_second",
    "no_exchange_images_per_second", "data_wait", "bound", "advice", "world_size",
}  # fmt: skip


def bench_step(_process, *words, compiler="/nowhere/g++"):
    """The command in a rank of its own, every timing that of one step; its result, if any.

    Without a compiler, since that takes a quarter of a minute.
    """
    leave_world()
    os.environ["CXX"] = compiler
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
    assert result["ratio_tuned"] is None
    sentence = (
        "The tuned loop goes without torch.compile: there is no C++ compiler, neither g++ nor one "
        "that CXX names."
    )
    assert result["tuned_missing"] == [sentence]
    assert sentence in table.splitlines()
    assert result["bound"] == "compute"
    assert "data.root is not set, so only compute and exchange were compared." in table
    assert "loader alone" not in table


def compiled_step(process, *words):
    return bench_step(process, *words, compiler="g++")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_the_tuned_loop_has_a_row_and_all_loops_are_compared_with_a_peak_measured_here():
    (((table, result, _),),) = run_in_ranks(compiled_step, 1, *TINY, "batch.global=8")
    assert (result["tuned_settings"], result["tuned_missing"]) == (["torch.compile"], [])
    assert result["ratio_tuned"] == pytest.approx(
        result["vggdist_seconds"] / result["tuned_seconds"]
    )
    flops = training_flops(load_config(None, TINY))
    share = 8 * flops / result["vggdist_seconds"] / 1e12 / result["peak_teraflops"]
    assert result["model_flop_utilization"] == pytest.approx(share)
    assert result["peak"] == "a product of 2048 x 2048 matrices in fp32 here"
    rows = {line.partition("  ")[0]: line for line in table.splitlines()}
    seconds = f"{result['tuned_seconds']:.4f}"
    assert rows["tuned: torch.compile"].split()[2] == seconds
    assert rows["vggdist"].endswith(f"  {100 * share:.1f} %")
    assert "the peak is that of a product of 2048 x 2048 matrices in fp32 here: " in table
    assert f"vggdist / tuned: {result['ratio_tuned']:.4f}" in table
    assert result["settings_left"] == ["compile=true"]
    advice = "The tuned loop is faster; compile=true gives this training what makes it so."
    for ratio, advised in ((1.1, True), (1.0, False)):
        assert (advice in render_step(result | {"ratio_tuned": ratio})) == advised


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


@pytest.fixture
def both_loops(monkeypatch):
    """A bare and a tuned loop of the same network, and their batches; `compile` does nothing."""
    monkeypatch.setenv("CXX", sys.executable)  # something that is there
    monkeypatch.setattr(torch, "compile", lambda features: features)
    config = load_config(None, [*TINY, "batch.global=2", "batch.micro=2"])
    device = torch.device("cpu")
    network = build_initialized(config.model, config.data.crop_size, config.seed)
    batches = [synthetic_batch(config, 2, device)]
    loops = [kind(copy.deepcopy(network), config, device) for kind in (BareLoop, TunedLoop)]
    return *loops, batches


def test_the_tuned_loop_lets_cudnn_try_its_algorithms_in_its_own_steps_only(
    both_loops, monkeypatch
):
    bare, tuned, batches = both_loops
    tried, cross_entropy = [], F.cross_entropy

    def noted(*arguments):
        tried.append(torch.backends.cudnn.benchmark)
        return cross_entropy(*arguments)

    monkeypatch.setattr(F, "cross_entropy", noted)
    for loop in (bare, tuned, bare):
        loop.step(batches)
    assert tried[0] is False
    assert set(tried[1:-1]) == {True}
    assert tried[-1] is False


def test_a_compiler_that_fails_costs_the_setting_and_not_the_loop(both_loops, monkeypatch):
    bare, tuned, batches = both_loops

    class Broken(torch.nn.Module):
        def forward(self, _):
            raise RuntimeError("no such header\nand a page of output")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: Broken())
    for loop in (bare, tuned):
        torch.manual_seed(0)  # of the dropout
        loop.step(batches)
    assert tuned.settings == []
    assert tuned.missing == ["The tuned loop goes without torch.compile: no such header."]
    for ours, theirs in zip(tuned._network.parameters(), bare._network.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_classes_that_the_network_lacks_are_an_error(tiny_overrides):
    config = load_config(None, [*tiny_overrides, "model.num_classes=2"])
    with pytest.raises(ConfigError, match=r"model.num_classes is 2, but .* has 3 classes; set "):
        measure_step(config, 1)
