"""An experiment's file in, a graph of stages or one error out."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vggdist.errors import ConfigError
from vggdist.experiments.schema import load_experiment
from vggdist.experiments.stages import (
    EXPERIMENT_FILE,
    Evaluation,
    Experiment,
    Report,
)
from vggdist.reports import paper

EXPERIMENTS = Path(__file__).parents[2] / "configs" / "experiments"
HEAD = "folder: runs/it\ndata: /images\nstages:\n"
NET = "model: {configuration: [[3-8], [3-16]], num_classes: 3}\ndata: {crop_size: 32}\n"

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes an experiment beside a configuration `net.yaml`."""
    (tmp_path / "net.yaml").write_text(NET)

    def write(text: str) -> Path:
        path = tmp_path / "it.yaml"
        path.write_text(text)
        return path

    return write


def evaluation(experiment: Experiment, name: str) -> Evaluation:
    stage = experiment.stages[name]
    assert isinstance(stage, Evaluation)
    return stage


def error_of(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, overrides)
    return str(caught.value)


def test_a_training_is_its_configuration_with_the_experiment_s_folder_and_data(
    write: Write,
) -> None:
    experiment = load_experiment(write(HEAD + "  a: {config: net.yaml}\n"))
    config = experiment.training("a").config
    assert config.model.num_classes == 3
    assert config.data.root == "/images"
    assert config.run_folder == "runs/it/a"
    assert config.model.initialize_from is None


def test_what_a_stage_sets_stands_above_what_all_trainings_set(write: Write) -> None:
    path = write(
        "set: {seed: 1, data: {flip: false, crop_size: 64}}\n"
        + HEAD
        + "  a: {config: net.yaml}\n  b: {config: net.yaml, set: {data: {crop_size: 96}}}\n"
    )
    experiment = load_experiment(path)
    a, b = experiment.training("a").config, experiment.training("b").config
    assert (a.seed, a.data.flip, a.data.crop_size) == (1, False, 64)
    assert (b.seed, b.data.flip, b.data.crop_size) == (1, False, 96)


def test_a_training_starts_from_the_run_folder_of_another(write: Write) -> None:
    experiment = load_experiment(
        write(HEAD + "  b: {config: net.yaml, start: a}\n  a: {config: net.yaml}\n")
    )
    assert list(experiment.stages) == ["a", "b"], "a stage stands behind those that it needs"
    assert experiment.stages["b"].needs == ("a",)
    assert experiment.training("b").config.model.initialize_from == "runs/it/a"


def test_glorot_begins_at_random_only_what_starts_from_another_configuration(
    write: Write,
) -> None:
    path = write(
        HEAD
        + "  larger: {config: net.yaml, start: deeper, set: {model: {configuration: B}, "
        + "data: {train_scale_max: 300}}}\n"
        + "  deeper: {config: net.yaml, start: a, set: {model: {configuration: B}}}\n"
        + "  same: {config: net.yaml, start: a, set: {data: {train_scale_max: 300}}}\n"
        + "  a: {config: net.yaml}\n"
    )
    experiment = load_experiment(path, ["glorot=true"])
    needs = {name: stage.needs for name, stage in experiment.stages.items()}
    assert needs == {"deeper": (), "a": (), "larger": ("deeper",), "same": ("a",)}
    assert experiment.training("deeper").config.model.initialize_from is None
    assert experiment.training("larger").config.model.initialize_from == "runs/it/deeper"


def test_an_evaluation_is_done_as_its_training_was_unless_it_says_otherwise(write: Write) -> None:
    path = write(
        HEAD
        + "  a: {config: net.yaml, set: {precision: fp32, device: cpu, seed: 4}}\n"
        + "  e: {evaluate: a, protocols: [center-crop, dense], scales: [40, 32]}\n"
        + "  f: {evaluate: a, set: {precision: bf16, evaluation: {max_megapixels: 2}}}\n"
    )
    experiment = load_experiment(path)
    e, f = (evaluation(experiment, name) for name in "ef")
    assert (e.protocols, e.scales) == (("center-crop", "dense"), (40, 32))
    assert sorted(e.settings) == ['device="cpu"', 'precision="fp32"']
    assert (f.protocols, f.scales) == (("dense",), ())
    assert sorted(f.settings) == [
        'device="cpu"',
        "evaluation.max_megapixels=2",
        'precision="bf16"',
    ]


def test_a_sweep_is_a_training_for_each_of_its_overrides(write: Write) -> None:
    path = write(
        HEAD
        + "  a: {config: net.yaml}\n"
        + "  rates:\n    config: net.yaml\n    start: a\n    sweep:\n"
        + "      - optimizer.learning_rate=1e-3\n"
        + "      - optimizer.learning_rate=1e-2  batch.global=64\n"
        + "      - \"optimizer.trained_layers='[fc7, fc8]'\"\n"
    )
    experiment = load_experiment(path)
    swept = [stage for stage in experiment.trainings if stage.name.startswith("rates/")]
    assert [stage.name for stage in swept] == [
        "rates/optimizer.learning_rate=1e-3",
        "rates/optimizer.learning_rate=1e-2_batch.global=64",
        "rates/optimizer.trained_layers=_fc7_fc8",
    ]
    configs = [stage.config for stage in swept]
    assert [config.optimizer.learning_rate for config in configs] == [1e-3, 1e-2, 1e-2]
    assert [config.batch.global_ for config in configs] == [256, 64, 256]
    assert configs[2].optimizer.trained_layers == ("fc7", "fc8")
    assert {stage.needs for stage in swept} == {("a",)}
    assert len({config.run_folder for config in configs}) == 3


def test_overrides_change_any_key_and_reach_one_stage_even_where_it_shares_an_anchor(
    write: Write, tmp_path: Path
) -> None:
    path = write(
        HEAD
        + "  a: {config: net.yaml, set: &s {optimizer: {learning_rate: 0.5}}}\n"
        + "  b: {config: net.yaml, set: *s}\n"
    )
    experiment = load_experiment(
        path,
        [
            "data=/others",
            f"folder={tmp_path}/x",
            "set.precision=fp32",
            "stages.b.set.optimizer.learning_rate=0.25",
        ],
    )
    a, b = experiment.training("a").config, experiment.training("b").config
    assert (a.data.root, a.run_folder) == ("/others", f"{tmp_path}/x/a")
    assert (a.precision, b.precision) == ("fp32", "fp32")
    assert (a.optimizer.learning_rate, b.optimizer.learning_rate) == (0.5, 0.25)


def test_paths_of_an_experiment_arrive_as_they_are_typed(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(HEAD + "  a: {config: ~/net.yaml}\n  e: {evaluate: a}\n")
    text = "/x/try #2: [é]"
    experiment = load_experiment(
        path,
        [
            f"folder=~{text}",
            f"data={text}",
            f"set.data.local_folder={text}2",
            f"stages.a.set.run.resume={text}",
            f"stages.e.set.data.local_folder={text}2",
        ],
    )
    config = experiment.training("a").config
    assert config.run.folder == f"{tmp_path}{text}/a"
    assert config.data.root == config.run.resume == text
    assert config.data.local_folder == f"{text}2"
    assert evaluation(experiment, "e").settings == (f"data.local_folder={text}2",)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / EXPERIMENT_FILE).write_text(experiment.to_yaml())
    again = load_experiment(tmp_path / "kept", [f"folder=~{text}"])
    assert again.training("a").config == config


def test_a_problem_of_an_override_names_it_and_not_the_file(write: Write) -> None:
    path = write(HEAD + "  a: {config: net.yaml}\n  b: {config: net.yaml}\n")
    overrides = ["set.optimizer.momentum=7", "stages.a.set.seed=x", "stages.b.start=c", "fold=1"]
    for override, problem in zip(
        overrides,
        (
            "stages a, b: 'set.optimizer.momentum=7': 7 must be less than 1. (Momentum.)",
            "stage a: 'stages.a.set.seed=x': 'x' must be a valid integer.",
            "stages.b.start: there is no stage c; there are a, b.",
            "'fold=1': unknown key; did you mean folder?",
        ),
        strict=True,
    ):
        assert f"\n  - {problem}" in error_of(path, override)
    assert error_of(path, overrides[0]).startswith("1 problem in the command line:\n")
    assert error_of(path, overrides[3]).startswith("1 problem in the command line:\n")


def test_an_experiment_s_folder_is_read_like_its_file_also_once_it_was_moved(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(HEAD + "  b: {config: net.yaml, start: a}\n  a: {config: net.yaml}\n")
    monkeypatch.chdir(tmp_path)
    experiment = load_experiment(path, ["data=images", "stages.a.set.seed=7"])
    folder = tmp_path / "elsewhere" / "it"
    folder.mkdir(parents=True)
    (folder / EXPERIMENT_FILE).write_text(experiment.to_yaml())
    monkeypatch.chdir("/")
    again = load_experiment(folder)
    assert (again.name, again.folder) == ("it", folder)
    assert list(again.stages) == ["a", "b"]
    config = again.training("b").config
    assert config.data.root == f"{tmp_path}/images"
    assert config.model.initialize_from == f"{folder}/a"
    assert again.training("a").config.seed == 7


def test_all_problems_are_told_at_once_each_with_its_place_and_a_remedy(write: Write) -> None:
    path = write(
        "folder: runs/it\nset: {optimizer: {lerning_rate: 1}}\nglorott: true\nstages: {}\n"
    )
    text = error_of(path)
    assert text.startswith(f"2 problems in {path}:\n")
    assert "glorott: unknown key; did you mean glorot?" in text
    assert (
        "stages: {} must have at least 1 item, not 0. (Name of each stage, and what it is.)" in text
    )
    path = write(
        "set: {optimizer: {lerning_rate: 1}}\n"
        + HEAD
        + "  A-1: {config: net.yaml}\n"
        + "  a: {config: net.yaml, strat: b}\n"
        + "  b: {config: none.yaml}\n"
        + "  c: {config: net.yaml, evaluate: a}\n"
        + "  d: {scales: [32]}\n"
        + "  e: {config: net.yaml, start: d_nowhere}\n"
        + "  f: {config: net.yaml}\n"
        + "  g: {evaluate: ff, scales: [16]}\n"
        + "  h: {evaluate: f, scales: [16], protocols: [dance]}\n"
        + "  i: {evaluate: f, scales: [16]}\n"
        + "  j: {report: [i, f]}\n"
        + "  k: {config: net.yaml, start: i}\n"
        + "  l: {config: net.yaml, sweep: [seed=1, seed=2, seed=1, nonsense]}\n"
        + "  m: {evaluate: l}\n"
        + "  n: {evaluate: f, protocols: []}\n"
        + "  jobs: {report: [i]}\n"
    )
    problems = {
        "stages.A-1: the name of a stage consists of small letters, digits and _",
        "stages.a.strat: unknown key; did you mean start?",
        "stages.b.config: ",
        "none.yaml does not exist; config is a path seen from the experiment's file.",
        "stages.c: a stage is a training (config: FILE), an evaluation (evaluate: STAGE) or a "
        "report (report: [STAGE, ...]), and has one of these keys; this one has config and "
        "evaluate.",
        "stages.d: a stage is a training (config: FILE), an evaluation (evaluate: STAGE) or a "
        "report (report: [STAGE, ...]), and has one of these keys; this one has none of them.",
        "stages.e.start: there is no stage d_nowhere; there are ",
        "stages.g.evaluate: there is no stage ff; did you mean f?",
        "stages.h.protocols.0: 'dance' must be 'center-crop', 'dense' or 'multi-crop'.",
        "stages.n.protocols: [] names no protocol; leave it out for dense.",
        "stages.j.report: stage f is not an evaluation.",
        "stages.k.start: stage i is not a training; name a training that is not a sweep.",
        "stages.l.sweep: 'seed=1' is there already, or has the same folder.",
        "stages.jobs: something else in the experiment's folder has this name.",
        "'nonsense' is not of the form section.key=value",
        "stages.m.evaluate: stage l is not a training; name a training that is not a sweep.",
        "stages A-1, e, f, k, l/seed=1, l/seed=2, l/nonsense: optimizer.lerning_rate: unknown "
        "key; did you mean optimizer.learning_rate?",
    }
    text = error_of(path)
    for problem in problems:
        assert problem in text, f"{problem}\n{text}"
    assert "at least 1 item" not in text
    assert "Traceback" not in text


def test_a_scale_below_the_network_s_input_is_a_problem(write: Write) -> None:
    path = write(HEAD + "  f: {config: net.yaml}\n  i: {evaluate: f, scales: [16, 32, 24]}\n")
    assert (
        "stages.i.scales: at a shorter side of 16, 24 pixels images are smaller than the "
        "network's input of 32 x 32; use scales of 32 or more."
    ) in error_of(path)


def test_a_circle_of_stages_is_told_with_its_members(write: Write) -> None:
    path = write(
        HEAD + "".join(f"  {a}: {{config: net.yaml, start: {b}}}\n" for a, b in ("ab", "bc", "ca"))
    )
    assert (
        "these stages wait for each other in a circle: a -> b -> c -> a; take one of the links out."
    ) in error_of(path)


def test_a_file_that_is_not_there_is_told_with_what_to_give(tmp_path: Path) -> None:
    assert error_of(tmp_path / "none.yaml") == (
        f"{tmp_path}/none.yaml does not exist; give an experiment's file, such as "
        "configs/experiments/small.yaml."
    )
    assert error_of(tmp_path).endswith(", or the folder of one that was run.")


@pytest.mark.parametrize("file", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_shipped_experiment_loads(file: Path) -> None:
    assert load_experiment(file).folder == Path("runs") / file.stem


@pytest.fixture(scope="module")
def shipped() -> Experiment:
    return load_experiment(EXPERIMENTS / "paper.yaml")


def test_the_paper_s_experiment_has_every_row_of_tables_3_to_6(shipped: Experiment) -> None:
    reports = [stage for stage in shipped.stages.values() if isinstance(stage, Report)]
    assert [report.name for report in reports] == ["report", "submission"]

    def tested(report: Report) -> set[tuple[str, tuple[int, int], str, int]]:
        found = set()
        for name in report.evaluations:
            stage = evaluation(shipped, name)
            config = shipped.training(stage.network).config
            data = config.data
            network = config.model.configuration, (data.train_scale_min, data.train_scale_max)
            found |= {(*network, p, q) for p in stage.protocols for q in stage.scales}
        return found

    def wanted(row: paper.Row) -> set[tuple[str, tuple[int, int], str, int]]:
        return {
            (network.configuration, network.train_scale, protocol, scale)
            for network in row.networks
            for protocol in row.protocols
            for scale in network.scales
        }

    everything = tested(reports[0])
    for table in (paper.TABLE_3, paper.TABLE_4, paper.TABLE_5, paper.TABLE_6):
        for row in table.rows:
            assert wanted(row) <= everything, (table.number, row)
    assert wanted(paper.TABLE_6.rows[0]) == tested(reports[1]), "and nothing but the submission"


def test_the_paper_s_experiment_starts_networks_as_section_3_1_says(shipped: Experiment) -> None:
    trainings = {stage.name: stage for stage in shipped.trainings}
    assert {name: stage.start for name, stage in trainings.items()} == {
        "a_256": None,
        "a_lrn_256": None,
        **dict.fromkeys(("b_256", "c_256", "d_256", "e_256"), "a_256"),
        **{f"{net}_384": f"{net}_256" for net in "cde"},
        **{f"{net}_jitter": f"{net}_384" for net in "cde"},
        "d_jitter_fc": "d_384",
    }
    rates = {name: stage.config.optimizer.learning_rate for name, stage in trainings.items()}
    assert {name for name, rate in rates.items() if rate == 1e-3} == {
        name for name in trainings if "256" not in name
    }
    assert {stage.config.optimizer.trained_layers for stage in trainings.values()} == {
        "all",
        "fully-connected",
    }
    assert trainings["d_jitter_fc"].config.optimizer.trained_layers == "fully-connected"
    at_random = load_experiment(EXPERIMENTS / "paper.yaml", ["glorot=true"]).stages
    assert [n for n, s in at_random.items() if not s.needs] == [
        *("a_256", "a_lrn_256", "b_256", "c_256", "d_256", "e_256")
    ]
