"""One training lives in a run folder; a second start continues it or is refused."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from vggdist.artifacts import checkpoint
from vggdist.artifacts.checkpoint import Checkpoint
from vggdist.artifacts.run_files import Best, read_best
from vggdist.artifacts.run_folder import (
    choose_checkpoint,
    config_before,
    data_of,
    enter,
    lock,
    prepare,
    require_space,
    weights_file,
)
from vggdist.config import Config
from vggdist.config_file import load_config, to_override
from vggdist.errors import CheckpointError, ConfigError, VggdistError


def config_with(**changes: object) -> Config:
    """`section__key=value` in place of `section.key=value`."""
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return load_config(None, [to_override(key, value) for key, value in named.items()])


def choose(folder: Path, **changes: object) -> Path | None:
    """The checkpoint with which a training of this configuration continues in a folder."""
    return choose_checkpoint(config_with(**changes), folder)


def refusal(kind: type[VggdistError], call: Callable[..., object], *given: Any, **more: Any) -> str:
    with pytest.raises(kind) as caught:
        call(*given, **more)
    return str(caught.value)


def save(folder: Path, *steps: int) -> None:
    for step in steps:
        tensors = {"weight": torch.full((2,), float(step))}
        checkpoint.save(folder / "checkpoints", Checkpoint(step, tensors, tensors, {}), keep=9)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a training with the paper's configuration, and two checkpoints."""
    folder = tmp_path / "run"
    prepare(Config(), folder)
    save(folder, 10, 20)
    return folder


def step_of(folder: Path, number: int) -> Path:
    return folder / "checkpoints" / f"step-{number:08d}"


def test_a_new_folder_begins_at_the_first_step(tmp_path: Path) -> None:
    for resume in ("auto", "never"):
        assert choose(tmp_path / "new", run__resume=resume) is None


def test_a_folder_holds_the_resolved_configuration(tmp_path: Path) -> None:
    config = config_with(model__dropout=0.25, run__folder="x")
    prepare(config, tmp_path / "deep" / "run")
    assert load_config(tmp_path / "deep" / "run" / "config.yaml") == config
    assert [path.name for path in (tmp_path / "deep" / "run").iterdir()] == ["config.yaml"]


def test_the_same_configuration_continues_from_the_newest_checkpoint(folder: Path) -> None:
    assert choose(folder) == step_of(folder, 20)
    (step_of(folder, 20) / "state.json").unlink()
    assert choose(folder) == step_of(folder, 10)
    (step_of(folder, 10) / "state.json").unlink()
    message = refusal(CheckpointError, choose, folder)
    assert f"none of the 2 checkpoints in {folder / 'checkpoints'} can be used" in message


def test_a_training_that_was_killed_before_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    prepare(Config(), tmp_path)
    assert choose(tmp_path) is None


def test_another_configuration_is_refused_with_a_listing(folder: Path) -> None:
    changes = {"optimizer__learning_rate": 0.02, "model__configuration": "E", "seed": 1}
    assert refusal(CheckpointError, choose, folder, **changes) == (
        f"{folder} holds a training of another configuration:\n"
        "  - model.configuration: 'D' -> 'E'\n"
        "  - optimizer.learning_rate: 0.01 -> 0.02\n"
        "  - seed: 0 -> 1\n"
        "Take these changes back to continue it, or choose another run.folder to begin anew with "
        f"them. To train on from its newest network with them, add run.folder={folder}-2 "
        f"model.initialize_from={folder} to the command."
    )
    folder.with_name("run-2").mkdir()
    assert f"add run.folder={folder}-3 " in refusal(CheckpointError, choose, folder, seed=1)
    shutil.rmtree(folder / "checkpoints")
    write_points(folder, {10: 0.25})
    assert refusal(CheckpointError, choose, folder, seed=1).endswith("begin anew with them.")


@pytest.mark.parametrize(
    "changes",
    [
        {"run__folder": "moved"},
        {"log__every_steps": 1},
        {"checkpoint__keep": 5},
        {"device": "cpu"},
        {"zero_stage": 2},
        {"batch__micro": 8},
        {"evaluation__micro": 8},
        {"data__root": "/elsewhere"},
        {"data__num_threads": 3},
        {"data__prefetch": 4},
        {"model__initialize_from": "runs/vgg_a"},
        {"schedule__num_epochs": 80.0},
        {"schedule__num_steps": 5},
        {"schedule__num_decreases": 4},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_where_how_and_how_long_a_training_runs_may_change(
    folder: Path, changes: dict[str, object]
) -> None:
    assert choose(folder, **changes) == step_of(folder, 20)


def test_every_other_key_may_not_change(folder: Path) -> None:
    """Each with some value that it does not have now."""
    others = {
        "model__batch_norm": True,
        "model__num_classes": 10,
        "model__fc_width": 8,
        "model__dropout": 0.1,
        "model__initialization": "kaiming",
        "model__initial_std": 0.01,
        "data__crop_size": 192,
        "data__train_scale_max": 512,
        "data__validation_scale": 300,
        "data__flip": False,
        "data__color_shift": 0.0,
        "data__mean": [0.0, 0.0, 0.0],
        "batch__global": 128,
        "optimizer__momentum": 0.8,
        "optimizer__weight_decay": 0.0,
        "optimizer__gradient_clipping": 1.0,
        "schedule__name": "step",
        "schedule__warmup_epochs": 1.0,
        "schedule__factor": 0.2,
        "schedule__patience": 1,
        "schedule__num_decreases": 2,
        "schedule__step_epochs": 10.0,
        "evaluation__every_epochs": 2.0,
        "precision": "fp32",
    }
    for key, value in others.items():
        assert key.replace("__", ".") in refusal(CheckpointError, choose, folder, **{key: value})


def test_a_cosine_training_may_not_change_its_length(tmp_path: Path) -> None:
    prepare(config_with(schedule__name="cosine"), tmp_path)
    save(tmp_path, 10)
    changes = {"schedule__name": "cosine", "schedule__num_epochs": 80.0}
    message = refusal(CheckpointError, choose, tmp_path, **changes)
    assert (
        "schedule.num_epochs: 74.0 -> 80.0 (may change unless schedule.name is cosine, where every "
        "learning rate follows from the length)"
    ) in message


def test_micro_batches_may_change_but_not_where_batch_normalization_sees_them(
    tmp_path: Path,
) -> None:
    for batch_norm in (False, True):
        prepare(config_with(model__batch_norm=batch_norm), tmp_path / str(batch_norm))
        save(tmp_path / str(batch_norm), 10)
    assert choose(tmp_path / "False", batch__micro=8) == step_of(tmp_path / "False", 10)
    changes = {"model__batch_norm": True, "batch__micro": 8}
    message = refusal(CheckpointError, choose, tmp_path / "True", **changes)
    assert "batch.micro: None -> 8" in message


def test_auto_is_the_precision_of_the_training_that_is_continued(tmp_path: Path) -> None:
    prepare(config_with(precision="bf16"), tmp_path)
    save(tmp_path, 10)
    newest = choose(tmp_path, precision="auto")
    assert newest == step_of(tmp_path, 10)
    trained = config_with(precision="bf16")
    assert config_before(newest, tmp_path) == trained
    assert config_before(newest, tmp_path / "another") == trained  # resume=PATH
    assert config_before(None, tmp_path) == trained  # its checkpoints not found again
    message = refusal(CheckpointError, choose, tmp_path, precision="fp32")
    assert "precision: 'bf16' -> 'fp32'" in message


def test_a_new_training_has_no_choices_to_keep(tmp_path: Path) -> None:
    assert config_before(None, tmp_path / "none") is None
    prepare(config_with(precision="bf16"), tmp_path)  # a start that failed
    assert config_before(None, tmp_path) is None


def test_a_configuration_of_another_version_is_refused(folder: Path) -> None:
    (folder / "config.yaml").write_text("model: {depth: 16}\n")
    text = refusal(CheckpointError, choose, folder)
    assert f"{folder}/config.yaml cannot be read by this version, so its training cannot be" in text
    assert "model.depth: unknown key" in text


def test_a_folder_without_a_step_is_free_for_another_configuration(tmp_path: Path) -> None:
    prepare(Config(), tmp_path)
    for resume in ("auto", "never"):
        assert choose(tmp_path, precision="fp32", run__resume=resume) is None


def test_resume_never_refuses_a_folder_with_a_training(folder: Path) -> None:
    message = f"run.resume is never, but {folder} already holds a training; choose another "
    assert message in refusal(ConfigError, choose, folder, run__resume="never")
    (folder / "config.yaml").unlink()  # its checkpoints are left
    assert message in refusal(ConfigError, choose, folder, run__resume="never")


def test_resume_may_name_a_checkpoint_anywhere(folder: Path, tmp_path: Path) -> None:
    given = step_of(folder, 10)
    assert choose(folder, run__resume=str(given)) == given
    assert choose(tmp_path / "new", run__resume=str(given)) == given


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_resume_path_that_is_no_good_checkpoint_is_refused(folder: Path, damage: str) -> None:
    given = step_of(folder, 10)
    if damage == "damaged":
        (given / "state.json").write_text("{}")
    else:
        given = folder
    text = refusal(ConfigError, choose, folder, run__resume=str(given))
    assert text.startswith(f"run.resume: {given} is not a good checkpoint: ")
    assert text.endswith(
        f"Give a folder such as {folder}/checkpoints/step-00005000, auto, or never."
    )


def test_a_folder_that_another_process_trains_in_is_refused_with_its_number(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    assert refusal(ConfigError, lock, tmp_path) == (
        f"process {holder.pid} on {os.uname().nodename} is training in {tmp_path}; wait for it, or "
        "choose another run.folder."
    )
    holder.kill()
    holder.wait()
    with lock(tmp_path):
        assert (tmp_path / "lock").read_text() == f"process {os.getpid()} on {os.uname().nodename}"
        assert f"process {os.getpid()} on" in refusal(ConfigError, lock, tmp_path)
    with lock(tmp_path):
        pass


def test_a_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def not_there(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", not_there)
    with lock(tmp_path):
        pass
    assert caplog.messages == [
        f"{tmp_path} cannot be locked (Function not implemented); let no other job train there."
    ]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for take in (lock, partial(prepare, Config())):
        for folder in (tmp_path / "file", tmp_path / "file" / "run"):
            text = refusal(ConfigError, take, folder)
            assert text.startswith(f"run folder {folder} cannot be written: ")
            assert text.endswith("Choose another run.folder.")


def start_and_be_refused(folder: Path, begin: bool = False) -> None:
    with ExitStack() as stack:
        enter(Config(), folder, stack, ExitStack(), 0.0)
        if begin:
            prepare(Config(), folder)
        raise ConfigError("a mistake that is found later")


@pytest.fixture(params=[False, True], ids=["with room", "full"])
def disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that, full, takes names but no contents."""

    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", write if request.param else os.write)


@pytest.mark.usefixtures("disk")
def test_a_refused_start_leaves_no_new_folder(tmp_path: Path) -> None:
    refusal(ConfigError, start_and_be_refused, tmp_path / "runs" / "a", begin=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("names", [[], ["lock"]])
def test_a_refused_start_empties_a_folder_that_held_nothing(
    tmp_path: Path, names: list[str]
) -> None:
    """Or what an earlier version left of such a start."""
    for name in names:
        (tmp_path / name).touch()
    refusal(ConfigError, start_and_be_refused, tmp_path, begin=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("disk")
def test_a_refused_start_leaves_what_was_there(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    refusal(ConfigError, start_and_be_refused, folder)
    assert sorted(folder.rglob("*")) == sorted([*before, folder / "lock"])


def test_weights_are_found_in_a_run_folder_a_checkpoint_or_a_file(folder: Path) -> None:
    newest = step_of(folder, 20) / "weights.safetensors"
    assert weights_file(str(folder)) == newest
    assert weights_file(str(step_of(folder, 20))) == newest
    assert weights_file(str(newest)) == newest
    assert refusal(ConfigError, weights_file, str(folder / "none")) == (
        f"{folder}/none does not exist; give a run folder, a checkpoint, or a .safetensors file."
    )
    (folder / "none").mkdir()
    message = refusal(ConfigError, weights_file, str(folder / "none"))
    assert "none has no weights; give a run folder with a check" in message


def write_points(folder: Path, errors: dict[int, float]) -> None:
    points = [
        {"split": "validation", "step": step, "epoch": step / 10, "top1_error": error}
        for step, error in errors.items()
    ]
    text = "".join(json.dumps(point) + "\n" for point in points)
    (folder / "metrics.jsonl").write_text(text)


def test_the_best_network_of_a_run_is_found_by_its_name(folder: Path) -> None:
    prepare(config_with(data__root="/data/photos"), folder)
    best = checkpoint.keep_best(folder / "checkpoints", Best(10, 1.0, 0.25))
    assert best.folder == folder / "checkpoints" / "best-00000010"
    for network in (f"{folder}@best", f"{folder}/@best"):
        assert weights_file(network) == best.folder / "weights.safetensors"
        assert data_of(network) == "/data/photos"
    write_points(folder, {10: 0.25, 20: 0.2})
    assert read_best(folder) == best, "what was kept"
    assert weights_file(str(folder)) == step_of(folder, 20) / "weights.safetensors"


def test_a_folder_may_really_be_called_so(folder: Path) -> None:
    checkpoint.keep_best(folder / "checkpoints", Best(10, 1.0, 0.25))
    really = folder.with_name("run@best")
    shutil.copytree(folder, really)
    newest = step_of(really, 20) / "weights.safetensors"
    assert weights_file(str(really)) == newest
    assert weights_file(f"{really}@best").parent == really / "checkpoints" / "best-00000010"


def test_where_no_best_network_was_kept_a_sentence_says_why(folder: Path) -> None:
    newest = f"{folder} alone is the newest checkpoint of a run."
    assert refusal(ConfigError, weights_file, f"{folder}@best") == (
        f"{folder} has no best network: no evaluation of a training has been made there. {newest}"
    )
    write_points(folder, {5: 0.5, 10: 0.25, 15: 0.25})  # as an earlier version left it
    assert refusal(ConfigError, weights_file, f"{folder}@best") == (
        f"{folder} has no best network: the lowest error, 25.00 %, was that of step 10, and its "
        f"weights were not kept. {newest}"
    )
    assert refusal(ConfigError, weights_file, "nowhere@best") == (
        "nowhere does not exist; give a run folder, a checkpoint, or a .safetensors file."
    )


def test_a_lock_that_a_full_disk_does_not_take_is_a_sentence_and_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        message = refusal(ConfigError, lock, tmp_path)
    assert "No space left on device. Choose another run" in message
    with lock(tmp_path):
        pass


@pytest.fixture
def megabytes_free(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Has a disk have so many megabytes free."""

    def set_free(megabytes: float) -> None:
        usage = shutil.disk_usage("/")._replace(free=round(1e6 * megabytes))
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)

    return set_free


def test_a_disk_on_which_no_checkpoint_fits_is_refused(
    tmp_path: Path, megabytes_free: Callable[[float], None]
) -> None:
    megabytes_free(1106.9)
    assert refusal(ConfigError, require_space, tmp_path, 1_107_000_000, keep=2) == (
        f"run folder {tmp_path} has 1,106.9 MB free, and a checkpoint takes 1,107.0 MB. Free space "
        "there, or choose another run.folder."
    )


@pytest.mark.parametrize(
    ("num_there", "free", "warned"),
    [(0, 34.9, "35.0"), (0, 35.0, ""), (1, 24.9, "25.0"), (1, 25.0, ""), (2, 15.0, "")],
)
def test_a_disk_on_which_not_all_checkpoints_fit_is_a_warning(
    tmp_path: Path,
    megabytes_free: Callable[[float], None],
    caplog: pytest.LogCaptureFixture,
    num_there: int,
    free: float,
    warned: str,
) -> None:
    """Two are kept, and while a third is written there are three; and half of one is the best."""
    save(tmp_path, *range(1, num_there + 1))
    megabytes_free(free)
    require_space(tmp_path, 10_000_000, keep=2)
    assert len(caplog.messages) == bool(warned)
    for message in caplog.messages:
        assert f"has {free} MB free, and checkpoints will take {warned} MB more: 2 are" in message
