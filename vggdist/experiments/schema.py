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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vggdist.artifacts.paths import expand_home
from vggdist.config import KNOBS, Config
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
from vggdist.data.geometry import require_scales
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
    is_folder = path.is_dir()
    path = path / EXPERIMENT_FILE if is_folder else path
    hint = "give an experiment's file, such as configs/experiments/small.yaml"
    hint += ", or the folder of one that was run" if is_folder else ""
    values, problems = _copied(read_yaml(path, hint)), list[str]()
    if is_folder:  # which may have been moved since
        values["folder"] = str(path.parent)
    typed = apply_overrides(overrides, values, problems, _takes_text)
    file, found = check(ExperimentFile, values, typed=typed)
    problems += found
    stages: dict[str, Stage] = {}
    if file is not None:
        reader = _StageReader(file, path.parent, typed)
        stages, found = _in_order(reader.read())
        problems += [*reader.problems, *found]
    if file is None or problems:
        problems = list(dict.fromkeys(problems))
        raise_problems(problems, name_source(path, typed, problems))
    folder = Path(file.folder)
    return Experiment(
        name=folder.absolute().name if is_folder else path.stem,
        folder=folder,
        stages=stages,
        source=_absolute(file, values, path.parent),
    )


class _StageReader:
    """Makes the stages of a file, each checked by itself and against those that it names.

    Args:
        base: folder that paths of configurations are seen from.
        typed: key -> the override that set it.
    """

    def __init__(self, file: ExperimentFile, base: Path, typed: Mapping[str, str]) -> None:
        self._file, self._base, self._typed = file, base, typed
        self.problems: list[str] = []
        self._sections: dict[str, StageSection] = {}
        self._trainings: dict[str, Training] = {}
        """By name, also those of sweeps; without the network that each starts from."""
        self._in_configs: dict[str, list[str]] = {}
        """A problem of a configuration -> the stages that have it."""

    def read(self) -> dict[str, Stage]:
        """All that can be made of the file; what cannot is in `problems`."""
        for name, values in self._file.stages.items():
            self._check(name, values)
        for name, section in self._sections.items():
            if isinstance(section, TrainingStage):
                self._configure(name, section)
        stages: dict[str, Stage] = {}
        for name, section in self._sections.items():
            match section:
                case TrainingStage(start=start):
                    if start is not None:
                        self._require(name, "start", [start], TrainingStage)
                    for training in self._trainings.values():
                        if name in (training.name, training.sweep):
                            stages[training.name] = self._started(training)
                case EvaluationStage(evaluate=network, protocols=protocols, scales=scales):
                    self._require(name, "evaluate", [network], TrainingStage)
                    if (settings := self._settings(name, section)) is not None:
                        stages[name] = Evaluation(name, network, protocols, scales, settings)
                case ReportStage(report=evaluations):
                    self._require(name, "report", evaluations, EvaluationStage)
                    stages[name] = Report(name, evaluations)
        for problem, names in self._in_configs.items():
            label = "stage" if len(names) == 1 else "stages"
            self.problems.append(f"{label} {', '.join(names)}: {problem}")
        return stages

    def _check(self, name: str, values: Mapping[str, Any]) -> None:
        """The name and the keys of a stage."""
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

    def _configure(self, name: str, section: TrainingStage) -> None:
        """A training, or those of a sweep: the file, then what all, this stage and this one set."""
        try:
            of_file = read_yaml(
                self._base / section.config, "config is a path seen from the experiment's file"
            )
        except ConfigError as error:
            self.problems.append(f"stages.{name}.config: {error}")
            return
        full_names: set[str] = set()
        for text in (" ".join(text.split()) for text in section.sweep or [""]):
            full_name = f"{name}/{_folder_name(text)}" if section.sweep else name
            if full_name in full_names:
                self.problems.append(
                    f"stages.{name}.sweep: {text!r} is there already, or has the same folder."
                )
                continue
            full_names.add(full_name)
            values = _copied(of_file)
            for sections in (self._file.set, section.set):
                _merge(values, sections)
            typed = _below("set.", self._typed) | _below(f"stages.{name}.set.", self._typed)
            found: list[str] = []
            try:
                typed |= apply_overrides(shlex.split(text), values, found)
            except ValueError as error:
                found.append(f"sweep {text!r} cannot be split into overrides: {error}.")
            _merge(values, {"run": {"folder": f"{Path(self._file.folder) / full_name}"}})
            if self._file.data is not None:
                _merge(values, {"data": {"root": self._file.data}})
            if (config := self._check_config(full_name, values, typed, found)) is not None:
                sweep = name if section.sweep else ""
                self._trainings[full_name] = Training(full_name, config, section.start, sweep, text)

    def _check_config(
        self,
        name: str,
        values: Mapping[str, Any],
        typed: Mapping[str, str],
        found: Iterable[str] = (),
    ) -> Config | None:
        """A configuration of a stage; notes its problems, and those that were found before."""
        config, problems = check(Config, values, typed=typed)
        for problem in [*found, *problems]:
            self._in_configs.setdefault(problem, []).append(name)
        return config

    def _started(self, training: Training) -> Training:
        """The training with the network that it starts from in its configuration."""
        start, model = training.start, training.config.model
        if start is None:
            return training
        if self._file.glorot:
            source = self._trainings.get(start)
            if source is None or source.config.model.configuration != model.configuration:
                start = None
        path = None if start is None else str(Path(self._file.folder) / start)
        model = model.model_copy(update={"initialize_from": path})
        config = training.config.model_copy(update={"model": model})
        return replace(training, config=config, start=start)

    def _settings(self, name: str, section: EvaluationStage) -> tuple[str, ...] | None:
        """What an evaluation sets, and what it takes over from its training."""
        training = self._trainings.get(section.evaluate)
        if training is None:
            return None
        crop_size = training.config.data.crop_size
        try:
            require_scales(section.scales, crop_size, f"stages.{name}.scales")
        except ConfigError as error:
            self.problems.append(str(error))
        values = training.config.model_dump(mode="json")
        _merge(values, section.set)
        typed = _below(f"stages.{name}.set.", self._typed)
        if self._check_config(name, values, typed) is None:
            return None
        own, default = flatten(section.set), flatten(Config().model_dump(mode="json"))
        return tuple(
            to_override(key, value)
            for key, value in flatten(values).items()
            if key in own or (KNOBS[key].as_trained and value != default[key])
        )

    def _require(self, name: str, key: str, needs: Iterable[str], kind: type[StageSection]) -> None:
        """Notes the stages that are not there, or are not of a kind."""
        what = "a training" if kind is TrainingStage else "an evaluation"
        known = [
            stage
            for stage, section in self._sections.items()
            if isinstance(section, kind) and not getattr(section, "sweep", ())
        ]
        for need in needs:
            if need in known:
                continue
            if need in self._sections:
                problem = f"stage {need} is not {what}; name {what} that is not a sweep."
                if kind is EvaluationStage:
                    problem = f"stage {need} is not {what}."
            elif need in self._file.stages:
                continue  # it is there, and has problems of its own
            else:
                near = difflib.get_close_matches(need, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}."
                problem = f"there is no stage {need}; {hint if known else 'describe it.'}"
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
    return {key.removeprefix(prefix): typed[key] for key in typed if key.startswith(prefix)}


def _in_order(stages: Mapping[str, Stage]) -> tuple[dict[str, Stage], list[str]]:
    """The stages, each behind those it needs, else as in the file; and what keeps them from it."""
    sorter = graphlib.TopologicalSorter(
        {name: [need for need in stage.needs if need in stages] for name, stage in stages.items()}
    )
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        return dict(stages), [
            f"these stages wait for each other in a circle: {circle}; take one of the links out."
        ]
    ordered: dict[str, Stage] = {}
    places = list(stages)
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=places.index)
        ordered |= {name: stages[name] for name in ready}
        sorter.done(*ready)
    return ordered, []


def _copied(values: Any) -> Any:
    """A copy in which what stands in two places (`*anchor`) is two things."""
    if isinstance(values, Mapping):
        return {key: _copied(value) for key, value in values.items()}
    return [_copied(value) for value in values] if isinstance(values, list) else values


def _merge(values: dict[str, Any], sections: Mapping[str, Any]) -> None:
    """Puts sections on top of `values`, key by key."""
    for key, value in sections.items():
        if isinstance(value, Mapping):
            inner = values.get(key)
            values[key] = inner if isinstance(inner, dict) else {}
            _merge(values[key], value)
        else:
            values[key] = _copied(value)


def _folder_name(overrides: str) -> str:
    """`optimizer.learning_rate=0.01` as it is; what a file system might not like becomes _."""
    return re.sub(r"[^A-Za-z0-9.=+_-]+", "_", overrides).strip("._") or "_"


def _absolute(file: ExperimentFile, values: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """The file's values, readable from anywhere."""
    moved: dict[str, Any] = _copied(values)
    moved["folder"] = str(Path(file.folder).absolute())
    if file.data is not None:
        moved["data"] = str(Path(file.data).absolute())
    for stage in moved["stages"].values():
        if "config" in stage:
            stage["config"] = str((base / expand_home(stage["config"])).absolute())
    return moved
