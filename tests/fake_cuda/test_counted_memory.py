"""The count of a step's memory is what its tensors take at their peak."""

from collections import Counter

import pytest

from tests.fake_cuda.process import FakeCuda
from tests.fake_cuda.steps import ALONE, Ranks, train
from vggdist.config import FULLY_CONNECTED, split_batch, trained_layers
from vggdist.config_file import load_config
from vggdist.model.memory import count_memory

pytestmark = pytest.mark.slow

EIGHT = Ranks(world_size=8, rank=3)
SMALL = "data.crop_size=64 data.train_scale_min=64 data.train_scale_max=64 model.fc_width=256"
CASES = [
    ("precision=bf16 batch.global=64", ALONE),
    ("precision=bf16 batch.global=256 batch.micro=256", ALONE),
    ("precision=bf16 batch.global=8", ALONE),
    ("precision=fp32 batch.global=64", ALONE),
    ("precision=fp16 batch.global=128", ALONE),  # two micro batches
    ("precision=fp32 batch.global=32 model.configuration=A-LRN", ALONE),
    ("precision=bf16 batch.global=64 model.configuration=A-LRN", ALONE),
    ("precision=bf16 batch.global=64 model.configuration=E model.batch_norm=true", ALONE),
    (f"precision=bf16 batch.global=512 batch.micro=256 {SMALL}", ALONE),
    ("precision=bf16 batch.global=64 optimizer.trained_layers=[conv5_3,fc6,fc7,fc8]", ALONE),
    ("precision=fp32 batch.global=64 optimizer.trained_layers=fully-connected", ALONE),
    ("precision=bf16 batch.global=512 exchange=all_reduce", EIGHT),
    ("precision=bf16 batch.global=1024 exchange=factors", EIGHT),
    ("precision=fp16 batch.global=512 exchange=factors", EIGHT),
    ("precision=fp32 batch.global=2048 batch.micro=256 exchange=factors", EIGHT),
]


@pytest.mark.parametrize(("words", "ranks"), CASES, ids=str)
def test_memory_that_is_counted_is_that_of_the_tensors(
    fake_cuda: FakeCuda, words: str, ranks: Ranks
) -> None:
    overrides = words.split()
    measured = Counter(fake_cuda.run(train, overrides, ranks, measure_memory=True).memory)
    config = load_config(None, overrides)
    split = split_batch(config.batch, ranks.world_size)
    sent = trained_layers(config) if ranks.world_size > 1 else ()
    ways = {name: config.exchange for name in sent if name in FULLY_CONNECTED}
    counted = count_memory(config, split, ways)
    assert counted["total"] == pytest.approx(measured["total"], rel=0.03)
    assert counted["weights"] == measured["weights"]
    assert counted["momentum"] == measured["momentum"]
