"""The micro batch of GPUs that a test pretends."""

import pytest
import torch

from vggdist.config import Config
from vggdist.config_file import load_config
from vggdist.distributed import process as world
from vggdist.distributed.process import Process
from vggdist.errors import ConfigError
from vggdist.training import micro_batch
from vggdist.training.micro_batch import choose_micro, resolve_micro

GB = 10**9


def config_of(words: str = "") -> Config:
    return load_config(None, ["precision=bf16", *words.split()])


def process_on(device: str, world_size: int = 1) -> Process:
    return Process(0, 0, world_size, torch.device(device), 1)


@pytest.fixture(autouse=True)
def large_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_batch, "memory_of", lambda _: 85 * GB)


def test_a_gpu_takes_what_fits_and_says_why() -> None:
    config, why = resolve_micro(config_of(), process_on("cuda:0"))
    assert config.batch.micro == 256
    assert config.batch.global_ == 256
    assert why == "micro batch 256, the largest up to 256 that fits 85.0 GB"


def test_the_smallest_gpu_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "gather", lambda value: [value, 17 * GB])
    config, why = resolve_micro(config_of("batch.global=512"), process_on("cuda:0", 2))
    assert config.batch.micro == 128
    assert why.endswith("that fits 17.0 GB")


@pytest.mark.parametrize(
    ("words", "device"),
    [
        ("", "cpu"),
        ("batch.micro=16", "cuda:0"),
        ("model.batch_norm=true", "cuda:0"),
        ("zero_stage=1", "cuda:0"),
    ],
)
def test_elsewhere_nothing_changes(words: str, device: str) -> None:
    config = config_of(words)
    assert resolve_micro(config, process_on(device)) == (config, "")


@pytest.mark.parametrize(
    ("before", "micro"),
    [
        ("batch.micro=32", 32),
        ("batch.micro=256", 256),
        ("", 64),  # by an earlier version, or on a CPU
    ],
)
def test_a_run_keeps_the_micro_batch_that_it_was_begun_with(before: str, micro: int) -> None:
    config, why = choose_micro(config_of(), 1, 85 * GB, config_of(before))
    assert config.batch.micro == micro
    assert why == f"micro batch {micro}, as this run was begun"


def test_ranks_that_cannot_share_it_choose_anew() -> None:
    config, why = choose_micro(config_of(), 4, 85 * GB, config_of("batch.micro=256"))
    assert config.batch.micro == 64
    assert why.startswith("micro batch 64, the largest")


def test_a_gpu_that_is_too_small_for_a_run_is_told_what_to_set() -> None:
    with pytest.raises(ConfigError) as caught:
        choose_micro(config_of(), 1, 17 * GB, config_of("batch.micro=256"))
    assert str(caught.value) == (
        "this run was begun with micro batches of 256 images, for which a GPU needs about 25.1 GB, "
        "and the smallest here has 17.0 GB. Set batch.micro=128, which fits, or batch.micro=256 to "
        "try it all the same."
    )
