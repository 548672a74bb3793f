"""YAML and overrides in, `Config` or one error out."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from vggdist.config import Config, ModelConfig, RunConfig
from vggdist.config_file import (
    differences,
    flatten,
    load_config,
    to_explained_yaml,
    to_override,
    to_yaml,
)
from vggdist.errors import ConfigError

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "experiment.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def error_of(path: Path | None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_an_explained_configuration_is_read_back_and_every_key_has_a_comment(
    tmp_path: Path,
) -> None:
    config = load_config(None, ["model.configuration=[[3-8],[3-16,LRN]]", "data.root='a: #b'"])
    text = to_explained_yaml(config)
    (tmp_path / "a.yaml").write_text(text)
    assert load_config(tmp_path / "a.yaml") == config
    lines = text.splitlines()
    keys = [number for number, line in enumerate(lines) if re.match(r" *[a-z_0-9]+:", line)]
    assert len(keys) > 60
    for number in keys:
        assert lines[number - 1].lstrip().startswith("# "), lines[number]
    assert max(map(len, lines)) <= 100


def test_without_a_file_the_configuration_is_the_papers() -> None:
    assert load_config(None) == Config()


def test_an_empty_file_is_the_papers_configuration(write: Write) -> None:
    assert load_config(write("")) == load_config(write("# nothing\n")) == Config()


def test_overrides_stand_above_the_file_and_the_last_one_wins(write: Write) -> None:
    path = write("model:\n  dropout: 0.1\n  fc_width: 8\noptimizer:\n  momentum: 0.5\n")
    config = load_config(path, ["model.dropout=0.2", "seed=3", "model.dropout = 0.3"])
    assert (config.model.dropout, config.model.fc_width) == (0.3, 8)
    assert (config.optimizer.momentum, config.seed) == (0.5, 3)
    assert config.optimizer.learning_rate == Config().optimizer.learning_rate


def test_a_file_of_overrides_holds_one_per_line(write: Write) -> None:
    lines = write("# S is drawn\n\n  data.train_scale_max=512\r\nseed=4 # for luck\n", "jitter")
    config = load_config(None, ["seed=3", f"@{lines}", "precision=fp32"])
    assert (config.data.train_scale_max, config.seed, config.precision) == (512, 4, "fp32")


@pytest.mark.parametrize(
    "text",
    [
        *("/x/try #2", "a: b", "a # b", " a ", "a\nb", "2014", "1e5", "010", "true", "a~", "100%"),
        *("'a'", '"a"', "[a]", "{a: 1}", "a=b", "*", "&a", "!a", "%a", "| a", "- a", "Größe"),
        "x" * 255,
    ],
)
@pytest.mark.parametrize("key", ["run.folder", "data.root", "run.resume", "model.initialize_from"])
def test_text_arrives_as_it_is_typed(key: str, text: str) -> None:
    section, name = key.split(".")
    config = load_config(None, [f"{key}={text}"])
    assert getattr(getattr(config, section), name) == text


def test_only_data_may_have_a_name_that_is_no_text() -> None:
    assert load_config(None, ["data.root=/\udcf6"]).data.root == "/\udcf6"
    for key in ("run.folder", "run.resume", "model.initialize_from"):
        assert "$'/\\xf6' has a name that is no UTF-8, where weights cannot be kept; rename" in (
            error_of(None, f"{key}=/\udcf6")
        )


def test_text_in_a_file_of_overrides_arrives_as_it_is_typed(write: Write) -> None:
    lines = write("run.folder=/x/try #2\n  data.root = /a: b \n", "overrides")
    config = load_config(None, [f"@{lines}"])
    assert (config.run.folder, config.data.root) == ("/x/try #2", "/a: b")


def test_null_takes_text_back(write: Write) -> None:
    file = write("model: {initialize_from: runs/a}")
    assert load_config(file, ["model.initialize_from=null"]).model.initialize_from is None


def test_settings_of_all_types_become_overrides_and_come_back() -> None:
    config = changed(
        model={"configuration": [["3-8", "LRN"]], "initialize_from": "/x/try #2"},
        optimizer={"weight_decay": 1e-300, "trained_layers": ["fc8"]},
        data={"std": [1.0, 2.0, 3.0], "root": '"', "flip": False},
        run={"folder": "2014"},
    )
    values = flatten(config.model_dump(mode="json"))
    overrides = [to_override(key, value) for key, value in values.items()]
    assert load_config(None, overrides) == config


def test_an_error_names_the_override_and_not_the_file_that_it_stands_above(write: Write) -> None:
    path = write("seed: 1\ndata: {crop_size: 64}\n")
    assert error_of(path, "seed=x") == (
        "1 problem in the command line:\n  - 'seed=x': 'x' must be a valid integer. "
        "(All randomness of a run derives from this number.)"
    )
    lines = write("seed=x", "lines")
    assert f"1 problem in the command line:\n  - 'seed=x' in {lines}: 'x' must" in error_of(
        path, f"@{lines}"
    )
    text = error_of(path, "data.train_scale_min=40", "data.validation_scale=40")
    assert text.startswith(f"1 problem in {path} and the command line:\n  - data: train_scale_min")


@pytest.mark.parametrize("key", ["run.folder", "data.root", "data.local_folder"])
def test_a_home_folder_is_put_in_place_of_the_tilde(
    key: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home of/me")
    section, name = key.split(".")
    for config in (
        load_config(None, [f"{key}=~/a~b/~"]),
        load_config(write(f"{section}: {{{name}: ~/a~b/~}}")),
    ):
        assert getattr(getattr(config, section), name) == "/home of/me/a~b/~"
    assert load_config(None, [f"{key}=./~"]) == changed(**{section: {name: "./~"}})


def test_the_home_of_nobody_is_told() -> None:
    assert (
        "'run.folder=~no-such-user/a': '~no-such-user/a' begins with ~, and there is no such user; "
        "write ./~no-such-user/a if it is a name."
    ) in error_of(None, "run.folder=~no-such-user/a")


def test_a_missing_file_of_overrides_is_an_error_beside_the_others(tmp_path: Path) -> None:
    text = error_of(None, f"@{tmp_path}/none", "seed=x")
    assert text.startswith("2 problems in the command line:\n")
    assert f"@{tmp_path}/none: the file of overrides cannot be read: " in text
    assert "'seed=x': 'x' must be a valid integer." in text


def test_numbers_with_an_exponent_and_no_point_are_numbers(write: Write) -> None:
    """YAML 1.1 reads 1e-2 as a word."""
    config = load_config(write("optimizer:\n  learning_rate: 1e-2\n  weight_decay: 5E-4\n"))
    assert config.optimizer.learning_rate == 1e-2
    assert config.optimizer.weight_decay == 5e-4
    assert load_config(None, ["optimizer.learning_rate=+1.e-3"]).optimizer.learning_rate == 1e-3


@pytest.mark.parametrize("word", ["off", "on", "yes", "no", "y", "n"])
def test_off_is_a_word_and_no_boolean(word: str) -> None:
    assert load_config(None, [f"run.folder={word}"]).run.folder == word
    override = f"model.batch_norm={word}"
    assert f"'{override}': '{word}' must be a valid boolean." in error_of(None, override)


@pytest.mark.parametrize("text", ["010", "1:30", "0x10", "0b11", "1_000"])
def test_only_decimal_numbers_are_numbers(text: str) -> None:
    """YAML 1.1 reads 8, 90, 16, 3 and 1000."""
    assert load_config(None, [f"run.folder={text}"]).run.folder == text
    assert f"'seed={text}': '{text}' must be a valid integer." in error_of(None, f"seed={text}")


def test_a_date_is_a_word() -> None:
    assert load_config(None, ["run.folder=2014-09-04"]).run.folder == "2014-09-04"


def test_a_duplicate_key_is_an_error_with_both_lines(write: Write) -> None:
    path = write("model:\n  dropout: 0.5\n  fc_width: 8\n  dropout: 0.1\n")
    assert error_of(path) == (
        f"{path}, line 4: 'dropout' is repeated (first in line 2), and only one value "
        "can count; delete one of them."
    )
    assert "line 3: 'seed' is repeated (first in line 1)" in error_of(
        write("seed: 1\nmodel: {}\nseed: 1\n")
    )


def test_an_unknown_key_is_an_error_with_a_near_match(write: Write) -> None:
    text = error_of(
        write("model:\n  droput: 0.5\nlearning_rate: 0.1\n"), "optimizer.lr=1", "modle.dropout=1"
    )
    assert text.split("\n", 1)[1] == (
        "  - model.droput: unknown key; did you mean model.dropout?\n"
        "  - 'optimizer.lr=1': unknown key; section optimizer has name, learning_rate, base_batch, "
        "trust_coefficient, momentum, weight_decay, gradient_clipping, trained_layers.\n"
        "  - learning_rate: unknown key; did you mean optimizer.learning_rate?\n"
        "  - 'modle.dropout=1': unknown key; did you mean model?"
    )


def test_a_key_without_its_dot_is_known(write: Write) -> None:
    path = write("seed: 1\n")
    assert error_of(path, "dataroot=/x") == (
        "1 problem in the command line:\n  - 'dataroot=/x': unknown key; did you mean data.root?"
    )


def test_a_file_of_almost_the_same_name_is_suggested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "flowers.yaml").touch()
    (tmp_path / "my photos.yaml").touch()
    meant = "configs/flower.yaml does not exist; did you mean configs/flowers.yaml?"
    assert error_of(Path("configs/flower.yaml")) == meant
    assert error_of(Path("flower.yaml")) == meant.removeprefix("configs/")
    assert error_of(Path("myphotos.yaml")).endswith("did you mean 'my photos.yaml'?")


def test_the_python_name_of_global_is_no_key() -> None:
    assert "'batch.global_=8': unknown key; did you mean batch.global?" in error_of(
        None, "batch.global_=8"
    )


def test_all_problems_are_told_at_once_with_place_value_and_rule(write: Write) -> None:
    path = write("batch:\n  global: '256'\nmodel:\n  batch_norm: off\n  configuration: F\n")
    text = error_of(path, "zero_stage=3", "nonsense", "optimizer.momentum=.inf", "data=x")
    head, *problems = text.split("\n  - ")
    assert head == f"7 problems in {path} and the command line:"
    assert problems == [
        "'nonsense' is not of the form section.key=value, such as optimizer.learning_rate=0.01.",
        "model.configuration: configuration 'F' is not in Table 1; use one of A, A-LRN, B, C, D, "
        "E; or VGG11, VGG13, VGG16, VGG19.",
        "model.batch_norm: 'off' must be a valid boolean. (Batch normalization after every "
        "convolution (not in the paper).)",
        "'data=x': 'x' is a value, but data is a section with keys of its own.",
        "batch.global: '256' must be a valid integer. (Images of one step over all ranks (paper: "
        "256).)",
        "'optimizer.momentum=.inf': inf must be a finite number. (Momentum.)",
        "'zero_stage=3': 3 must be 0, 1 or 2. (DeepSpeed ZeRO stage: 0 keeps the whole optimizer "
        "on each rank, 1 and 2 partition it.)",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("=3", "'=3' is not of the form section.key=value"),
        ("model..dropout=3", "'model..dropout=3' is not of the form section.key=value"),
        ("seed.more=1", "'seed.more=1': {'more': 1} must be a valid integer"),
        ("data.mean=[", "'data.mean=[': the value is not valid YAML"),
        ("seed=a: 1", "'seed=a: 1': 'a: 1' must be a valid integer"),
        ("run.folder=", "'run.folder=': '' is no path; name a file or a folder."),
        ("seed=!!int x", "'seed=!!int x': the value is not valid YAML"),
        ("batch.global=256.0", "'batch.global=256.0': 256.0 must be a valid integer."),
        ("model.dropout=", "'model.dropout=': None must be a valid number."),
        (
            "data.mean=[1, 2]",
            "'data.mean=[1, 2]': [1, 2] must be three numbers, red, green and blue.",
        ),
        ("data.mean=7", "'data.mean=7': 7 must be a valid list."),
    ],
)
def test_an_override_that_cannot_be_used_is_told(override: str, message: str) -> None:
    text = error_of(None, override)
    assert message in text
    assert text.startswith("1 problem in the command line:")


def test_an_override_below_a_value_is_told(write: Write) -> None:
    assert "'model.dropout.x=1': dropout is a value, not a section." in error_of(
        write("model: {dropout: 0.5}"), "model.dropout.x=1"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- model\n", "holds a list; it must hold keys with values"),
        ("D\n", "holds a str; it must hold keys with values"),
        ("model: [\n", "is not valid YAML: "),
        ("\tmodel: 1\n", "is not valid YAML: "),
        ("seed: !!int many\n", "is not valid YAML: "),
        ("seed: !!bool many\n", "is not valid YAML: "),
        ("seed: !!timestamp many\n", "is not valid YAML: "),
        ("? [a]\n: 1\n", "is not valid YAML: "),
        ("1: 2\n", "1: 1 is not a word, and keys are words."),
        ("model:\n", "model: None is a value, but model is a section with keys of its own."),
        ("a: &a [*a]\n", "a: unknown key; "),
    ],
)
def test_a_file_that_is_no_configuration_is_told(write: Write, text: str, message: str) -> None:
    path = write(text)
    error = error_of(path)
    assert message in error
    assert str(path) in error


def test_a_file_that_is_not_there_or_not_text_is_told(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    assert error_of(missing) == (
        f"{missing} does not exist; give --config a YAML file, such as configs/vgg_d.yaml."
    )
    assert f"{tmp_path} cannot be read: " in error_of(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert "binary cannot be read: " in error_of(tmp_path / "binary")


def test_reading_a_file_never_runs_anything(write: Write, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    call = f'!!python/object/apply:os.system ["touch {marker}"]'
    assert "is not valid YAML: could not determine a constructor" in error_of(
        write(f"seed: {call}\n")
    )
    assert "the value is not valid YAML: could not determine" in error_of(None, f"seed={call}")
    yaml.unsafe_load(call)
    assert marker.exists()  # so it would have run
    marker.unlink()
    error_of(write(f"{call}\n"))
    assert not marker.exists()


def changed(**sections: dict[str, object]) -> Config:
    return Config.model_validate(sections)


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        changed(model={"configuration": [["3-8", "LRN"], ["1-8"]], "dropout": 0.0}),
        changed(
            optimizer={"learning_rate": 1e-5, "weight_decay": 1e-300},
            batch={"global": 8, "micro": 2},
            data={"mean": [0, 1.5, 255], "validation_scale": 300, "root": "/images, all: é"},
            schedule={"num_steps": 5, "name": "cosine"},
        ),
    ],
)
def test_what_is_written_reads_back_equal(write: Write, config: Config) -> None:
    assert load_config(write(to_yaml(config))) == config


@pytest.mark.parametrize(
    "word",
    [
        *("1e5", "1e-2", ".5", "+1", "1.", "010", "1:30", "0x1F", "1_000", ".inf", ".nan"),
        *("2014-09-04", "off", "yes", "true", "null", "~", "é", "a: b", "a #b", " a", "a\nb"),
        *("<<", "!x", "@x", "*x", "&x", "{}"),
        *"#-=&%`|[{'\"",
    ],
)
def test_a_word_stays_a_word_in_what_is_written(write: Write, word: str) -> None:
    config = Config(run=RunConfig(folder=word))
    assert load_config(write(to_yaml(config))) == config


def test_what_is_written_names_every_key() -> None:
    written = yaml.safe_load(to_yaml(Config()))
    assert written["batch"] == {"global": 256, "micro": None}
    assert written.keys() == Config.model_fields.keys()
    for section, values in written.items():
        if isinstance(values, dict):
            fields = type(getattr(Config(), section)).model_fields
            assert list(values) == [field.alias or name for name, field in fields.items()]


def test_differences_name_the_keys_that_differ() -> None:
    old = Config()
    new = Config(model=ModelConfig(dropout=0.1), seed=5)
    assert differences(old, new) == {"model.dropout": (0.5, 0.1), "seed": (0, 5)}
    assert differences(old, old) == {}


def test_every_field_says_what_it_is_for() -> None:
    for section in Config.model_fields.values():
        inner = section.annotation
        fields = getattr(inner, "model_fields", {})
        assert section.description or fields
        for name, field in fields.items():
            assert field.description, name
