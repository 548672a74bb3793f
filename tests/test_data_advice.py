"""Every error about images says what to do; here somebody does it, and the problem is gone."""

import ast
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from vggdist.artifacts.checkpoint import Checkpoint
from vggdist.artifacts.weights import Description, save_weights
from vggdist.config import BatchConfig, DataConfig, ModelConfig, split_batch
from vggdist.config_file import load_config
from vggdist.data import local_copy
from vggdist.data.dataset import open_dataset, open_split
from vggdist.data.loader import EvaluationLoader, TrainingLoader
from vggdist.data.plan import SamplePlan
from vggdist.data.survey import survey_images
from vggdist.distributed import process as world
from vggdist.errors import DataError
from vggdist.evaluate import Request, evaluate
from vggdist.model.initialization import build_initialized
from vggdist.predict import Choice, Prediction, draw_sheet, expand
from vggdist.prepare.check import check
from vggdist.prepare.digits import write_digits
from vggdist.prepare.division import DividedFolder
from vggdist.prepare.packing import Packing
from vggdist.prepare.preparation import prepare
from vggdist.prepare.shards import ShardWriter
from vggdist.prepare.sources import FolderSource
from vggdist.training.dataset import open_training_data
from vggdist.training.signals import StopSignal
from vggdist.transfer.features_file import Features, save_features
from vggdist.transfer.linear_classifier import transfer

ROOT = Path(__file__).parents[1]
MODEL = ModelConfig(configuration=(("3-8",),), num_classes=2, fc_width=8)

Do = str | Callable[[], object]
"""A command of the shell, or a function."""

# The attempts. All work in the current folder, which holds `data` and weights of two classes.


def train(root: str = "data", run: str = "run", *overrides: str) -> None:
    """Opens the images as a training does that has a checkpoint in the folder `run`, if it has."""
    settings = [f"data.root={root}", f"run.folder={run}", "model.num_classes=2", *overrides]
    noted = Path(run, "digests")
    before = eval(noted.read_text()) if noted.exists() else None
    saved = None if before is None else Checkpoint(1, {}, {}, {"data": before})
    with world.joined("cpu") as process:
        config = load_config(None, settings)
        data = open_training_data(config, Path(run), process, saved, StopSignal(), ExitStack())
    Path(run).mkdir(exist_ok=True)
    noted.write_text(repr(data.digests))


def load(most_bad: int = 2) -> None:
    """Takes a batch of every training image."""
    images = open_dataset("data").train
    data = DataConfig(crop_size=32, train_scale_min=32, train_scale_max=32)
    size = images.num_images
    split, plan = split_batch(BatchConfig(**{"global": size}), 1), SamplePlan(size, data, size, 0)
    with TrainingLoader(
        images, plan, data, split, last_step=1, num_threads=1, max_bad=most_bad
    ) as batches:
        list(batches)


def evaluate_in_training() -> None:
    """Takes every validation image."""
    data = DataConfig(crop_size=32, train_scale_min=32, train_scale_max=32)
    with EvaluationLoader(open_dataset("data").val, data, scale=32, batch_size=4) as batches:
        list(batches)


def pack(out: str, source: str = "data") -> None:
    prepare(FolderSource(source), out, Packing("shards", shard_megabytes=0.001, jobs=1))


def evaluate_it(root: str = "data") -> None:
    overrides = ("device=cpu", "precision=fp32")
    evaluate(Request("net.safetensors", root, out=Path("out"), scales=(32,), overrides=overrides))


def check_it(threshold: float = 1.0, root: str = "data") -> None:
    check(root, 1).require(threshold)


def stage(folder: str) -> None:
    local_copy.copy_shards(open_dataset("packed"), Path(folder))


def sheet(name: str) -> None:
    file = Path("data/train/cat/0.png")
    draw_sheet([Prediction(file, (Choice(0, "cat", 1.0),))], Path(name))


def transfer_it(train_per_class: int) -> None:
    transfer([Path("features.npz")], train_per_class, 1, 1)


# How problems come about, and what somebody does.


def kill_packing() -> None:
    """A packing that ends in the middle."""
    with pytest.MonkeyPatch.context() as patch:
        calls = iter(range(100))
        add = ShardWriter.add

        def failing(*arguments: object) -> int:
            if next(calls) == 3:
                raise KeyboardInterrupt
            return add(*arguments)  # type: ignore[arg-type]

        patch.setattr(ShardWriter, "add", failing)
        with pytest.raises(KeyboardInterrupt):
            pack("packed")


def damage_record() -> None:
    kill_packing()
    for part in Path("packed/.vggdist-prepare").glob("part-*"):
        part.write_bytes(b"")


def write_features(*counts: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    files = tuple(f"{label}/{number}.jpg" for number, label in enumerate(labels))
    descriptors = np.random.default_rng(0).normal(size=(len(labels), 4)).astype(np.float32)
    classes = tuple(map(str, range(len(counts))))
    save_features(Path("features.npz"), Features(descriptors, labels, files, classes))


def look_while_it_changes() -> None:
    images = open_split("data", "val")
    if Path("changing").exists():
        Path("data/val/cat/0.png").rename("data/val/cat/renamed.png")
    survey_images(images)


BREAK = "echo broken > data/{0}/cat/0.png"
BREAK_ALL = "for file in data/train/*/*; do echo broken > $file; done"
MEND = "cp -r kept/. data/"
CHECK = partial(check, "data", 1)


class Case(NamedTuple):
    """A problem, and the way out of it."""

    wrong: Do
    """How the problem comes about."""
    attempt: Do
    """What meets it."""
    advice: str
    """A pattern of what is said then."""
    remedy: Do = "true"
    """What somebody does who reads it; {0}, {1} ... are the groups of the pattern."""
    then: Do | None = None
    """What is tried then; None: the same."""


CASES = {
    "no such folder": Case(
        "true",
        partial(train, "nowhere"),
        "set data.root to a folder with train/ and val/",
        then=train,
    ),
    "a folder too high": Case(
        "mkdir up; mv data up",
        partial(train, "up"),
        r"it has '(data)'.* Set data.root to such a folder",
        then=partial(train, "up/data"),
    ),
    "no class folders": Case(
        "mv data/val/cat/* data/val; rm -r data/val/*/",
        train,
        "put the images of each class into a folder of its own",
        "cd data/val; mkdir cat dog; cp *.png dog; mv *.png cat",
    ),
    "an empty class": Case(
        "mkdir data/train/eel data/val/eel",
        train,
        r"no images in '(eel)'.* Fill the folder, or remove it",
        "rm -r data/train/{0} data/val/{0}",
    ),
    "a line break": Case(
        "mv data/train/dog $'data/train/d\\nog'; mv data/val/dog $'data/val/d\\nog'",
        train,
        "Rename them",
        "mv data/train/d?og data/train/dog; mv data/val/d?og data/val/dog",
    ),
    "an endless link": Case(
        "ln -s .. data/train/cat/up",
        train,
        r"The link '(\S+)' leads .* so that following it would never end\. Remove it",
        "rm {0}",
    ),
    "other classes": Case(
        "mv data/val/dog data/val/wolf",
        train,
        r"only \S+ has '(dog)'; only \S+ has '(wolf)'.* Add, rename or remove these folders",
        "mv data/val/{1} data/val/{0}",
    ),
    "a single class": Case(
        "mv data/train/dog .; rm -r data/val/dog",
        train,
        r"tells at least two classes apart\. .* into a folder beside it",
        "mkdir data/train/dog data/val/dog; cp dog/* data/train/dog; cp dog/* data/val/dog",
    ),
    "a folder too many": Case(
        "for s in train val; do mkdir data/$s/a; mv data/$s/cat data/$s/dog data/$s/a; done",
        train,
        r"move them up.* deep: (mv (\S+)/train/.*)\.$",
        "{0}; $(echo '{0}' | sed s,/train,/val,g | cut -d'&' -f1); rmdir data/val/a",
    ),
    "unfinished": Case(
        kill_packing,
        partial(train, "packed"),
        "Start the same `vggdist prepare` again",
        partial(pack, "packed"),
    ),
    "shards without their list": Case(
        partial(pack, "packed"),
        lambda: (Path("packed/vggdist-manifest.npz").unlink(missing_ok=True), train("packed")),
        "Prepare the data set again",
        lambda: (shutil.rmtree("packed"), pack("packed")),
        partial(train, "packed"),
    ),
    "changing": Case(
        "touch changing",
        look_while_it_changes,
        "Start again once they stay as they are",
        "rm changing",
    ),
    "a new image": Case(
        lambda: (train(), Image.new("RGB", (40, 40)).save("data/train/cat/new.png")),
        partial(train, "data", "run2"),
        r"as they are now: `vggdist check (\S+) --accept-changes`",
        lambda: check("data", 1, accept_changes=True),
    ),
    "a lost image": Case(
        lambda: (train(), Path("data/train/cat/0.png").unlink()),
        train,
        "Undo the change",
        MEND,
    ),
    "replaced shards": Case(
        lambda: (pack("packed"), pack("odd", "other"), do("cp odd/val/* packed/val/")),
        partial(train, "packed"),
        "prepare the shards again",
        lambda: (shutil.rmtree("packed"), pack("packed")),
    ),
    "a damaged quarantine": Case(
        "echo '[]' > data/vggdist-quarantine.json",
        train,
        r"The quarantine list (\S+) cannot be read: .* or delete it and run `vggdist check` again",
        "rm {0}",
    ),
    "a damaged manifest": Case(
        "echo nothing > data/vggdist-manifest.npz",
        train,
        r"The manifest (\S+) cannot be used: .* Delete it",
        "rm {0}",
    ),
    "a validation image in quarantine": Case(
        lambda: (do(BREAK.format("val")), CHECK()),
        train,
        "Replace them with good copies and run `vggdist check` again",
        lambda: (do(MEND), CHECK()),
    ),
    "an image in quarantine to evaluate": Case(
        lambda: (do(BREAK.format("val")), CHECK()),
        evaluate_it,
        "Replace them with good copies and run `vggdist check` again",
        lambda: (do(MEND), CHECK()),
    ),
    "images of another run": Case(
        lambda: (train(), do("rm data/vggdist-manifest.npz data/train/cat/0.png")),
        train,
        "choose another run.folder",
        then=partial(train, "data", "run2"),
    ),
    "replaced images": Case(
        lambda: (train(), do("cp data/train/dog/0.png data/train/cat/0.png")),
        train,
        r"or set (\S+=\w+) to go on",
        then=partial(train, "data", "run", "data.accept_changed=true"),
    ),
    "replaced images put back": Case(
        lambda: (train(), do("cp data/train/dog/0.png data/train/cat/0.png")),
        train,
        "Restore the previous ones",
        MEND,
    ),
    "nothing usable": Case(
        lambda: (open_dataset("data", write=True), do(BREAK_ALL)),
        partial(load, 100),
        r"No image in \S+ can be used. Check the disk",
        MEND,
    ),
    "too many unusable": Case(
        lambda: (open_dataset("data", write=True), do(BREAK_ALL)),
        load,
        "list all bad images with `vggdist check",
        lambda: (CHECK(), do(MEND)),
    ),
    "an unusable validation image": Case(
        BREAK.format("val"),
        evaluate_in_training,
        r"Replace (it) with a good copy",
        MEND,
    ),
    "a local folder that is a file": Case(
        lambda: (pack("packed"), do("touch file")),
        partial(stage, "file"),
        "Name a folder on a disk of the node's own",
        then=partial(stage, "local"),
    ),
    "nothing to check": Case(
        "mkdir empty",
        lambda: check_it(root="empty"),
        "Name a folder with train/ and val/",
        then=check_it,
    ),
    "shards out of which nothing can be moved": Case(
        partial(pack, "packed"),
        partial(check, "packed", 1, move_broken=Path("away")),
        "Leave --move-broken out, mend the source, and prepare the shards again",
        then=partial(check, "packed", 1),
    ),
    "a division of a divided folder": Case(
        "true",
        partial(DividedFolder, "data", 0.5, 0),
        "or name a folder of classes",
        then=partial(DividedFolder, "data/train", 0.5, 0),
    ),
    "a class that cannot be divided": Case(
        "mkdir data/train/eel; cp data/train/cat/0.png data/train/eel",
        partial(DividedFolder, "data/train", 0.5, 0),
        r"'(eel)' .* Add images to them, or remove these folders",
        "rm -r data/train/{0}",
    ),
    "too many in quarantine": Case(
        BREAK.format("train"),
        partial(check_it, 0.1),
        "Replace them with good copies, or allow more",
        MEND,
    ),
    "no room for digits": Case(
        "true",
        partial(write_digits, "data"),
        "Choose another folder, or remove this one",
        then=partial(write_digits, "digits"),
    ),
    "a folder with something else": Case(
        "mkdir packed; touch packed/precious",
        partial(pack, "packed"),
        "Choose another folder",
        then=partial(pack, "packed2"),
    ),
    "a damaged record": Case(
        damage_record,
        partial(pack, "packed"),
        r"Remove (\S+) and start again",
        "rm -r {0}",
    ),
    "a damaged request": Case(
        lambda: (pack("packed"), Path("packed/.vggdist-prepared.json").write_text("{")),
        partial(pack, "packed"),
        r"is damaged .* Remove (\S+) and start again",
        "rm -r {0}",
    ),
    "prepared from others": Case(
        partial(pack, "packed", "other"),
        partial(pack, "packed"),
        "choose another folder, or remove this one",
        "rm -r packed",
    ),
    "an image that vanishes": Case(
        lambda: (train(), Path("data/train/cat/0.png").unlink()),
        partial(pack, "packed"),
        "Undo the change",
        MEND,
    ),
    "an evaluation's image that is too long": Case(
        lambda: Image.new("RGB", (20_000, 1)).save("data/val/cat/0.png"),
        evaluate_it,
        "Crop it",
        lambda: Image.new("RGB", (40, 40)).save("data/val/cat/0.png"),
    ),
    "an evaluation's image without an end": Case(
        "cp data/val/cat/0.png good.png; truncate --size=-12 data/val/cat/0.png",
        evaluate_it,
        r"Replace (it) with",
        "cp good.png data/val/cat/0.png",
    ),
    "other classes than the network's": Case(
        "for s in train val; do mv data/$s/dog data/$s/wolf; done",
        evaluate_it,
        r"has '(dog)'\..*Name the folders as in training",
        "for s in train val; do mv data/$s/wolf data/$s/dog; done",
    ),
    "more classes than the network's": Case(
        "for s in train val; do cp -r data/$s/dog data/$s/wolf; done",
        evaluate_it,
        "evaluate it on images of the classes that it was trained on",
        "rm -r data/*/wolf",
    ),
    "nothing to predict": Case(
        "mkdir empty",
        partial(expand, [Path("empty")]),
        "give images or a folder of them",
        then=partial(expand, [Path("data")]),
    ),
    "a picture of no format": Case(
        "true",
        partial(sheet, "sheet.xyz"),
        r"Name a file such as ([\w.]+)\.",
        then=partial(sheet, "sheet.png"),
    ),
    "features of one class": Case(
        partial(write_features, 9),
        partial(transfer_it, 2),
        "an SVM tells two or more apart",
        partial(write_features, 9, 9),
    ),
    "too few features": Case(
        partial(write_features, 9, 9),
        partial(transfer_it, 9),
        "Lower --train-per-class",
        then=partial(transfer_it, 8),
    ),
}


def do(what: Do, *told: str) -> None:
    """Does something in the current folder."""
    if callable(what):
        what()
        return
    command = what
    for number, text in enumerate(told):
        command = command.replace(f"{{{number}}}", text)
    subprocess.run(["bash", "-c", command], check=True)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("advice")
    generator = np.random.default_rng(0)
    for root in ("data", "other"):
        for split in ("train", "val"):
            for name in ("cat", "dog"):
                (folder / root / split / name).mkdir(parents=True)
                for number in range(2):
                    pixels = generator.integers(0, 256, (36, 40, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / root / split / name / f"{number}.png")
    shutil.copytree(folder / "data", folder / "kept")
    network = build_initialized(MODEL, 32, seed=1)
    description = Description(MODEL, 32, (0, 0, 0), classes=("cat", "dog"))
    save_weights(folder / "net.safetensors", network.state_dict(), description)
    return folder


SLOW = {
    "a validation image in quarantine",
    "an image in quarantine to evaluate",
    "too many unusable",
    "too many in quarantine",
    "no room for digits",
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES]
)
def test_who_follows_the_advice_does_not_meet_the_problem_again(
    case: str, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(template, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    wrong, attempt, advice, remedy, then = CASES[case]
    do(wrong)
    with pytest.raises(DataError) as caught:
        do(attempt)
    message = str(caught.value)
    told = re.search(advice, message, re.DOTALL)
    assert told, f"no {advice!r} in: {message}"
    do(remedy, *told.groups())
    do(then or attempt)


ELSEWHERE = {
    "api.py": "tests/test_api.py",
    "prepare/archives.py": "tests/prepare/test_archives.py",
    "prepare/devkit.py": "tests/prepare/test_archives.py",
    "prepare/processes.py": "a machine on which processes do not start",
}
OF_THE_SYSTEM = (
    " cannot be moved to ",
    " cannot be read: ",
    "The data set's manifest cannot be written to ",
    "The digits cannot be written to ",
    " cannot be copied to ",
    ". Free space there, name another folder, or set ",
    "Preparing ",
    "another node could not copy the shards to its data.local_folder; its message says why.",
    ". Wait for it, or choose another folder.",
    "The source is not what it should be:",
)
"""In messages of what the system refuses, of two processes at once, and of ImageNet's archives."""


def test_the_advice_of_every_error_about_images_is_followed_above() -> None:
    advice = [case.advice for case in CASES.values()]
    texts = {name: _texts(name) for name in _modules() if name not in ELSEWHERE}
    missing = [
        f"{name}, line {line}: {text}"
        for name, errors in texts.items()
        for line, text in errors
        if not any(part in text for part in OF_THE_SYSTEM)
        and not any(_is_part(pattern, text) for pattern in advice)
    ]
    assert missing == []


def _modules() -> list[str]:
    package = ROOT / "vggdist"
    return sorted(str(file.relative_to(package)) for file in package.rglob("*.py"))


def _texts(module: str) -> list[tuple[int, str]]:
    """Line and text of each DataError of a module; what is put in stands as an empty string."""
    tree = ast.parse((ROOT / "vggdist" / module).read_text(encoding="utf-8"))
    return [
        (call.lineno, "".join(_strings(call)))
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "DataError"
    ]


def _strings(node: ast.AST) -> Iterator[str]:
    """The texts in a piece of code, in order."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for part in ast.iter_child_nodes(node):
        yield from _strings(part)


def _is_part(pattern: str, text: str) -> bool:
    """Whether the longest piece of an advice that is no regular expression stands in a text."""
    pieces = re.split(r"\(.*?\)|\\S\+|\.\*|\\", pattern)
    return max(pieces, key=len).strip() in text
