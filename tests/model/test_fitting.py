"""The micro batch that fits a GPU, by arithmetic alone."""

import subprocess
import sys

import pytest

from vggdist.config import BatchSplit, Config
from vggdist.config_file import load_config
from vggdist.model.fitting import fitting_split, needed_memory
from vggdist.model.memory import count_memory

GB = 1e9


def config_of(words: str) -> Config:
    return load_config(None, words.split())


@pytest.mark.parametrize(
    ("words", "world_size", "gigabytes", "micro"),
    [
        ("precision=bf16", 1, 85.0, 256),  # H100
        ("precision=bf16", 8, 85.0, 32),  # all of its share
        ("precision=bf16 batch.global=2048", 4, 85.0, 256),
        ("precision=fp16", 1, 16.9, 128),  # V100
        ("precision=fp32", 1, 17.1, 64),  # P100
        ("precision=fp32", 1, 11.7, 32),
        ("precision=bf16 batch.global=300", 1, 85.0, 150),
        ("precision=bf16 batch.global=251", 1, 85.0, 251),
        ("precision=bf16 batch.global=514", 2, 85.0, 1),  # 257 is a prime
        ("precision=fp32 model.configuration=A-LRN", 1, 25.0, 64),
        ("precision=bf16", 1, 1.0, 1),  # nothing fits
    ],
)
def test_the_micro_batch_is_the_largest_divisor_that_fits(
    words: str, world_size: int, gigabytes: float, micro: int
) -> None:
    config = config_of(words)
    split = fitting_split(config, world_size, gigabytes * GB)
    assert split.micro == micro
    assert split.global_batch == config.batch.global_
    assert split.micro * split.accumulation_steps * world_size == config.batch.global_
    if gigabytes > 1:
        assert needed_memory(config, split) <= gigabytes * GB


def test_more_memory_never_gives_a_smaller_micro_batch() -> None:
    config = config_of("precision=bf16")
    micros = [fitting_split(config, 1, gigabytes * GB).micro for gigabytes in range(1, 41)]
    assert micros == sorted(micros)
    assert set(micros) == {1, 8, 16, 32, 64, 128, 256}


def test_a_reserve_is_left_beside_the_tensors_of_the_dearer_exchange() -> None:
    config, split = config_of("precision=bf16"), BatchSplit(2048, 256, 1, 8)
    tensors = [
        count_memory(config, split, dict.fromkeys(("fc6", "fc7", "fc8"), way))["total"]
        for way in ("all_reduce", "factors")
    ]
    assert needed_memory(config, split) > max(tensors) + 4 * GB
    factors = config_of("precision=bf16 exchange=factors")
    assert needed_memory(factors, split) < needed_memory(config, split)


def test_smaller_batches_of_evaluations_leave_room_for_larger_steps() -> None:
    # 64 images of an evaluation take 0.67 GB, and a step of 64 images leaves 0.65.
    assert fitting_split(config_of("precision=bf16"), 1, 11.7 * GB).micro == 32
    assert fitting_split(config_of("precision=bf16 evaluation.micro=16"), 1, 11.7 * GB).micro == 64


def test_memory_is_counted_without_torch() -> None:
    code = "import sys, vggdist.model.fitting\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_graph_keeps_its_memory_beside_that_of_an_evaluation() -> None:
    config, split = config_of("precision=bf16 cuda_graph=true"), BatchSplit(256, 64, 4, 1)
    without = count_memory(config_of("precision=bf16"), split, {})["total"]
    # Most at pool1: what conv1_2 gives it, its own maps, and the places of their maxima.
    images, maps = 256 * 3 * 224**2, 64 * 64 * (2 * 224**2 + (2 + 8) * 112**2)
    assert count_memory(config, split, {})["total"] == without + images + maps
    smaller = config_of("precision=bf16 cuda_graph=true evaluation.micro=16")
    assert count_memory(smaller, split, {})["total"] == without + images + maps // 4
