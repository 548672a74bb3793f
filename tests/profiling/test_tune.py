"""`vggdist tune data` on a tiny data set; what wins there is of no interest."""

import json
import sys
import threading

import pytest
import torch

from vggdist.cli import main
from vggdist.config import Config, DataConfig
from vggdist.config_file import load_config
from vggdist.distributed.process import Process
from vggdist.errors import ConfigError
from vggdist.profiling import tune
from vggdist.profiling.tune import (
    HEADER,
    ladders,
    render_tuned,
    require_writable,
    tune_data,
    wins,
)


def _rates(monkeypatch, rate):
    """Lets `rate(settings)` stand in for measurements; returns the settings that were asked for."""
    asked = []

    def measure(_bench, settings):
        asked.append(settings)
        return rate(settings)

    monkeypatch.setattr(tune._Search, "_rate", measure)
    return asked


def _cores(monkeypatch, num_cores, device="cpu"):
    process = Process(0, 0, 1, torch.device(device), num_cores)
    monkeypatch.setattr(tune.world, "start", lambda _: process)
    monkeypatch.setattr(tune, "_machine", lambda _: "a made-up machine")


@pytest.mark.slow
def test_the_file_is_read_back_by_load_config_and_no_loader_outlives_its_measurement(
    tiny_dataset, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(tune, "_WINDOW_SECONDS", 0.0)
    monkeypatch.setattr(tune, "_FEWEST_BATCHES", 1)
    few = {"num_threads": [1, 2], "prefetch": [1], "read_ahead": [1]}
    monkeypatch.setattr(tune, "ladders", lambda *_: few)
    out, path = tmp_path / "tuned.txt", tmp_path / "tuned.json"
    small = ["batch.global=4", "data.crop_size=32", "data.train_scale_min=32", "device=cpu"]
    arguments = ["tune", "data", "--data", str(tiny_dataset), "--out", str(out), "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["vggdist", *arguments, "--json", str(path), *small])
    before = threading.active_count()
    assert main() == 0
    assert threading.active_count() <= before
    lines = out.read_text().splitlines()
    assert lines[0].startswith(f"{HEADER}: ")
    assert [line.partition("=")[0] for line in lines if line[0] != "#"] == [
        "data.num_threads",
        "data.prefetch",
        "data.read_ahead",
    ]
    result = json.loads(path.read_text())
    data = load_config(None, [f"@{out}"]).data
    assert {name: getattr(data, name) for name in result["settings"]} == result["settings"]
    assert result["images_per_second"] > 0
    printed = capsys.readouterr().out
    assert f"\n  vggdist train {' '.join(small)} data.root={tiny_dataset} @{out}\n" in printed
    assert printed.count("\n* ") == 2  # the chosen row and the legend
    require_writable(out)  # its own file may be written again


def test_the_fastest_settings_are_found_where_they_are_clear(tiny_overrides, monkeypatch):
    _cores(monkeypatch, 8)
    _rates(monkeypatch, lambda s: 100 * min(s["num_threads"], 4) + 50 * (s["prefetch"] == 4))
    result = tune_data(load_config(None, tiny_overrides), 3)
    assert result is not None
    assert result["settings"] == {"num_threads": 4, "prefetch": 4, "read_ahead": 8}
    assert result["images_per_second"] == 450


def test_where_all_are_equally_fast_the_cheapest_is_chosen(tiny_overrides, monkeypatch):
    _cores(monkeypatch, 8, "cuda")
    asked = _rates(monkeypatch, lambda _: 100.0)
    result = tune_data(load_config(None, tiny_overrides), 1)
    assert result is not None
    assert result["settings"] == {
        "num_threads": 1,
        "prefetch": 2,
        "read_ahead": 8,
        "hardware_decoder_share": 0.65,
    }
    tried = [trial["settings"] for trial in result["tried"]]
    assert len(tried) == 1 + 3 + 2 + 2 + 4
    assert len(asked) == 1 + 2 * 11


def test_a_win_that_is_not_repeated_is_not_taken(tiny_overrides, monkeypatch):
    _cores(monkeypatch, 2)
    rates = iter([100.0, 200.0, 100.0, 100.0, 100.0])
    _rates(monkeypatch, lambda _: next(rates, 100.0))
    result = tune_data(load_config(None, tiny_overrides), 1)
    assert result is not None
    assert result["settings"]["num_threads"] == 1


@pytest.mark.parametrize(
    ("ratios", "won"),
    [
        ([1.5, 1.5, 1.5, 1.5, 0.5], True),
        ([1.5, 1.5, 1.5, 0.5, 0.5], False),
        ([1.02] * 5, False),
        ([1.03] * 5, True),
        ([1.04], True),
        ([2.0, 1.0], False),
    ],
)
def test_only_a_clear_gain_in_nearly_all_pairs_wins(ratios, won):
    assert wins(ratios) is won


def test_threads_go_up_to_all_cores_and_queues_only_deeper_than_configured():
    config = Config(data=DataConfig(prefetch=3, read_ahead=1, hardware_decoder_share=0.5))
    assert ladders(config, Process(0, 0, 1, torch.device("cpu"), 12)) == {
        "num_threads": [1, 2, 4, 8, 12],
        "prefetch": [3, 6, 12],
        "read_ahead": [1, 2, 4],
    }
    gpu = ladders(config, Process(0, 0, 1, torch.device("cuda"), 1))
    assert gpu["num_threads"] == [1]
    assert gpu["hardware_decoder_share"] == [0.5, 0.0, 0.35, 0.65, 0.9, 1.0]


def test_the_table_marks_what_was_chosen():
    tried = [
        {"settings": settings, "images_per_second": rate, "ratio": ratio, "taken": taken}
        for settings, rate, ratio, taken in (
            ({"num_threads": 1, "prefetch": 2}, 300.0, None, True),
            ({"num_threads": 2, "prefetch": 2}, 590.0, 1.967, True),
            ({"num_threads": 2, "prefetch": 4}, 585.0, 0.99, False),
        )
    ]
    table = render_tuned(
        {
            "settings": {"num_threads": 2, "prefetch": 2},
            "tried": tried,
            "machine": "node7, 2 cores per rank, no GPU",
            "world_size": 1,
        }
    )
    assert [line.split() for line in table.splitlines()[2:5]] == [
        ["1", "2", "300"],
        ["*", "2", "2", "590", "1.967", "x"],
        ["2", "4", "585", "0.990", "x"],
    ]


def test_a_file_of_somebody_else_is_not_overwritten(tmp_path):
    own, other = tmp_path / "own.txt", tmp_path / "other.yaml"
    own.write_text(f"{HEADER}: 5 images/s\n")
    other.write_text("data:\n  prefetch: 3\n")
    require_writable(own)
    require_writable(tmp_path / "new.txt")
    with pytest.raises(ConfigError, match="was not written by `vggdist tune data`; it is left"):
        require_writable(other)
