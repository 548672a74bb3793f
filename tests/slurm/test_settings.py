"""Settings of a cluster: where they come from, and what is refused before it becomes a script."""

from pathlib import Path

import pytest

from vggdist.cli import parse
from vggdist.errors import ConfigError
from vggdist.slurm.settings import ClusterSettings, default_file, load_settings


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's configuration folder of one's own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config"


def test_without_a_file_or_flags_they_are_the_defaults() -> None:
    settings = load_settings(None, {"partition": None})
    assert settings.partition is None
    assert settings.timeout_minutes == 24 * 60
    assert (settings.signal_seconds, settings.max_requeues) == (120, 50)


def test_the_users_own_file_is_read_and_flags_win(home: Path) -> None:
    assert default_file() == home / "vggdist" / "cluster.yaml"
    default_file().parent.mkdir(parents=True)
    default_file().write_text("partition: gpu\naccount: vision\ntime: 1-00:00:00\n")
    settings = load_settings(None, {"partition": "debug", "account": None})
    assert (settings.partition, settings.account, settings.timeout_minutes) == (
        "debug",
        "vision",
        1440,
    )


def test_a_named_file_stands_in_place_of_the_users_own(home: Path, tmp_path: Path) -> None:
    default_file().parent.mkdir(parents=True)
    default_file().write_text("partition: gpu\n")
    named = tmp_path / "other.yaml"
    named.write_text("setup: [module load cuda]\ncpus_per_rank: 4\n")
    settings = load_settings(named, {})
    assert settings.partition is None
    assert (settings.setup, settings.cpus_per_rank) == (("module load cuda",), 4)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not exist; give --cluster a YAML file"):
        load_settings(tmp_path / "none.yaml", {})


@pytest.mark.parametrize(
    ("written", "minutes"),
    [
        ("90", 90),
        (90, 90),
        ("30:30", 31),
        ("02:00:00", 120),
        ("1-12", 36 * 60),
        ("1-12:30", 36 * 60 + 30),
        ("2-00:00:01", 2 * 24 * 60 + 1),
    ],
)
def test_a_time_limit_is_read_as_slurm_reads_it(written: object, minutes: int) -> None:
    assert load_settings(None, {"time": written, "signal_seconds": 60}).timeout_minutes == minutes


def test_all_problems_are_told_at_once_with_near_matches(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("partitoin: gpu\ntime: soon\nmemory_gb: -1\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(file, {"account": "a b"})
    text = str(caught.value)
    assert text.startswith(f"4 problems in {file} and the flags:")
    assert "did you mean partition?" in text
    assert "'soon' is no time limit; give minutes such as 90" in text
    assert "memory_gb: -1 must be greater than 0" in text
    assert "account: 'a b' must be letters, digits and signs" in text


@pytest.mark.parametrize("bad", ["x\ntouch /tmp/p\n#", "tab\there", "bell\a"])
def test_a_control_character_never_reaches_the_script(bad: str) -> None:
    for key in ("comment", "partition"):
        with pytest.raises(ConfigError, match="control character"):
            load_settings(None, {key: bad})


def test_a_signal_must_come_before_the_time_limit() -> None:
    with pytest.raises(ConfigError, match=r"signal_seconds 120 is not shorter than the time limit"):
        load_settings(None, {"time": "2"})


def test_a_flag_wins_over_the_file_also_where_it_is_0_or_off(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("gpus_per_node: 8\nexclusive: true\n")
    words = ["submit", "--cluster", str(file)]
    flags = vars(parse([*words, "--gpus-per-node", "0", "--mail-user", "a@b.org"]))
    settings = load_settings(file, flags)
    assert (settings.gpus_per_node, settings.mail_user, settings.exclusive) == (0, "a@b.org", True)
    assert load_settings(file, vars(parse(words))).gpus_per_node == 8


def test_every_setting_but_setup_is_a_flag_with_its_help() -> None:
    flags = vars(parse(["submit"]))
    assert {name: flags[name] for name in ClusterSettings.model_fields if name in flags} == (
        dict.fromkeys(ClusterSettings.model_fields.keys() - {"setup"})
    )
    assert {field.description is None for field in ClusterSettings.model_fields.values()} == {False}
