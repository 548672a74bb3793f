"""What `pretrain` says to mistakes, and how it begins from a trained network."""

import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.ranks import leave_world, run_in_ranks, train_in_ranks
from tests.run_folders import records, steps
from vggdist import pretrain as subject
from vggdist.artifacts import run_folder
from vggdist.artifacts.run_folder import open_weights
from vggdist.config import split_batch, with_classes
from vggdist.config_file import load_config
from vggdist.data.batch import Batch
from vggdist.data.dataset import open_dataset
from vggdist.data.manifest_file import BadFile, save_quarantine
from vggdist.distributed.process import Process
from vggdist.errors import CheckpointError, ConfigError, DataError
from vggdist.model.fitting import needed_memory
from vggdist.prepare.packing import Packing
from vggdist.prepare.preparation import prepare
from vggdist.prepare.sources import FolderSource
from vggdist.pretrain import pretrain, run
from vggdist.training.micro_batch import choose_micro


@pytest.fixture
def own_dataset(tiny_dataset, tmp_path):
    """A copy of the data set, to be damaged."""
    root = tmp_path / "images"
    return shutil.copytree(tiny_dataset, root, ignore=shutil.ignore_patterns("vggdist-*"))


def refusal(overrides: list[str], kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        pretrain(load_config(None, overrides))
    return str(caught.value)


def test_without_data_root_the_error_says_what_to_give(tmp_path):
    message = refusal([f"run.folder={tmp_path}"], ConfigError)
    assert "data.root is not set" in message
    assert "train/ and val/" in message


def test_a_missing_data_root_is_named(tiny_overrides):
    message = refusal([*tiny_overrides, "data.root=/nowhere/images"], DataError)
    assert "/nowhere/images" in message


def test_an_impossible_batch_split_is_refused(tiny_overrides):
    message = refusal([*tiny_overrides, "batch.micro=5"], ConfigError)
    assert "batch.micro 5 does not divide the 8 images of each rank" in message


def test_a_run_folder_of_another_configuration_is_refused_and_left_as_it_is(tiny_overrides):
    config = load_config(None, tiny_overrides)
    folder = Path(config.run_folder)
    run_folder.prepare(config, folder)
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    before = (folder / "config.yaml").read_text()
    message = refusal([*tiny_overrides, "optimizer.momentum=0.5", "seed=7"], CheckpointError)
    assert "optimizer.momentum: 0.9 -> 0.5" in message
    assert "seed: 0 -> 7" in message
    assert (folder / "config.yaml").read_text() == before


def test_a_start_that_fails_on_a_mistake_leaves_nothing_in_the_way_of_the_next(tiny_overrides):
    message = refusal([*tiny_overrides, "model.num_classes=1000"], ConfigError)
    assert "model.num_classes is 1000" in message
    assert "set model.num_classes=3" in message
    corrected = load_config(None, tiny_overrides)
    assert run_folder.choose_checkpoint(corrected, Path(corrected.run_folder)) is None


def test_the_number_of_classes_follows_from_the_data_set_and_stands_in_the_run_folder(
    tiny_overrides,
):
    unset = [*tiny_overrides, "model.num_classes=null"]
    config = load_config(None, [*unset, "schedule.num_steps=1"])
    folder = Path(config.run_folder)
    assert pretrain(config) == 0
    assert load_config(folder / "config.yaml").model.num_classes == 3
    assert open_weights(str(folder)).description.model.num_classes == 3
    again = load_config(None, [*unset, "schedule.num_steps=2"])
    assert run_folder.choose_checkpoint(again, folder) is not None
    message = refusal([*tiny_overrides, "model.num_classes=4"], CheckpointError)
    assert "model.num_classes: 3 -> 4" in message


def no_engine(*_):
    raise NotImplementedError


def choosing(memory):
    """Believes to have a GPU with so much memory."""

    def choose(config, process, before):
        return choose_micro(config, process.world_size, int(memory), before)

    return choose


def train_with_85_gigabytes(process: Process, overrides: list[str]) -> int:
    leave_world()
    subject.resolve_micro = choosing(85e9)
    return run(load_config(None, overrides))


def test_the_micro_batch_that_fits_a_gpu_stands_in_the_run_folder_and_is_kept(
    tiny_overrides, monkeypatch
):
    unset = [*tiny_overrides, "batch.micro=null"]
    config = load_config(None, [*unset, "schedule.num_steps=1"])
    folder = Path(config.run_folder)
    assert run_in_ranks(train_with_85_gigabytes, 1, [*unset, "schedule.num_steps=1"]) == [0]
    chosen = load_config(folder / "config.yaml").batch.micro
    assert chosen == config.batch.global_
    log = (folder / "log.txt").read_text()
    assert f"micro batch {chosen}, the largest up to 256 that fits 85.0 GB; images" in log
    assert f"x 1 micro batch x {chosen} images" in log
    # One that continues there, with hardly enough memory for it and then with less.
    memory = needed_memory(with_classes(config, 3), split_batch(config.batch, 1)) + 1
    again = [*unset, "schedule.num_steps=2"]
    with monkeypatch.context() as patch:  # DeepSpeed has only one world in its life
        patch.setattr(subject, "build_engine", no_engine)
        patch.setattr(subject, "resolve_micro", choosing(memory))
        with pytest.raises(NotImplementedError):
            pretrain(load_config(None, again))
    assert load_config(folder / "config.yaml").batch.micro == chosen
    monkeypatch.setattr(subject, "resolve_micro", choosing(memory - 1e6))
    message = refusal(again, ConfigError)
    assert f"this run was begun with micro batches of {chosen} images" in message


def train_and_watch_loaders(process: Process, overrides: list[str]) -> tuple[int, int, list[Batch]]:
    """The exit code, how many loaders of validation images there were, and what one gives still."""
    leave_world()
    open_loader, opened = subject._evaluation_loader, []

    def watch(*arguments, **options):
        loader = open_loader(*arguments, **options)
        if options.get("repeats"):
            opened.append(loader)
        return loader

    subject._evaluation_loader = watch
    return run(load_config(None, overrides)), len(opened), list(opened[0])


@pytest.mark.multi_process
def test_all_evaluations_of_a_training_take_their_images_from_one_loader(tiny_overrides, tmp_path):
    # Seven images on two ranks: four batches and three.
    settings = ["evaluation.every_epochs=0.8", "evaluation.micro=1"]
    found = run_in_ranks(train_and_watch_loaders, 2, [*tiny_overrides, *settings])
    assert found == [(0, 1, [])] * 2
    evaluated = records(tmp_path / "run", "validation")
    assert [record["step"] for record in evaluated] == [2, 4, 6]


@pytest.fixture
def error_of_ranks(capfd):
    """What a training says that ends all its ranks with an error of a kind."""

    def train(kind, world_size, overrides):
        assert train_in_ranks(world_size, overrides) == [kind.exit_code] * world_size
        printed = capfd.readouterr().err
        assert "Traceback" not in printed
        return printed

    return train


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.multi_process
@pytest.mark.slow
def test_an_unusable_image_stops_training_and_is_named(own_dataset, tiny_overrides, error_of_ranks):
    bad = own_dataset / "train" / "green" / "1.jpg"
    cut_off(bad)
    overrides = [*tiny_overrides, f"data.root={own_dataset}", "data.policy=fail"]
    printed = error_of_ranks(DataError, 1, overrides)
    assert f"error: The image {bad} cannot be used: " in printed


@pytest.mark.multi_process
@pytest.mark.parametrize("world_size", [1, 2])
def test_cut_off_validation_images_end_a_training_before_its_first_step(
    own_dataset, tiny_overrides, tmp_path, error_of_ranks, world_size
):
    bad = [own_dataset / "val" / "green" / "1.jpg", own_dataset / "val" / "red" / "0.jpg"]
    for path in bad:
        cut_off(path)
    overrides = [*tiny_overrides, f"data.root={own_dataset}"]
    printed = error_of_ranks(DataError, world_size, overrides)
    assert printed.count("error: ") == 1
    assert (
        f"error: 2 of the 7 images in {own_dataset / 'val'} cannot be used:\n"
        f"  {bad[0]}: it is cut off: its end is missing\n"
        f"  {bad[1]}: it is cut off: its end is missing\n"
        "Replace them with good copies, or delete them and run `vggdist check "
        f"{own_dataset} --accept-changes`. An evaluation counts every image, so none takes its "
        "place.\n"
    ) in printed
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.multi_process
@pytest.mark.slow
def test_a_validation_image_that_is_bad_in_the_middle_costs_no_step(
    own_dataset, tiny_overrides, tmp_path, error_of_ranks
):
    bad = own_dataset / "val" / "green" / "9.png"
    with Image.open(own_dataset / "val" / "green" / "0.jpg") as image:
        image.save(bad)
    good = bad.read_bytes()
    middle = len(good) // 2
    bad.write_bytes(good[:middle] + bytes(100) + good[middle + 100 :])
    overrides = [
        *tiny_overrides,
        f"data.root={own_dataset}",
        "evaluation.every_epochs=1.2",  # 3 steps
        "checkpoint.every_steps=3",
    ]
    printed = error_of_ranks(DataError, 1, overrides)
    assert f"error: The image {bad} cannot be used: " in printed
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]
    bad.write_bytes(good)
    assert train_in_ranks(1, overrides) == [DataError.exit_code], "another image than before"
    assert train_in_ranks(1, [*overrides, "data.accept_changed=true"]) == [0]
    assert steps(tmp_path / "run", "validation") == [3, 6]


def test_a_validation_image_in_quarantine_is_refused_before_the_first_step(
    own_dataset, tiny_overrides
):
    save_quarantine(own_dataset, [BadFile("val/red/1.jpg", "it is cut off")])
    open_dataset(own_dataset, write=True)
    message = refusal([*tiny_overrides, f"data.root={own_dataset}"], DataError)
    assert "and here every one counts:\n  val/red/1.jpg\n" in message
    assert "run `vggdist check` again" in message


@pytest.mark.multi_process
@pytest.mark.slow
def test_training_begins_from_a_trained_network_and_logs_what_was_copied(tiny_overrides, tmp_path):
    shallow, deep = tmp_path / "shallow", tmp_path / "deep"
    deeper = [
        *tiny_overrides,
        "model.configuration=[[3-8],[3-16,3-16]]",
        f"model.initialize_from={shallow}",
        f"run.folder={deep}",
        "schedule.num_steps=1",
        "precision=auto",
    ]
    # One after the other: DeepSpeed allows a process one training.
    assert train_in_ranks(1, [*tiny_overrides, f"run.folder={shallow}"]) == [0]
    assert train_in_ranks(1, deeper) == [0]
    log = (deep / "log.txt").read_text()
    assert "conv1_1 <- conv1_1, conv2_1 <- conv2_1, fc6 <- fc6" in log
    assert "random: conv2_2" in log
    chosen = load_config(deep / "config.yaml").precision
    assert chosen in ("fp32", "bf16")
    assert f"precision {chosen}: " in log


@pytest.mark.multi_process
@pytest.mark.slow
def test_shards_on_a_local_disk_train_bit_for_bit_as_class_folders_do(
    tiny_dataset, tiny_overrides, tmp_path, capfd
):
    shards = tmp_path / "shards"
    prepare(FolderSource(tiny_dataset), shards, Packing("shards", shard_megabytes=0.01))
    ways = {
        "folders": [f"data.root={tiny_dataset}"],
        "staged": [f"data.root={shards}", f"data.local_folder={tmp_path / 'local'}"],
    }
    results = {}
    for name, overrides in ways.items():
        run_in = f"run.folder={tmp_path / name}"
        assert train_in_ranks(2, [*tiny_overrides, *overrides, run_in]) == [0, 0]
        weights = tmp_path / name / "checkpoints" / "step-00000006" / "weights.safetensors"
        results[name] = weights.read_bytes()
    assert results["folders"] == results["staged"]
    assert list((tmp_path / "local").rglob("*.tar"))
    assert " shards" in capfd.readouterr().err


@pytest.mark.multi_process
@pytest.mark.slow
def test_a_node_that_cannot_stage_ends_all_ranks_with_its_reason(
    tiny_dataset, tiny_overrides, tmp_path, error_of_ranks
):
    prepare(FolderSource(tiny_dataset), tmp_path / "shards", Packing("shards"))
    (tmp_path / "file").write_bytes(b"")
    overrides = [f"data.root={tmp_path / 'shards'}", f"data.local_folder={tmp_path / 'file'}"]
    printed = error_of_ranks(DataError, 2, [*tiny_overrides, *overrides])
    assert "cannot be written on this node" in printed


@pytest.mark.multi_process
@pytest.mark.slow
def test_results_that_cannot_be_written_are_a_sentence_and_the_same_command_writes_them(
    tiny_overrides, tmp_path, error_of_ranks
):
    blocked = tmp_path / "run" / "predictions.png"
    blocked.mkdir(parents=True)
    overrides = [*tiny_overrides, "schedule.num_steps=1"]
    message = "error: the training is finished and its checkpoint is kept, but the results in"
    assert message in error_of_ranks(CheckpointError, 1, overrides)
    blocked.rmdir()
    assert train_in_ranks(1, overrides) == [0]
    assert blocked.is_file()


def imported_by_a_training(process: Process, overrides: list[str]) -> set[str]:
    leave_world()
    assert run(load_config(None, overrides)) == 0
    return {name for name in sys.modules if name in ("torch._dynamo", "torch._inductor", "sympy")}


@pytest.mark.multi_process
@pytest.mark.slow
def test_a_training_does_not_wait_for_torchs_compiler_that_it_does_not_use(tiny_overrides):
    assert run_in_ranks(imported_by_a_training, 1, tiny_overrides) == [set()]
