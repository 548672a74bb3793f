"""A checkpoint is good or it is not there; damage is done here byte by byte."""

import errno
import itertools
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vggdist.artifacts import checkpoint
from vggdist.artifacts.checkpoint import (
    Checkpoint,
    committed,
    keep_best,
    load,
    newest,
    save,
    verify,
)
from vggdist.artifacts.run_files import Best, read_best
from vggdist.errors import CheckpointError

Call = Callable[..., Any]
Damage = Callable[[Path], None]
FILES = ("weights.safetensors", "momentum.safetensors", "state.json", "manifest.json")


def made_at(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    weights = {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "norm.num_batches_tracked": torch.tensor(step),
        "fc.bias": torch.tensor([float("nan"), float("-inf"), 1e-45]),
    }
    momentum = {"conv.weight": torch.randn(4, 3, 3, 3, generator=generator)}
    return Checkpoint(step, weights, momentum, {"schedule": {"errors": [0.5, 0.25]}, "scaler": {}})


def save_steps(folder: Path, *steps: int, keep: int = 10) -> None:
    for step in steps:
        save(folder, made_at(step), keep)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def assert_same_tensors(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0, equal_nan=True)


def assert_good(folder: Path, step: int) -> None:
    """The newest good checkpoint is that of `step`, and holds what was saved."""
    path = newest(folder)
    assert path == folder / f"step-{step:08d}"
    saved, expected = load(path), made_at(step)
    assert saved.step == step
    assert_same_tensors(saved.weights, expected.weights)
    assert_same_tensors(saved.momentum, expected.momentum)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = save(tmp_path / "deep" / "checkpoints", made_at(7), keep=2)
    assert path.name == "step-00000007"
    assert verify(path) is None
    assert_good(path.parent, 7)
    assert load(path).state == {
        "format": 2,
        "step": 7,
        "schedule": {"errors": [0.5, 0.25]},
        "scaler": {},
    }
    assert names(path) == sorted(FILES)


def test_a_training_without_momentum_has_an_empty_file_of_it(tmp_path: Path) -> None:
    path = save(tmp_path, Checkpoint(1, made_at(1).weights, {}, {}), keep=2)
    assert verify(path) is None
    assert load(path).momentum == {}


def test_where_there_has_never_been_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert newest(tmp_path / "checkpoints") is None
    assert committed(tmp_path / "checkpoints") == []
    assert newest(tmp_path) is None


def test_checkpoints_are_ordered_by_step_and_nothing_else_counts(tmp_path: Path) -> None:
    save_steps(tmp_path, 9, 10, 99_999_999, 100_000_000)
    (tmp_path / "step-00000011.tmp-1").mkdir()
    (tmp_path / "step-00000012.trash-1").mkdir()
    (tmp_path / "step-13").mkdir()
    (tmp_path / "notes").write_text("")
    assert [path.name for path in committed(tmp_path)] == [
        "step-100000000",
        "step-99999999",
        "step-00000010",
        "step-00000009",
    ]


@pytest.mark.parametrize(("keep", "left"), [(2, [4, 5]), (3, [3, 4, 5]), (9, [1, 2, 3, 4, 5])])
def test_only_the_newest_are_kept(tmp_path: Path, keep: int, left: list[int]) -> None:
    save_steps(tmp_path, 1, 2, 3, 4, 5, keep=keep)
    assert names(tmp_path) == [f"step-{step:08d}" for step in left]
    assert_good(tmp_path, 5)


def test_a_training_that_went_back_leaves_the_later_checkpoints_behind(tmp_path: Path) -> None:
    """Kept, they would push the new ones out, and be continued at the next start."""
    save_steps(tmp_path, 100, 200, 300, keep=3)
    save(tmp_path, made_at(110), keep=2)  # continued from step 100
    assert names(tmp_path) == ["step-00000100", "step-00000110"]
    assert_good(tmp_path, 110)


def test_what_a_killed_process_left_is_removed_by_the_next_save(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    for name in ("step-00000002.tmp-77", "step-00000000.trash-77"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").write_bytes(b"half")
    save_steps(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


@pytest.mark.parametrize(
    ("file", "damage"),
    [(file, damage) for file in FILES for damage in (truncate, empty, Path.unlink)]
    # One letter more or another one can leave a manifest right.
    + [(file, damage) for file in FILES[:3] for damage in (flip_a_bit, grow)],
)
def test_a_damaged_file_falls_back_to_the_older_checkpoint_with_an_error(
    tmp_path: Path, file: str, damage: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    save_steps(tmp_path, 1, 2)
    damage(tmp_path / "step-00000002" / file)
    assert_good(tmp_path, 1)
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert f"checkpoint {tmp_path}/step-00000002 is damaged and left out: " in record.message


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"weights\.safetensors has \d+ bytes, \d+ were written\."),
        (flip_a_bit, r"weights\.safetensors does not have the SHA-256 that was written\."),
        (Path.unlink, r"FileNotFoundError: .*weights\.safetensors"),
    ],
)
def test_the_damage_is_named(tmp_path: Path, damage: Damage, message: str) -> None:
    path = save(tmp_path, made_at(1), keep=2)
    damage(path / "weights.safetensors")
    assert re.match(message, verify(path) or "")


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("", "JSONDecodeError: "),
        ("[]", "TypeError: "),
        ("{}", "KeyError: "),
        ('{"format": 3, "files": {}}', "its format is 3, this version reads up to 2."),
        ('{"format": 2, "files": []}', "AttributeError: "),
        (
            '{"format": 2, "files": {}}',
            "momentum.safetensors, state.json, weights.safetensors is not in its manifest.",
        ),
    ],
)
def test_a_manifest_that_is_none_is_damage(tmp_path: Path, manifest: str, message: str) -> None:
    path = save(tmp_path, made_at(1), keep=2)
    (path / "manifest.json").write_text(manifest)
    assert (verify(path) or "").startswith(message)


def test_a_file_with_a_checkpoints_name_is_damage(tmp_path: Path) -> None:
    (tmp_path / "step-00000001").write_text("")
    assert (verify(tmp_path / "step-00000001") or "").startswith("NotADirectoryError: ")


def test_where_all_are_damaged_training_does_not_begin_anew(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    for path in committed(tmp_path):
        flip_a_bit(path / "momentum.safetensors")
    with pytest.raises(CheckpointError) as caught:
        newest(tmp_path)
    assert str(caught.value) == (
        f"none of the 2 checkpoints in {tmp_path} can be used (the reasons stand above). Restore "
        "one of them, or choose another run.folder to start anew."
    )


class Malicious:
    """Unpickled, it would touch a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("file", ["weights.safetensors", "momentum.safetensors"])
def test_a_pickle_in_the_place_of_tensors_is_refused_and_not_run(tmp_path: Path, file: str) -> None:
    marker = tmp_path / "marker"
    path = save(tmp_path / "checkpoints", made_at(1), keep=2)
    for content in (pickle.dumps(Malicious(marker)), b""):
        (path / file).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"checkpoint {path} cannot be read: "):
            load(path)
    torch.save(Malicious(marker), path / file)
    with pytest.raises(CheckpointError, match=f"checkpoint {path} cannot be read: "):
        load(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Malicious(marker)))
    assert marker.exists()  # so it would have run


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def no_space_in_rust(*_: object, **__: object) -> None:
    raise SafetensorError("I/O error: No space left on device (os error 28)")


def killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def failing_at(number: int, function: Call, failure: Call) -> Call:
    """`function`, but for its n-th call, which is a failure."""
    calls = itertools.count(1)

    def call(*arguments: object, **named: object) -> object:
        return failure() if next(calls) == number else function(*arguments, **named)

    return call


POINTS = [
    *(("save_file", number) for number in (1, 2)),
    *(("_sha256", number) for number in (1, 2, 3)),
    *(("fsync", number) for number in (1, 4, 5)),
    *(("write_text", number) for number in (1, 2)),
    ("mkdir", 2),
    ("rename", 1),
]


@pytest.mark.parametrize("failure", [no_space, no_space_in_rust, killed])
@pytest.mark.parametrize(("function", "number"), POINTS)
def test_a_save_that_fails_anywhere_leaves_the_older_ones_and_nothing_half_made(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    number: int,
    failure: Call,
) -> None:
    save_steps(tmp_path, 1, 2)
    with monkeypatch.context() as patched:
        place = Path if hasattr(Path, function) else checkpoint
        patched.setattr(place, function, failing_at(number, getattr(place, function), failure))
        with pytest.raises(KeyboardInterrupt if failure is killed else OSError):
            save(tmp_path, made_at(3), keep=2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert_good(tmp_path, 2)
    save(tmp_path, made_at(3), keep=2)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]
    assert_good(tmp_path, 3)


@pytest.mark.parametrize("number", [1, 2])
def test_a_save_of_the_same_step_again_that_fails_leaves_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    save_steps(tmp_path, 1, 2)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", failing_at(number, Path.rename, no_space))
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, made_at(2), keep=2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert_good(tmp_path, 2)


def test_a_save_of_a_damaged_step_again_replaces_it(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    empty(tmp_path / "step-00000002" / "state.json")
    assert_good(tmp_path, 1)
    save_steps(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert_good(tmp_path, 2)


def test_everything_is_on_disk_before_the_name_is_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = checkpoint.fsync, Path.rename

    def noted_fsync(path: Path) -> None:
        events.append(f"fsync {path.name}")
        fsync(path)

    def noted_rename(self: Path, target: Path) -> Path:
        events.append(f"rename to {target.name}")
        return rename(self, target)

    monkeypatch.setattr(checkpoint, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    save(tmp_path, made_at(1), keep=2)
    temporary = f"step-00000001.tmp-{os.getpid()}"
    assert sorted(events[:4]) == sorted(f"fsync {name}" for name in FILES)
    assert events[4:] == [
        f"fsync {temporary}",
        "rename to step-00000001",
        f"fsync {tmp_path.name}",
    ]


def test_the_best_network_outlives_its_checkpoint_and_takes_no_space_before(
    tmp_path: Path,
) -> None:
    save_steps(tmp_path, 1)
    best = keep_best(tmp_path, Best(1, 0.5, 0.25))
    assert best.folder == tmp_path / "best-00000001"
    assert names(best.folder) == ["best.json", "manifest.json", "weights.safetensors"]
    kept, saved = (p / "weights.safetensors" for p in (best.folder, tmp_path / "step-00000001"))
    assert kept.samefile(saved)
    digest = checkpoint.written_sha256(saved)
    save_steps(tmp_path, 2, 3, 4, keep=2)
    assert names(tmp_path) == ["best-00000001", "step-00000003", "step-00000004"]
    assert_same_tensors(load_file(kept), made_at(1).weights)
    assert checkpoint.written_sha256(kept) == digest
    keep_best(tmp_path, Best(4, 2.0, 0.125))
    assert names(tmp_path) == ["best-00000004", "step-00000003", "step-00000004"]


def test_without_links_the_best_network_is_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_steps(tmp_path, 1)
    monkeypatch.setattr(os, "link", no_space)
    best = keep_best(tmp_path, Best(1, 0.5, 0.25))
    assert best.folder is not None
    kept = best.folder / "weights.safetensors"
    assert not kept.samefile(tmp_path / "step-00000001" / "weights.safetensors")
    assert_same_tensors(load_file(kept), made_at(1).weights)


@pytest.mark.parametrize("failure", [no_space, killed])
@pytest.mark.parametrize(
    ("function", "number"),
    [*(("fsync", n) for n in range(1, 5)), ("mkdir", 1), ("write_text", 2), ("rename", 1)],
)
def test_a_best_network_that_cannot_be_kept_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, number: int, failure: Call
) -> None:
    run = tmp_path / "checkpoints"
    save_steps(run, 1, 2)
    before = keep_best(run, Best(1, 0.5, 0.25))
    with monkeypatch.context() as patched:
        place = Path if hasattr(Path, function) else checkpoint
        patched.setattr(place, function, failing_at(number, getattr(place, function), failure))
        with pytest.raises(KeyboardInterrupt if failure is killed else OSError):
            keep_best(run, Best(2, 1.0, 0.125))
    assert names(run) == ["best-00000001", "step-00000001", "step-00000002"]
    assert read_best(tmp_path) == before
    keep_best(run, Best(2, 1.0, 0.125))
    assert names(run) == ["best-00000002", "step-00000001", "step-00000002"]


def test_a_process_that_is_killed_between_two_best_networks_leaves_the_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "checkpoints"
    save_steps(run, 1, 2)
    keep_best(run, Best(1, 0.5, 0.25))
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "_move_to_trash", killed)
        with pytest.raises(KeyboardInterrupt):
            keep_best(run, Best(2, 1.0, 0.125))
    assert names(run)[:2] == ["best-00000001", "best-00000002"]
    assert read_best(tmp_path) == Best(2, 1.0, 0.125, run / "best-00000002")
    save_steps(run, 3)
    keep_best(run, Best(3, 1.5, 0.0625))
    assert [name for name in names(run) if "best" in name] == ["best-00000003"]


def test_a_file_in_the_place_of_the_folder_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        save(tmp_path / "file", made_at(1), keep=2)


def test_the_manifest_holds_sizes_and_digests(tmp_path: Path) -> None:
    path = save(tmp_path, made_at(1), keep=2)
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["format"] == 2
    for name in FILES[:3]:
        assert manifest["files"][name]["bytes"] == (path / name).stat().st_size
        assert len(manifest["files"][name]["sha256"]) == 64
    copied = shutil.copytree(path, tmp_path / "elsewhere" / "best")
    assert verify(copied) is None
