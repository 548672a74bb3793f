"""Steps of VGG D under a pretended CUDA: the host does not wait for its GPU, and stays on it."""

import pytest

from tests.fake_cuda.process import FakeCuda
from tests.fake_cuda.steps import ALONE, Ranks, Report, gpu_at_start, train
from vggdist.distributed.precision import DTYPES
from vggdist.training.graph import WARM_UP_STEPS

pytestmark = pytest.mark.slow

EIGHT = Ranks(world_size=8, rank=3)
LOGGED = "log.every_steps=1"


def test_a_rank_turns_to_its_gpu_when_it_starts(fake_cuda: FakeCuda) -> None:
    assert fake_cuda.run(gpu_at_start, EIGHT) == EIGHT.rank


@pytest.mark.parametrize("precision", DTYPES)
def test_a_step_of_one_gpu_is_never_waited_for(fake_cuda: FakeCuda, precision: str) -> None:
    report = fake_cuda.run(
        train,
        [
            f"precision={precision}",
            "batch.global=64",
            "model.batch_norm=true",
            "data.std=[58.4,57.1,57.4]",
            "optimizer.gradient_clipping=5.0",
        ],
    )
    assert report.faults == []
    assert_whole(report, ALONE)


@pytest.mark.parametrize("precision", DTYPES)
def test_a_step_of_eight_gpus_is_never_waited_for(fake_cuda: FakeCuda, precision: str) -> None:
    settings = [f"precision={precision}", "batch.global=512", "exchange=factors"]
    report = fake_cuda.run(train, settings, EIGHT)
    assert report.faults == []
    assert_whole(report, EIGHT)


@pytest.mark.parametrize(
    ("precision", "settings"),
    [
        ("fp32", ["exchange=all_reduce", "optimizer.gradient_clipping=5.0"]),
        ("bf16", ["exchange=all_reduce", "optimizer.name=lars"]),
        ("fp16", ["exchange=factors", "optimizer.name=lars"]),
    ],
)
def test_no_exchange_and_no_optimizer_is_waited_for(
    fake_cuda: FakeCuda, precision: str, settings: list[str]
) -> None:
    batch = ["batch.global=1024", "batch.micro=64"]
    report = fake_cuda.run(train, [f"precision={precision}", *batch, *settings], EIGHT)
    assert report.faults == []
    assert_whole(report, EIGHT, num_micro_batches=2)


@pytest.mark.parametrize(
    ("precision", "ranks"), [("fp16", ALONE), ("bf16", EIGHT)], ids=["fp16", "bf16"]
)
def test_a_step_that_is_logged_is_waited_for_by_the_log_alone(
    fake_cuda: FakeCuda, precision: str, ranks: Ranks
) -> None:
    settings = [f"precision={precision}", f"batch.global={64 * ranks.world_size}", LOGGED]
    report = fake_cuda.run(train, settings, ranks)
    places = {fault.rpartition(" in ")[2] for fault in report.faults}
    assert places == {"pause", "_write_log", "gradient_norm"}
    assert_whole(report, ranks)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_copies_of_a_checkpoint_are_waited_for_by_its_thread_alone(
    fake_cuda: FakeCuda, precision: str
) -> None:
    settings = [f"precision={precision}", "batch.global=64", "checkpoint.every_steps=3"]
    report = fake_cuda.run(train, settings)
    places = {fault.rpartition(" in ")[2] for fault in report.faults}
    # Before the copies: whether the step was good, whether the weights are finite, on all ranks,
    # and the sums since the log.
    before = {"read", "pause", "is_finite", "all_agree", "state"}
    assert places == before | ({"scaler_state"} if precision == "fp16" else set())
    assert report.saved == [2 * 32], "weights and biases of 16 layers, and their momentum"
    assert "vggdist-checkpoints_0" in report.waiting
    assert_whole(report, ALONE)


@pytest.mark.parametrize(("precision", "stage"), [("bf16", 1), ("fp16", 2)])
def test_under_zero_a_step_is_waited_for_by_deepspeed_alone(
    fake_cuda: FakeCuda, precision: str, stage: int
) -> None:
    settings = [f"precision={precision}", "batch.global=512", f"zero_stage={stage}"]
    report = fake_cuda.run(train, settings, EIGHT)
    assert [fault for fault in report.faults if ": deepspeed/" not in fault] == []
    assert_whole(report, EIGHT)


CAPTURED_STEP = WARM_UP_STEPS + 1


@pytest.mark.parametrize(
    ("precision", "settings", "ranks"),
    [
        ("fp16", ["model.batch_norm=true", "optimizer.gradient_clipping=5.0"], ALONE),
        ("bf16", ["exchange=factors", "batch.micro=32"], EIGHT),
    ],
)
def test_a_step_that_a_graph_repeats_is_copies_a_replay_and_flags(
    fake_cuda: FakeCuda, precision: str, settings: list[str], ranks: Ranks
) -> None:
    batch = f"batch.global={64 * ranks.world_size}"
    overrides = [f"precision={precision}", batch, "cuda_graph=true", *settings]
    captured = fake_cuda.run(train, overrides, ranks, watched_step=CAPTURED_STEP)
    assert captured.faults == []
    assert captured.num_replays == 1
    assert captured.operators["aten::_fused_sgd_"] > 0
    repeated = fake_cuda.run(train, overrides, ranks, watched_step=CAPTURED_STEP + 1)
    assert repeated.faults == []
    assert repeated.num_replays == 1
    assert repeated.devices == {ranks.rank}
    num_micro = 2 if "batch.micro=32" in settings else 1
    assert repeated.operators["aten::copy_"] <= 4 * num_micro + 2
    assert repeated.operators.total() <= 4 * num_micro + 12
    assert repeated.operators["aten::convolution"] == 0
    assert repeated.operators["c10d::allreduce_"] == (ranks.world_size > 1), "of the flags"


def assert_whole(report: Report, ranks: Ranks, num_micro_batches: int = 1) -> None:
    """It was a whole step, on the rank's own GPU."""
    assert report.devices == {ranks.rank}
    assert report.operators["aten::convolution"] == 13 * num_micro_batches
    assert report.operators["aten::convolution_backward"] == 13 * num_micro_batches
    assert report.operators["aten::_fused_sgd_"] > 0
    assert (report.operators["c10d::allreduce_"] > 0) == (ranks.world_size > 1)
