"""Every error about a configuration or a command line says what to do; here somebody does it."""

import argparse
import ast
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from vggdist import cli, pretrain
from vggdist.artifacts import checkpoint, run_folder
from vggdist.artifacts.weights import Description, save_weights
from vggdist.commands.arguments import steps_or_count
from vggdist.config import split_batch
from vggdist.config_file import load_config, validate
from vggdist.convert.importing import read_classes
from vggdist.distributed import process as world
from vggdist.errors import VggdistError, WeightsError
from vggdist.model.initialization import build_initialized
from vggdist.prepare.packing import Packing, Resize
from vggdist.profiling import exchange, machine, step, tune
from vggdist.slurm.settings import ClusterSettings
from vggdist.training.profile import choose_steps
from vggdist.transfer.linear_classifier import transfer

ROOT = Path(__file__).parents[1]

Attempt = Callable[[str], object]
"""Does what is typed, and raises what is wrong with it."""

SET = [
    # Keys.
    ("optimizer.learning_rat=0.1", r"did you mean ([\w.]+)\?", "{0}=0.1"),
    ("learning_rate=0.1", r"did you mean ([\w.]+)\?", "{0}=0.1"),
    ("modle.dropout=0.1", r"did you mean (\w+)\?", "{0}.dropout=0.1"),
    ("optimizer.lr=0.1", r"section optimizer has \w+, (\w+)", "optimizer.{0}=0.1"),
    ("nonsense", r"of the form section.key=value, such as ([\w.=]+)\.", "{0}"),
    ("data=x", r"(\w+) is a section with keys of its own", "{0}.root=x"),
    # Kinds and ranges of values.
    ("seed=x", "must be a valid integer", "seed=1"),
    ("model.batch_norm=off", "must be a valid boolean", "model.batch_norm=false"),
    ("model.dropout=much", "must be a valid number", "model.dropout=0.1"),
    ("model.dropout=.inf", "must be a finite number", "model.dropout=0.1"),
    ("model.dropout=1.0", r"must be less than (\d)", "model.dropout=0.9"),
    ("batch.global=0", r"greater than or equal to (\d)", "batch.global={0}"),
    ("schedule.factor=2", r"less than or equal to (\d)", "schedule.factor={0}"),
    ("optimizer.learning_rate=0", r"greater than (\d)", "optimizer.learning_rate={0}.1"),
    ("data.crop_size=48", r"a multiple of (\d+)", "data.crop_size={0}"),
    ("precision=fp8", r"must be '\w+', '(\w+)'", "precision={0}"),
    ("zero_stage=3", r"must be 0, (\d) or 2", "zero_stage={0}"),
    ("data.validation_scale=none", r"(null): 0.5", "data.validation_scale={0}"),
    ("data.mean=[1", "is not valid YAML", "data.mean=[1,2,3]"),
    ("data.mean=[1,2]", "must be three numbers, red, green and blue", "data.mean=[1,2,3]"),
    ("data.mean=7", "must be a valid list", "data.mean=[7,7,7]"),
    # Paths.
    ("run.folder=", "name a file or a folder", "run.folder=a"),
    ("run.folder=~nobody-here/a", r"write (\./\S+) if it is a name", "run.folder={0}"),
    ("run.folder=a\udcf6", "where weights cannot be kept; rename it", "run.folder=b"),
    ("run.folder=/a/train data.root=/a", "set (run.folder) to a folder outside", "{0}=/b"),
    ("data.local_folder=/a data.root=/a", "set (data.local_folder) to a folder", "{0}=/b"),
    ("@nowhere", "the file of overrides cannot be read", "seed=1"),
    # Networks.
    ("model.configuration=F", r"use one of (\S+), (\S+),", "model.configuration={1}"),
    ("model.configuration=VGG12", r"or (VGG11)", "model.configuration={0}"),
    ("model.configuration=vgg16_bn", r"use (\w), and (\S+)\.$", "model.configuration={0} {1}"),
    ("model.configuration=7", r"such as (\[\[.*\]\])\.", "'model.configuration={0}'"),
    ("model.configuration=[[64]]", r"such as (\S+) or", "model.configuration=[[{0}]]"),
    ("model.configuration=[[LRN]]", r"as, say, ([\d-]+)", "model.configuration=[[{0},LRN]]"),
    ("model.configuration=[[3-8,LRN,LRN]]", "write it once", "model.configuration=[[3-8,LRN]]"),
    ("model.configuration=[]", r"has (\d) to 5 blocks", "model.configuration=[[3-8]]"),
    # What belongs together.
    (
        "data.train_scale_min=400",
        r"train_scale_min (\d+) is above train_scale_max (\d+); swap them",
        "data.train_scale_min={1} data.train_scale_max={0}",
    ),
    ("data.train_scale_min=9", r"set it to at least (\d+)", "data.train_scale_min={0}"),
    ("data.validation_scale=9", r"set it to at least (\d+)", "data.validation_scale={0}"),
    ("optimizer.trained_layers=fc8", r"such as (\[.*\])\.", "optimizer.trained_layers={0}"),
    ("optimizer.trained_layers=[fc9]", r"; it has (\w+),", "optimizer.trained_layers=[{0}]"),
    ("exchange=factors zero_stage=1", r"set zero_stage to (\d)", "exchange=factors zero_stage={0}"),
    ("exchange=factors zero_stage=1", r"or exchange to (\w+)", "exchange={0} zero_stage=1"),
    ("cuda_graph=true zero_stage=1", r"or (cuda_graph) to false", "{0}=false zero_stage=1"),
    ("optimizer.name=lars zero_stage=1", r"set zero_stage to (\d)", "optimizer.name=lars"),
]  # fmt: skip

PARTIAL = "--partial model.configuration=[[3-4]]"
IMPORT = f"import theirs.npz --out a.safetensors {PARTIAL}"
PLAN = "plan --nodes 1 --gpus-per-node 1"
PREDICT = "predict net.safetensors data/val"
KNOWN = "data.root=data model.num_classes=3"
FROZEN = f"{KNOWN} optimizer.trained_layers=[fc8]"
SEED = f"{KNOWN} model.initialize_from"

CASES: dict[str, list[tuple[str, str, str]]] = {
    "set": SET,
    "file": [
        ("seed: 1\nseed: 2\n", "delete one of them", "seed: 2\n"),
        ("D\n", r"such as `(\w+:)` with `(.+)` below it", "{0}\n  {1}\n"),
        ("model: [\n", "is not valid YAML", "model: {}\n"),
        ("model:\n", "is a section with keys of its own", "model: {}\n"),
        ("1: 2\n", "keys are words", "seed: 2\n"),
        ("model: {dropout: 0.5}\n", r"dropout is a value, not a (section)", "seed: 1\n"),
    ],
    "split": [
        ("256 null", r"set it to (\d+) or", "{0} null"),
        ("256 null", r"or (\d+), or change", "{0} null"),
        ("1 null", r"set it to (\d+), or change", "{0} null"),
        ("30 4", r"set batch.micro to (\d+), for example", "30 {0}"),
    ],
    "fact": [
        ("partition 'a b'", "must be letters, digits and signs", "partition a_b"),
        ("comment 'a\nb'", "write it in one line", "comment 'a b'"),
        ("time soon", r"hours such as (\S+), or", "time {0}"),
        ("time 1", "ask for more time", "time 10"),
    ],
    "command": [
        (
            "import net.safetensors --out net.safetensors",
            "give another name",
            "import net.safetensors --out again.safetensors",
        ),
        (
            f"import theirs.npz --out a.pth {PARTIAL}",
            r"name it (\S+)\.$",
            f"import theirs.npz --out {{0}} {PARTIAL}",
        ),
        (
            f"{IMPORT} --crop-size 40",
            "which is no multiple of (32); .* name another with (--crop-size)",
            f"{IMPORT} {{1}} {{0}}",
        ),
        (
            f"{IMPORT} model.num_classes=3 --classes two",
            r"but the network tells (\d+) classes apart; write one name for each",
            f"{IMPORT} model.num_classes={{0}} --classes three",
        ),
        (
            "export net.safetensors --format safetensors --out a.pth",
            r"name it (\S+)\.$",
            "export net.safetensors --format safetensors --out {0}",
        ),
        (
            "export net.safetensors --format safetensors --dense --out a.safetensors",
            r"holds weights alone, which are the (same) for whole images",
            "export net.safetensors --format safetensors --out a.safetensors",
        ),
        (
            "export net.safetensors --format torchvision --out a.pth",
            r"Export it as torch-export, onnx or (\w+)\.",
            "export net.safetensors --format {0} --out a.safetensors",
        ),
        (f"{PREDICT} --scale 8", r"use scales of (\d+) or more", f"{PREDICT} --scale {{0}}"),
        ("predict data data/val", r"or a (\.safetensors) file", "predict net{0} data/val"),
        ("predict nothing data/val", r"or a (\.safetensors) file", "predict net{0} data/val"),
        (
            "predict best@best data/val",
            r"(\S+) alone is the newest checkpoint",
            "predict {0} data/val",
        ),
        (f"{PREDICT} --out data/val/a.png", "name a place outside", f"{PREDICT} --out a.png"),
        (f"{PREDICT} --json run/result.json", "give another name", f"{PREDICT} --json run/a.json"),
        (
            "evaluate net.safetensors --data data --scales 8",
            r"use scales of (\d+) or more",
            "evaluate net.safetensors --data data --scales {0}",
        ),
        (
            f"{PLAN} --device cpu --network 25",
            r"such as (\w+) ",
            f"{PLAN} --device cpu --network {{0}}",
        ),
        (
            f"{PLAN} --device gpu --network 25gbit",
            r"is neither (\w+),",
            f"{PLAN} --device {{0}} --network 25gbit",
        ),
        (
            f"{PLAN} --device empty.json --network 25gbit",
            r"does not describe a (device)",
            f"{PLAN} --device cpu --network 25gbit",
        ),
        (
            f"{PLAN} --device cpu --network 25gbit zero_stage=1",
            r"set (zero_stage=0)",
            f"{PLAN} --device cpu --network 25gbit {{0}}",
        ),
        (
            "submit --dry-run --gpus-per-node 2 --ranks-per-node 4",
            r"set it to at most (\d)",
            "submit --dry-run --gpus-per-node 2 --ranks-per-node {0}",
        ),
        (
            "submit --dry-run --gpus-per-node 2 --ranks-per-node 4",
            r"or --gpus-per-node to (\d)",
            "submit --dry-run --gpus-per-node {0} --ranks-per-node 4",
        ),
        (
            "submit --dry-run run.folder=100%",
            "choose another (run.folder)",
            "submit --dry-run {0}=100",
        ),
        (
            "evaluate net.safetensors device=cpu",
            "give the data set with (--data) ROOT",
            "evaluate net.safetensors {0} data device=cpu",
        ),
        ("runs nowhere", "give one that holds run folders", "runs ."),
        ("compare data", r"`vggdist (runs) DIR` lists those below a folder", "{0} data"),
        ("summary --config nowhere", r"such as (\S+)\.$", f"summary --config {ROOT}/{{0}}"),
        (
            "experiment status it.yaml stages.t.protocols=[]",
            "leave it out for dense",
            "experiment status it.yaml",
        ),
        (
            "experiment status it.yaml stages.t.scales=[8]",
            r"use scales of (\d+) or more",
            "experiment status it.yaml stages.t.scales=[{0}]",
        ),
    ],
    "train": [
        ("model.num_classes=3", "(data.root)=/path", "{0}=data model.num_classes=3"),
        ("data.root=data model.num_classes=4", "set (model.num_classes=3)", "data.root=data {0}"),
        (
            FROZEN,
            "set (model.initialize_from) to a trained network",
            f"{FROZEN} {{0}}=net.safetensors data.mean=[120,120,120]",
        ),
        (FROZEN, "or train them too", KNOWN),
        (
            f"{SEED}=net.safetensors",
            r"set (data.mean='.*' data.std='.*')\.",
            f"{SEED}=net.safetensors {{0}}",
        ),
        (
            f"{SEED}=other.safetensors data.mean=[0,0,0]",
            "or set (model.initialize_from=null)",
            f"{KNOWN} data.mean=[0,0,0] {{0}}",
        ),
        (
            f"{SEED}=nowhere",
            "give a run folder, a checkpoint, or a (.safetensors)",
            f"{SEED}=net{{0}} data.mean=[120,120,120]",
        ),
        (
            f"{KNOWN} data.local_folder=copies",
            "or set (data.local_folder=null)",
            f"{KNOWN} data.local_folder=copies {{0}}",
        ),
        (
            f"{KNOWN} data.local_folder=copies",
            "`(vggdist prepare folder .*) --out DIR (--form shards)` and set data.root=DIR",
            f"{KNOWN} data.local_folder=copies data.root=packed ; {{0}} --out packed {{1}}",
        ),
    ],
    "choose": [
        (
            "run.folder=run run.resume=never",
            "choose another (run.folder)",
            "{0}=another run.resume=never",
        ),
        (
            "run.folder=run run.resume=x",
            r"Give a folder such as (.*)/step-00005000",
            "run.folder=run run.resume={0}/step-00000005",
        ),
        (
            "run.folder=run run.resume=x",
            r"step-00005000, (auto), or",
            "run.folder=run run.resume={0}",
        ),
    ],
    "lock": [
        ("held", "wait for it, or choose another run.folder", "another"),
        ("two/run", "Choose another run.folder", "another"),
    ],
    "measure": [
        ("step 0", "at least one round", "step 1"),
        ("tune 0", "at least one round", "tune 1"),
        ("machine 2", "at least (three) rounds", "machine 3"),
    ],
    "profile": [
        ("100-104 0 12", r"takes steps (\d+) to (\d+); name some", "{0}-{1} 0 12"),
        ("10 7 12", r"takes steps (\d+) to (\d+); name some", "{0}-{1} 7 12"),
        ("0 0 12", r"steps such as 100-105 nor a number of steps such as (\d+)", "{0} 0 20"),
        ("3 12 12", "profile another one", "3 0 12"),
    ],
    "out": [
        ("tune two", "Give another file", "tune another"),
        ("tune data", "Give another file", "tune another"),
        ("tune deep/it", "make it first", "tune it"),
        ("machine two", "Give another file", "machine another"),
        ("machine deep/it", "make it first", "machine it"),
    ],
    "bench images": [
        ("data.root=data model.num_classes=1", "set (model.num_classes=3)", "data.root=data {0}"),
    ],
    "tune images": [("seed=1", "(data.root)=/path/to/images", "{0}=data")],
    "bench exchange": [
        (
            "batch.global=256 batch.micro=64",
            r"set (batch.global) to at most (\d+)",
            "{0}={1} batch.micro=64",
        ),
    ],
    "pack": [
        ("0 95 512 1", r"shorter side cannot be 0 pixels; it is at least (\d)", "{0} 95 512 1"),
        ("9 0 512 1", r"JPEG quality cannot be 0; it is between (\d+) and 100", "9 {0} 512 1"),
        ("9 101 512 1", r"JPEG quality cannot be 101; it is between 1 and (\d+)", "9 {0} 512 1"),
        ("9 95 -1 1", r"--shard-megabytes cannot be -1\.0; it is more than 0", "9 95 0.1 1"),
        ("9 95 512 0", "--jobs cannot be 0; it is more than 0", "9 95 512 1"),
    ],
    "form": [("zip", r"no form 'zip'; choose (\w+) or shards", "{0}")],
    "transfer": [("1", r"it must be at least (\d)", "{0}")],
    "classes": [("a\n\nb\n", "write a name in each line", "a\nb\n")],
}
"""What is done -> what is typed, a pattern of the advice, and what is typed next: {0}, {1} ... are
the groups of the pattern."""
EACH = [(name, *case) for name, cases in CASES.items() for case in cases]


class Past(Exception):  # noqa: N818
    """What would be begun, once nothing is left to object to."""


def past(*_: object, **__: object) -> None:
    raise Past


@pytest.fixture
def attempts(
    tmp_path: Path,
    tiny_dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[dict[str, Attempt]]:
    """By the first word of a case; in a folder with a data set, networks and more."""
    monkeypatch.chdir(tmp_path)
    _fill(tmp_path, tiny_dataset)
    monkeypatch.setattr(pretrain, "build_engine", past)

    def load(typed: str) -> None:
        load_config(None, shlex.split(typed))

    def read(text: str) -> None:
        (tmp_path / "read.yaml").write_text(text)
        overrides = ["model.dropout.x=1"] if text.startswith("model: {dropout") else []
        load_config(tmp_path / "read.yaml", overrides)

    def split(typed: str) -> None:
        batch, micro = typed.split()
        split_batch(load_config(None, [f"batch.global={batch}", f"batch.micro={micro}"]).batch, 3)

    def know(typed: str) -> None:
        key, value = shlex.split(typed)
        validate(ClusterSettings, {key: value}, "flags")

    def command(typed: str) -> None:
        monkeypatch.setattr(sys, "argv", ["vggdist", *shlex.split(typed)])
        if cli.main():
            raise VggdistError(capsys.readouterr().err.strip())

    def train(typed: str) -> None:
        overrides, _, before = typed.partition(" ; vggdist ")
        if before:
            command(before)
        usual = (tmp_path / "training").read_text().split()
        pretrain.pretrain(load_config(None, [*usual, *shlex.split(overrides)]))

    def choose(typed: str) -> None:
        config = load_config(None, typed.split())
        run_folder.choose_checkpoint(config, Path(config.run_folder))

    def measure(typed: str) -> None:
        what, rounds = typed.split()
        config = load_config(None, ["data.root=data"])
        with monkeypatch.context() as patch:
            patch.setattr(world, "start", past)
            match what:
                case "step":
                    step.measure_step(config, int(rounds))
                case "tune":
                    tune.tune_data(config, int(rounds))
                case "machine":
                    machine.measure_machine(config, int(rounds), tmp_path)

    def profile(typed: str) -> None:
        wanted, done, total = typed.split()
        choose_steps(steps_or_count(wanted), int(done), int(total))

    def require(typed: str) -> None:
        what, out = typed.split()
        {"tune": tune, "machine": machine}[what].require_writable(Path(out))

    def pack(typed: str) -> None:
        side, quality, megabytes, jobs = typed.split()
        Packing("shards", Resize(int(side), int(quality)), float(megabytes), int(jobs))

    def classify(typed: str) -> None:
        try:
            transfer([Path("nothing.npz")], int(typed), 1, 1)
        except WeightsError:
            raise Past from None

    def name(text: str) -> None:
        (tmp_path / "names").write_text(text)
        read_classes(tmp_path / "names")

    held = run_folder.lock(Path("held"))
    yield {
        "set": load,
        "file": read,
        "split": split,
        "fact": know,
        "command": command,
        "train": train,
        "choose": choose,
        "lock": lambda typed: run_folder.lock(Path(typed)).close(),
        "measure": measure,
        "profile": profile,
        "out": require,
        "bench images": lambda typed: step._open_images(load_config(None, typed.split())),
        "tune images": lambda typed: tune.open_training_images(load_config(None, typed.split())),
        "bench exchange": lambda typed: exchange._check(load_config(None, typed.split())),
        "pack": pack,
        "form": lambda typed: Packing(typed, None, 512, 1),
        "transfer": classify,
        "classes": name,
    }
    held.close()


def _fill(folder: Path, dataset: Path) -> None:
    (folder / "data").symlink_to(dataset)
    for name, blocks, mean in (("net", "[[3-8],[3-16]]", 120.0), ("other", "[[5-4]]", 0.0)):
        overrides = [f"model.configuration={blocks}", "model.fc_width=8", "model.num_classes=3"]
        model = load_config(None, overrides).model
        state = build_initialized(model, 32, seed=0).state_dict()
        description = Description(model, 32, (mean,) * 3, (1.0,) * 3, (32, 40))
        save_weights(folder / f"{name}.safetensors", state, description)
    kernel, bias = np.ones((4, 3, 3, 3), np.float32), np.ones(4, np.float32)
    np.savez(folder / "theirs.npz", conv1_1_W=kernel, conv1_1_b=bias)
    (folder / "two").write_text("a\nb\n")
    (folder / "three").write_text("a\nb\nc\n")
    (folder / "empty.json").write_text("{}")
    (folder / "net.yaml").write_text("model: {configuration: [[3-8]]}\n")
    (folder / "it.yaml").write_text(
        "folder: runs\nstages:\n  a: {config: net.yaml}\n  t: {evaluate: a}\n"
    )
    (folder / "training").write_text(
        "model.configuration=[[3-8],[3-16]] model.fc_width=8 data.crop_size=32 batch.global=8 "
        "data.train_scale_min=32 data.train_scale_max=40 precision=fp32 device=cpu run.folder=new"
    )
    tensors = {"a": torch.zeros(2)}
    saved = checkpoint.Checkpoint(5, tensors, tensors, {})
    checkpoint.save(folder / "run" / "checkpoints", saved, keep=2)
    (folder / "run" / "config.yaml").write_text("")
    saved = checkpoint.Checkpoint(5, state, {}, {}, description)
    checkpoint.save(folder / "best" / "checkpoints", saved, keep=2)


def problem_of(attempt: Attempt, typed: str) -> str | None:
    """What is said of an attempt; none: nothing."""
    try:
        attempt(typed)
    except Past:
        return None
    except (VggdistError, argparse.ArgumentTypeError) as error:
        return str(error)
    return None


@pytest.mark.parametrize(("name", "typed", "advice", "then"), EACH)
def test_who_follows_the_advice_does_not_meet_the_problem_again(
    name: str, typed: str, advice: str, then: str, attempts: dict[str, Attempt]
) -> None:
    first = problem_of(attempts[name], typed)
    assert first is not None, f"{typed!r} is no mistake"
    told = re.search(advice, first)
    assert told, f"no {advice!r} in: {first}"
    now = re.sub(r"\{(\d)\}", lambda group: told[int(group[1]) + 1], then)
    assert problem_of(attempts[name], now) is None, f"{now!r} after: {first}"


HARDWARE = "about a GPU, or a precision that the device lacks"
ELSEWHERE = {
    "api.py": "tests/test_api.py",
    "distributed/device.py": HARDWARE,
    "distributed/precision.py": HARDWARE,
    "experiments/job_log.py": "two processes at once, and folders that cannot be written",
    "experiments/runner.py": "a folder that cannot be written",
    "slurm/commands.py": "a job in SLURM's queue",
    "training/micro_batch.py": HARDWARE,
}
"""Modules whose errors the tests of their own bring about."""
OF_THE_SYSTEM = (
    *(" cannot be written: ", " cannot be read: ", " cannot be read as JSON: ", ". Choose another"),
    *(" belongs to somebody else, ", ". Give another file.", " GiB of weights, and an .onnx file"),
    *("model.initialize_from: the trained network cannot be read: ", " MB. Free space there, "),
)
"""What is said where the system refuses, or where the memory of a test would not do."""


def test_the_advice_of_every_error_about_a_configuration_is_followed_above(
    attempts: dict[str, Attempt],
) -> None:
    said = [str(problem_of(attempts[name], typed)) for name, typed, _, _ in EACH]
    values = ("config.py", "model/configurations.py", "slurm/settings.py", "artifacts/paths.py")
    missing = []
    for file in sorted((ROOT / "vggdist").rglob("*.py")):
        name = file.relative_to(ROOT / "vggdist").as_posix()
        kinds = ("ConfigError", "ValueError") if name in values else ("ConfigError",)
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or getattr(call.func, "id", "") not in kinds:
                continue
            texts = [part.value for part in ast.walk(call) if isinstance(part, ast.Constant)]
            longest = max((text for text in texts if isinstance(text, str)), key=len, default="")
            is_said = any(longest in message for message in said)
            if not (is_said or name in ELSEWHERE or longest.startswith(OF_THE_SYSTEM)):
                missing.append(f"{name}, line {call.lineno}: {longest}")
    assert missing == []
