"""The input benchmark runs on a handful of images; its numbers are of no interest here."""

from vggdist.benchmark import data as benchmark
from vggdist.benchmark.data import measure_data, render_data


def test_every_way_delivers_and_the_table_holds_the_ratios(tmp_path, make_tree, monkeypatch):
    monkeypatch.setattr(benchmark, "_SETTLE", 0.0)
    tree = make_tree(tmp_path, {"cat": 4, "dog": 4})
    result = measure_data(tree, batch_size=4, num_threads=1, num_batches=1, num_rounds=1)
    assert list(result) == ["torchvision", "dali_reference", "decode_only", "vggdist"]
    assert all(rate > 0 for rate in result.values())


def test_the_table_says_how_many_times_faster_we_are():
    table = render_data(
        {"torchvision": 300.0, "dali_reference": 450.0, "decode_only": 1500.0, "vggdist": 900.0}
    )
    assert [line.split() for line in table.splitlines()[1:]] == [
        ["torchvision", "300", "3.00", "x"],
        ["dali_reference", "450", "2.00", "x"],
        ["decode_only", "1500", "0.60", "x"],
        ["vggdist", "900", "1.00", "x"],
    ]
