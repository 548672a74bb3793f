"""The input benchmark runs on a handful of images; its numbers are of no interest here."""

import pytest

from vggdist.data.dataset import open_images
from vggdist.data.read import read_encoded
from vggdist.profiling import data as benchmark
from vggdist.profiling import loader
from vggdist.profiling.data import measure_data, render_data
from vggdist.profiling.data_baselines import Sizes
from vggdist.profiling.sample import evict, packed, sample

WAYS = ["torchvision", "dali_reference", "decode_only", "vggdist", "vggdist_float"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory, make_tree):
    """Twenty epochs of 20 batches, with a few entries in place of ImageNet's."""
    tree = make_tree(tmp_path_factory.mktemp("data"), {"cat": 40, "dog": 40})
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(benchmark, "_SETTLE_SECONDS", 0.0)
        patches.setattr(loader.measure_first_batch, "__defaults__", (1000,))
        return measure_data(tree, Sizes(batch_size=4, num_threads=1, num_batches=1, num_rounds=1))


@pytest.mark.multi_process
@pytest.mark.slow
def test_every_way_delivers_and_the_table_holds_all(measured):
    result = measured
    assert list(result)[:6] == [*WAYS, "vggdist_shards"]
    assert all(result[name] > 0 for name in (*WAYS, "vggdist_shards_cold", "first_batch_seconds"))
    assert result["ratios"]["vggdist"] == 1.0
    assert result["ratios"]["torchvision"] == result["vggdist"] / result["torchvision"]
    assert result["pillow_max_difference"] <= 2
    assert 50 < result["peak_megabytes"] < 5000
    table = render_data(result)
    assert [line.split()[0] for line in table.splitlines()[1:9]] == [
        *WAYS,
        "vggdist_shards",
        "vggdist_cold",
        "vggdist_shards_cold",
    ]
    assert "over 20 epochs" in table


def test_a_part_of_a_set_is_spread_over_it_and_can_be_packed(tmp_path, make_tree):
    images = open_images(make_tree(tmp_path / "set", {"cat": 30, "dog": 10}))
    part = sample(images, tmp_path / "part", 20)
    assert part.num_images == 20
    assert part.labels.tolist() == [0] * 15 + [1] * 5
    shard = packed(part, tmp_path / "shards")
    again = sample(shard, tmp_path / "again", 100)
    for i in range(20):
        content = read_encoded(part.place(i)).tobytes()
        assert read_encoded(shard.place(i)).tobytes() == content
        assert read_encoded(again.place(i)).tobytes() == content
    evict(shard, range(20))
    many = packed(part, tmp_path / "many", 70)
    assert many.num_images == 70
    assert read_encoded(many.place(69)).tobytes() == read_encoded(part.place(19)).tobytes()


@pytest.mark.multi_process
@pytest.mark.slow
def test_memory_does_not_grow_over_twenty_epochs(measured):
    assert measured["growth_megabytes"] < 16
