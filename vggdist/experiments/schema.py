"""Staged experiments: a YAML file -> a graph of trainings, evaluations and reports.

    folder: runs/paper
    data: /data/imagenet
    stages:
      a_256: {config: ../vgg_a.yaml}
      d_256: {config: ../vgg_d.yaml, start: a_256, set: {seed: 1}}
      evaluate_d_256: {evaluate: d_256, protocols: [dense], scales: [224, 256, 288]}
      report: {report: [evaluate_d_256]}

Every problem of the file, of the configurations it names and of the graph is one error.
"""

from __future__ import annotations

import difflib
import graphlib
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vggdist.artifacts.paths import expand_home
from vggdist.config import Config
from vggdist.config_file import (
    apply_overrides,
    check,
    flatten,
    name_source,
    raise_problems,
    read_yaml,
    takes_text,
    to_override,
)
from vggdist.errors import ConfigError
from vggdist.experiments.job_log import LOCK_FILE
from vggdist.experiments.keys import (
    KINDS,
    EvaluationStage,
    ExperimentFile,
    ReportStage,
    StageSection,
    TrainingStage,
)
from vggdist.experiments.stages import (
    EXPERIMENT_FILE,
    JOB_FOLDER,
    Evaluation,
    Experiment,
    Report,
    Stage,
    Training,
)

AS_TRAINED = (
    "device",
    "precision",
    "evaluation.",
    "data.num_threads",
    "data.prefetch",
    "data.read_ahead",
    "data.hardware_decoder_share",
)
"""What an evaluation takes over from its training: where and how it is done."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_]*")
_TAKEN = (JOB_FOLDER, LOCK_FILE)
"""Names that something else in the experiment's folder has."""


def load_experiment(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Reads an experiment.

    Args:
        path: its file, or its folder, once it was run.
        overrides: `data=/data/imagenet`, `folder=...`, `set.precision=fp32` for all trainings,
            `stages.d_256.set.optimizer.learning_rate=0.02` for one; `@FILE` reads such lines.

    Raises:
        ConfigError: lists every problem.
    """
    file = path / EXPERIMENT_FILE if path.is_dir() else path
    remedy = "give an experiment's file, such as configs/experiments/small.yaml"
    if path.is_dir():
        remedy += ", or the folder of one that was run"
    values, problems = _unshared(read_yaml(file, remedy)), list[str]()
    if path.is_dir():  # which may have been moved since
        values["folder"] = str(path)
    typed = apply_overrides(overrides, values, problems, _takes_text)
    top, found = check(ExperimentFile, values, typed=typed)
    problems += found
    if top is None:
        raise_problems(problems, name_source(file, typed, problems))
    folder = Path(top.folder)
    described = _Described(top, folder, file.parent, typed)
    stages = described.stages()
    problems += described.problems
    stages, found = _in_order(stages)
    problems += found
    if problems:
        problems = list(dict.fromkeys(problems))
        raise_problems(problems, name_source(file, typed, problems))
    return Experiment(
        name=folder.absolute().name if path.is_dir() else file.stem,
        folder=folder,
        data=top.data,
        stages=stages,
        source=_absolute(top, values, file.parent),
    )


class _Described:
    """The stages of a file, each checked by itself and against those that it names."""

    def __init__(
        self, file: ExperimentFile, folder: Path, base: Path, typed: Mapping[str, str]
    ) -> None:
        self._file, self._folder, self._base, self._typed = file, folder, base, typed
        self.problems: list[str] = []
        self._sections: dict[str, StageSection] = {}
        self._configs: dict[str, Config] = {}
        self._in_configs: dict[str, list[str]] = {}
        """A problem of a configuration -> the stages that have it."""

    def stages(self) -> dict[str, Stage]:
        """All that can be made of the file; what cannot is in `problems`."""
        for name, values in self._file.stages.items():
            self._read(name, values)
        for name, section in self._sections.items():
            if isinstance(section, TrainingStage) and not section.sweep:
                self._configure(name, name, section)
        made = [
            stage for name, section in self._sections.items() for stage in self._make(name, section)
        ]
        for problem, names in self._in_configs.items():
            label = "stage" if len(names) == 1 else "stages"
            self.problems.append(f"{label} {', '.join(names)}: {problem}")
        return {stage.name: stage for stage in made}

    def _read(self, name: str, values: Mapping[str, Any]) -> None:
        where = f"stages.{name}"
        if not _NAME.fullmatch(name):
            self.problems.append(
                f"{where}: the name of a stage consists of small letters, digits and _, since it "
                "is a folder's too."
            )
        if name in _TAKEN:
            self.problems.append(
                f"{where}: something else in the experiment's folder has this name."
            )
        kinds = [kind for kind in KINDS if kind in values]
        if len(kinds) != 1:
            what = "has " + " and ".join(kinds) if kinds else "has none of them"
            self.problems.append(
                f"{where}: a stage is a training (config: FILE), an evaluation (evaluate: STAGE) "
                f"or a report (report: [STAGE, ...]), and has one of these keys; this one {what}."
            )
            return
        section, found = check(KINDS[kinds[0]], values, where, _below(f"{where}.", self._typed))
        self.problems += found
        if section is not None:
            self._sections[name] = section

    def _make(self, name: str, section: StageSection) -> Iterator[Stage]:
        match section:
            case TrainingStage():
                yield from self._make_training(name, section)
            case EvaluationStage():
                self._require(name, "evaluate", [section.evaluate], TrainingStage)
                settings = self._settings(name, section)
                if settings is not None:
                    yield Evaluation(
                        name, section.evaluate, section.protocols, section.scales, settings
                    )
            case ReportStage():
                self._require(name, "report", section.report, EvaluationStage)
                yield Report(name, section.report)

    def _make_training(self, name: str, section: TrainingStage) -> Iterator[Training]:
        if section.start is not None:
            self._require(name, "start", [section.start], TrainingStage)
        if not section.sweep:
            if (config := self._configs.get(name)) is not None:
                yield self._started(Training(name, config, section.start))
            return
        names: list[str] = []
        for text in (" ".join(text.split()) for text in section.sweep):
            full = f"{name}/{_folder_name(text)}"
            if full in names:
                self.problems.append(
                    f"stages.{name}.sweep: {text!r} is there already, or has the same folder."
                )
                continue
            names.append(full)
            config = self._configure(full, name, section, text)
            if config is not None:
                yield self._started(Training(full, config, section.start, name, text))

    def _started(self, training: Training) -> Training:
        """The training with the network that it starts from in its configuration."""
        start, model = training.start, training.config.model
        if start is None:
            return training
        if self._file.glorot:
            other = self._configs.get(start)
            if other is None or other.model.configuration != model.configuration:
                start = None
        path = None if start is None else str(self._folder / start)
        model = model.model_copy(update={"initialize_from": path})
        config = training.config.model_copy(update={"model": model})
        return replace(training, config=config, start=start)

    def _configure(
        self, full_name: str, name: str, section: TrainingStage, sweep: str = ""
    ) -> Config | None:
        """The training's configuration: its file, then what all, this stage and this one set."""
        try:
            values = read_yaml(
                self._base / section.config, "config is a path seen from the experiment's file"
            )
        except ConfigError as error:
            self.problems.append(f"stages.{name}.config: {error}")
            return None
        found: list[str] = []
        for sections in (self._file.set, section.set):
            _merge(values, sections)
        typed = _below("set.", self._typed) | _below(f"stages.{name}.set.", self._typed)
        try:
            typed |= apply_overrides(shlex.split(sweep), values, found)
        except ValueError as error:
            found.append(f"sweep {sweep!r} cannot be split into overrides: {error}.")
        own: dict[str, Any] = {"run": {"folder": str(self._folder / full_name)}}
        if self._file.data is not None:
            own["data"] = {"root": self._file.data}
        _merge(values, own)
        config, problems = check(Config, values, typed=typed)
        if config is not None:
            self._configs[full_name] = config
        for problem in [*found, *problems]:
            self._in_configs.setdefault(problem, []).append(full_name)
        return config

    def _settings(self, name: str, section: EvaluationStage) -> tuple[str, ...] | None:
        training = self._configs.get(section.evaluate)
        if training is None:
            return None
        self._check_scales(name, section.scales, training.data.crop_size)
        values = training.model_dump(mode="json")
        _merge(values, section.set)
        typed = _below(f"stages.{name}.set.", self._typed)
        config, found = check(Config, values, typed=typed)
        for problem in found:
            self._in_configs.setdefault(problem, []).append(name)
        flat, own = flatten(values), flatten(section.set)
        default = flatten(Config().model_dump(mode="json"))
        wanted = [
            key
            for key in flat
            if key in own or (key.startswith(AS_TRAINED) and flat[key] != default[key])
        ]
        return None if config is None else tuple(to_override(key, flat[key]) for key in wanted)

    def _check_scales(self, name: str, scales: Sequence[int], crop_size: int) -> None:
        small = [str(scale) for scale in scales if scale < crop_size]
        if small:
            self.problems.append(
                f"stages.{name}.scales: at a shorter side of {', '.join(small)} pixels images are "
                f"smaller than the network's input of {crop_size} x {crop_size}; use scales of "
                f"{crop_size} or more."
            )

    def _require(
        self, name: str, key: str, others: Iterable[str], kind: type[StageSection]
    ) -> None:
        """Notes the stages that are not there, or are not of a kind."""
        what = "a training" if kind is TrainingStage else "an evaluation"
        known = [
            other
            for other, section in self._sections.items()
            if isinstance(section, kind) and not getattr(section, "sweep", ())
        ]
        for other in others:
            if other in known:
                continue
            if other in self._sections:
                problem = f"stage {other} is not {what}; name {what} that is not a sweep."
                if kind is EvaluationStage:
                    problem = f"stage {other} is not {what}."
            elif other in self._file.stages:
                continue  # it is there, and has problems of its own
            else:
                near = difflib.get_close_matches(other, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}."
                problem = f"there is no stage {other}; {hint if known else 'describe it.'}"
            self.problems.append(f"stages.{name}.{key}: {problem}")


def _takes_text(names: Sequence[str]) -> bool:
    """Whether the value of an experiment's key is text, which is taken as it is typed."""
    match names:
        case ["set", *key] | ["stages", _, "set", *key]:
            return takes_text(Config, key)
        case ["stages", _, *key]:
            return any(takes_text(kind, key) for kind in KINDS.values())
    return takes_text(ExperimentFile, names)


def _below(prefix: str, typed: Mapping[str, str]) -> dict[str, str]:
    """The overrides of what is below a place, by their keys from there."""
    return {key.removeprefix(prefix): one for key, one in typed.items() if key.startswith(prefix)}


def _in_order(stages: Mapping[str, Stage]) -> tuple[dict[str, Stage], list[str]]:
    """The stages, each behind those it needs, else as in the file; and what keeps them from it."""
    sorter = graphlib.TopologicalSorter(
        {
            name: [other for other in stage.needs if other in stages]
            for name, stage in stages.items()
        }
    )
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        return dict(stages), [
            f"these stages wait for each other in a circle: {circle}; take one of the links out."
        ]
    ordered: dict[str, Stage] = {}
    places = {name: place for place, name in enumerate(stages)}
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=places.__getitem__)
        ordered |= {name: stages[name] for name in ready}
        sorter.done(*ready)
    return ordered, []


def _unshared(values: Any) -> Any:
    """A copy in which what stands in two places (`*anchor`) is two things."""
    if isinstance(values, Mapping):
        return {key: _unshared(value) for key, value in values.items()}
    return [_unshared(value) for value in values] if isinstance(values, list) else values


def _merge(values: dict[str, Any], sections: Mapping[str, Any]) -> None:
    """Puts sections on top of `values`, key by key."""
    for key, value in sections.items():
        if isinstance(value, Mapping):
            inner = values.get(key)
            values[key] = inner if isinstance(inner, dict) else {}
            _merge(values[key], value)
        else:
            values[key] = _unshared(value)


def _folder_name(overrides: str) -> str:
    """`optimizer.learning_rate=0.01` as it is; what a file system might not like becomes _."""
    return re.sub(r"[^A-Za-z0-9.=+_-]+", "_", overrides).strip("._") or "_"


def _absolute(file: ExperimentFile, values: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """The file's values, readable from anywhere."""
    moved: dict[str, Any] = _unshared(values)
    moved["folder"] = str(Path(file.folder).absolute())
    if file.data is not None:
        moved["data"] = str(Path(file.data).absolute())
    for stage in moved["stages"].values():
        if isinstance(stage, dict) and isinstance(stage.get("config"), str):
            stage["config"] = str((base / expand_home(stage["config"])).absolute())
    return moved
