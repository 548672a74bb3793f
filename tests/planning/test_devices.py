"""Devices by name and from files, and what is said of a file that is none."""

from pathlib import Path

import pytest

from vggdist.errors import ConfigError
from vggdist.planning.devices import DEVICES, load_device


@pytest.mark.parametrize("name", ["h100", "a100", "v100", "p100", "cpu"])
def test_every_device_says_where_its_figures_come_from(name: str) -> None:
    device = load_device(name)
    assert len(device.source) > 20
    assert name == "cpu" or set(device.sustained_teraflops) <= set(device.peak_teraflops)


def test_a_file_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_text(DEVICES["a100"].model_dump_json(), encoding="utf-8")
    assert load_device(str(path)) == DEVICES["a100"]


def test_the_nearest_arithmetic_stands_in_for_one_without_a_figure() -> None:
    assert DEVICES["h100"].teraflops("bf16") == (350.0, "bf16")
    assert DEVICES["v100"].teraflops("bf16") == (40.6, "fp16")
    assert DEVICES["p100"].teraflops("fp16") == (14.5, "fp32")


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as error:
        load_device("h1000")
    assert str(error.value) == (
        f"--device h1000 is neither {', '.join(DEVICES)} nor a file; `vggdist bench machine --out "
        "FILE` writes one about this machine."
    )


def test_all_that_a_file_lacks_is_listed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_text('{"name": 3, "colour": "red"}', encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_device(str(path))
    text = str(error.value)
    assert "does not describe a device; `vggdist bench machine --out FILE` writes such" in text
    for line in ("  - name: 3 must be ", "  - source is missing. ", "  - colour: unknown key; "):
        assert line in text


def test_a_file_that_is_no_json_is_said(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_text("name: x", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        load_device(str(path))
