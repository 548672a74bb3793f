"""The oracle is a loop over the files: Pillow rescales and crops, torch applies the layers."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tests.ranks import free_port
from tests.reference import Reference, rescaled
from vggdist.artifacts.contents import UNKNOWN
from vggdist.artifacts.posteriors import Posteriors, load_posteriors, save_posteriors
from vggdist.artifacts.weights import Description, load_weights, save_weights
from vggdist.config import ModelConfig
from vggdist.data.dataset import open_dataset
from vggdist.errors import ConfigError, DataError, VggdistError, WeightsError
from vggdist.evaluate import Request, evaluate
from vggdist.evaluation_report import summarize
from vggdist.model.initialization import build_initialized
from vggdist.predict import predict
from vggdist.reports.report import make_report

ROOT = Path(__file__).resolve().parent.parent
CROP, NUM_IMAGES = 32, 23
CLASSES = ("blue", "green", "red")
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 55.0, 50.0)
MODEL = ModelConfig(
    configuration=(("3-8",), ("3-12", "3-12"), ("3-16",)), num_classes=3, fc_width=24
)
SMOOTH = 0.02
"""Difference of posteriors that one grey level in some pixels may make in these networks."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 validation images, a prime number, of smooth colours and few common shapes."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    shapes = [(40, 52), (52, 40), (33, 33), (90, 41)]
    for number in range(NUM_IMAGES):
        shape = shapes[number % 5] if number % 5 < 4 else tuple(generator.integers(34, 80, 2))
        label = number % 3
        for split in ("train", "val") if number < 3 else ("val",):
            folder = root / split / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            small = generator.integers(0, 200, (4, 5, 3), dtype=np.uint8)
            small[..., 2 - label] += 55
            picture = Image.fromarray(small).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
            picture.save(folder / f"{number:02d}.png")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = build_initialized(MODEL, CROP, seed=3)
    with torch.no_grad():  # so that classes differ by more than rounding
        network.fc8.linear.weight.mul_(8)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(
        path, network.state_dict(), Description(MODEL, CROP, MEAN, STD, (32, 48), CLASSES, "a test")
    )
    return path


def request(weights: Path, dataset: Path, out: Path, **changes: object) -> Request:
    values: dict[str, object] = {
        "network": str(weights),
        "root": str(dataset),
        "out": out,
        "overrides": ("precision=fp32", "device=cpu", "data.num_threads=2"),
    }
    return Request(**(values | changes))  # type: ignore[arg-type]


def posteriors_of(made: Request) -> list[Posteriors]:
    evaluated = evaluate(made)
    assert evaluated is not None
    return [load_posteriors(path) for path in evaluated.files]


def files(dataset: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted((dataset / "val").rglob("*.png")):
        yield f"{path.parent.name}/{path.name}", path


@pytest.mark.parametrize("average", ["logits", "posteriors"])
@pytest.mark.parametrize("flip", [True, False])
def test_dense_posteriors_are_those_of_a_loop_over_windows_of_pillow_s_images(
    weights: Path, dataset: Path, tmp_path: Path, flip: bool, average: str
) -> None:
    overrides = ("precision=fp32", f"evaluation.spatial_average={average}")
    made = request(weights, dataset, tmp_path, scales=(32, 48), flip=flip, overrides=overrides)
    reference = Reference(weights)
    for posteriors, scale in zip(posteriors_of(made), (32, 48), strict=True):
        assert posteriors.source.scale == scale
        assert posteriors.names == tuple(name for name, _ in files(dataset))
        for found, (_, path) in zip(posteriors.values, files(dataset), strict=True):
            image = rescaled(path, scale)
            expected = reference.dense(image, average)
            if flip:
                expected = (expected + reference.dense(ImageOps.mirror(image), average)) / 2
            assert np.abs(found - expected).max() < SMOOTH


@pytest.mark.slow
@pytest.mark.parametrize("flip", [True, False])
def test_multi_crop_posteriors_are_those_of_a_loop_over_pillow_s_crops(
    weights: Path, dataset: Path, tmp_path: Path, flip: bool
) -> None:
    made = request(weights, dataset, tmp_path, protocols=("multi-crop",), scales=(40,), flip=flip)
    (posteriors,) = posteriors_of(made)
    reference = Reference(weights)
    for found, (_, path) in zip(posteriors.values, files(dataset), strict=True):
        expected = reference.multi_crop(rescaled(path, 40), flip)
        assert np.abs(found - expected).max() < SMOOTH


def test_centre_crop_posteriors_are_those_of_pillow_s_window(
    weights: Path, dataset: Path, tmp_path: Path
) -> None:
    made = request(weights, dataset, tmp_path, protocols=("center-crop",), scales=(40,))
    (posteriors,) = posteriors_of(made)
    assert not posteriors.source.flip
    reference = Reference(weights)
    for found, (_, path) in zip(posteriors.values, files(dataset), strict=True):
        expected = reference.center_crop(path, 40)
        assert np.abs(found - expected).max() < SMOOTH


def test_the_summary_counts_errors_of_each_file_and_of_their_mean(
    weights: Path, dataset: Path, tmp_path: Path
) -> None:
    made = request(weights, dataset, tmp_path, protocols=("dense", "multi-crop"), scales=(32, 48))
    evaluated = evaluate(made)
    assert evaluated is not None
    summary = summarize(evaluated)
    stored = [load_posteriors(path) for path in evaluated.files]
    labels = np.array([CLASSES.index(name.split("/")[0]) for name, _ in files(dataset)])
    assert (stored[0].labels == labels).all()
    wrong = [(one.values.argmax(1) != labels).mean() for one in stored]
    assert [row["top1_error"] for row in summary["files"]] == pytest.approx(wrong)
    mean = np.mean([one.values for one in stored], axis=0)
    assert summary["top1_error"] == pytest.approx((mean.argmax(1) != labels).mean())
    assert summary["top5_error"] == 0
    assert summary["num_images"] == NUM_IMAGES
    assert list(summary["protocols"]) == ["dense", "multi-crop"]
    assert summary["num_computed"] == 4 * NUM_IMAGES


def test_files_that_are_there_are_not_computed_again_unless_something_else_is_wanted(
    weights: Path, dataset: Path, tmp_path: Path
) -> None:
    made = request(weights, dataset, tmp_path, scales=(32,))
    first = evaluate(made)
    assert first is not None
    before = first.files[0].stat().st_mtime_ns
    more = evaluate(request(weights, dataset, tmp_path, scales=(32, 40)))
    assert more is not None
    assert more.num_computed == NUM_IMAGES
    assert more.files[0] == first.files[0]
    assert first.files[0].stat().st_mtime_ns == before
    first.files[0].write_bytes(first.files[0].read_bytes()[:-100])
    unflipped = evaluate(request(weights, dataset, tmp_path, scales=(32,), flip=False))
    assert unflipped is not None
    assert unflipped.files[0] not in more.files
    again = evaluate(made)
    assert again is not None
    assert again.num_computed == NUM_IMAGES, "a cut-off file counts as missing"
    load_posteriors(again.files[0])


def test_float16_does_not_stand_in_for_float32_but_float32_for_float16(
    weights: Path, dataset: Path, tmp_path: Path
) -> None:
    for storage, num_computed, dtype in (
        ("float16", NUM_IMAGES, np.float16),
        ("float32", NUM_IMAGES, np.float32),
        ("float16", 0, np.float32),
    ):
        found = evaluate(request(weights, dataset, tmp_path, scales=(32,), storage=storage))
        assert found is not None
        assert found.num_computed == num_computed
        assert load_posteriors(found.files[0]).values.dtype == dtype


def command(words: list[str], launcher: tuple[str, ...] = ("-m", "vggdist.cli")) -> None:
    done = subprocess.run(
        [sys.executable, *launcher, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.multi_process
@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_evaluate_each_image_once_and_find_what_one_rank_finds(
    weights: Path, dataset: Path, tmp_path: Path, num_ranks: int
) -> None:
    protocols = ("center-crop", "dense", "multi-crop")
    alone = posteriors_of(
        request(weights, dataset, tmp_path / "one", protocols=protocols, scales=(40,))
    )
    words = ["evaluate", str(weights), "--data", str(dataset), "--protocol", "+".join(protocols)]
    words += ["--scales", "40", "--ranks", str(num_ranks), "--out", str(tmp_path / "all")]
    command([*words, "--json", str(tmp_path / "found.json"), "precision=fp32", "device=cpu"])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["num_images"] == NUM_IMAGES
    for one, row in zip(alone, found["files"], strict=True):
        together = load_posteriors(Path(row["file"]))
        assert together.source == one.source
        assert together.names == one.names
        assert np.abs(together.values - one.values).max() < 1e-5


@pytest.mark.multi_process
@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        ("-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", "0"),
        (),
    ],
    ids=["torchrun", "deepspeed", "python"],
)
def test_launchers_start_an_evaluation(
    weights: Path, dataset: Path, tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    if "--master_port" in launcher:
        launcher = (*launcher[:-1], str(free_port()))
    words = [str(weights), "--data", str(dataset), "--scales", "32", "--out", str(tmp_path)]
    words += ["device=cpu", "--json", str(tmp_path / "found.json"), "precision=fp32"]
    command(words, (*launcher, "launch/evaluate.py"))
    found = json.loads((tmp_path / "found.json").read_text())
    (alone,) = posteriors_of(request(weights, dataset, tmp_path / "alone", scales=(32,)))
    together = load_posteriors(Path(found["files"][0]["file"]))
    assert np.abs(together.values - alone.values).max() < 1e-5


@pytest.mark.multi_process
@pytest.mark.slow
def test_a_bad_image_ends_all_ranks_with_one_sentence(
    weights: Path, dataset: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(dataset, broken)
    (broken / "val" / "red" / "05.png").write_bytes(b"no image")
    words = ["evaluate", str(weights), "--data", str(broken), "--ranks", "2", "device=cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "vggdist.cli", *words, "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == DataError.exit_code
    assert "Traceback" not in done.stderr
    assert done.stderr.count("red/05.png cannot be used") == 1
    assert "Replace it with a good copy." in done.stderr
    assert not list((tmp_path / "out").glob("*.npz"))


def refusal(made: Request, kind: type[VggdistError]) -> str:
    with pytest.raises(kind) as caught:
        evaluate(made)
    return str(caught.value)


def test_what_cannot_be_evaluated_is_refused_in_a_sentence(
    weights: Path, dataset: Path, tmp_path: Path
) -> None:
    small = refusal(request(weights, dataset, tmp_path, scales=(31, 32, 16)), ConfigError)
    assert small == (
        "--scales: at a shorter side of 31, 16 pixels images are smaller than the network's input "
        "of 32 x 32; use scales of 32 or more."
    )
    overrides = ("model.configuration=[[3-8],[3-12],[3-16]]", "device=cpu")
    other = refusal(request(weights, dataset, tmp_path, overrides=overrides), WeightsError)
    assert "These layers differ:\n  - conv2_2: the network has no such layer, the file " in other
    missing = refusal(request(tmp_path / "none.safetensors", dataset, tmp_path), VggdistError)
    assert "none.safetensors does not exist; give a run folder" in missing
    (tmp_path / "file").touch()
    full = refusal(request(weights, dataset, tmp_path / "file" / "out"), WeightsError)
    assert full.startswith(f"posteriors files cannot be written to {tmp_path / 'file' / 'out'}: ")
    assert full.endswith("Choose another folder with --out.")
    data = refusal(request(weights, dataset / "val", tmp_path), DataError)
    assert "has no folder train/" in data


def test_a_disk_that_is_too_full_is_noticed_before(
    weights: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_bytes = 2 * NUM_IMAGES * len(CLASSES) * 4
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=num_bytes - 1))
    full = refusal(request(weights, dataset, tmp_path, scales=(32, 40)), WeightsError)
    assert f"written to {tmp_path}: 0.0 MB are free there, and they take 0.0 MB." in full
    assert not list(tmp_path.glob("*.npz"))
    assert evaluate(request(weights, dataset, tmp_path, scales=(32,))) is not None


def test_images_of_other_classes_are_refused(weights: Path, tmp_path: Path) -> None:
    for names, problem in (
        (("blue", "green"), "has 2 classes, and the network tells 3 apart"),
        (
            ("blue", "green", "yellow"),
            "only the images have 'yellow', and only the weights file has 'red'",
        ),
    ):
        root = tmp_path / str(len(names))
        for split in ("train", "val"):
            for name in names:
                (root / split / name).mkdir(parents=True)
                Image.new("RGB", (40, 40)).save(root / split / name / "a.png")
        assert problem in refusal(request(weights, root, tmp_path), DataError)


def test_images_that_came_or_went_since_they_were_listed_are_refused(
    weights: Path, dataset: Path, tmp_path: Path
) -> None:
    root = tmp_path / "images"
    shutil.copytree(dataset, root)
    open_dataset(root, write=True)
    (root / "val" / "red" / "05.png").rename(root / "val" / "red" / "new.png")
    (root / "train" / "red" / "02.png").unlink()  # those of the other split do not matter
    changed = refusal(request(weights, root, tmp_path), DataError)
    assert f"In {root / 'val' / 'red'}, '05.png' is gone." in changed
    assert f"In {root / 'val' / 'red'}, 'new.png' is new." in changed
    assert "train" not in changed


def test_validation_images_need_no_training_images_beside_them(
    weights: Path, dataset: Path, tmp_path: Path
) -> None:
    root = tmp_path / "images"
    shutil.copytree(dataset / "val", root / "val")
    (root / "LICENSE.txt").touch()
    (found,) = posteriors_of(request(weights, root, tmp_path / "out", scales=(32,)))
    assert len(found.labels) == NUM_IMAGES


def test_without_scales_q_is_the_middle_of_the_training_scales(
    weights: Path, dataset: Path, tmp_path: Path
) -> None:
    (posteriors,) = posteriors_of(request(weights, dataset, tmp_path))
    assert posteriors.source.scale == (32 + 48) // 2
    assert posteriors.source.train_scale == (32, 48)


def test_a_cut_off_image_is_named_before_anything_is_computed(
    weights: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(dataset, tmp_path / "images")
    cut = root / "val" / "red" / "20.png"
    cut.write_bytes(cut.read_bytes()[:-12])
    monkeypatch.setattr("vggdist.evaluate.PosteriorsOfRank", pytest.fail)
    message = refusal(request(weights, root, tmp_path / "out"), DataError)
    assert f"The image {cut} cannot be used: DALI cannot decode it (PNG, RGB)" in message


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1)])
def test_an_image_of_extreme_shape_is_cropped_or_refused_by_name(
    weights: Path, dataset: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    root = shutil.copytree(dataset, tmp_path / "images")
    long = root / "val" / "red" / "long.png"
    Image.new("RGB", size, "red").save(long)
    (centre,) = posteriors_of(request(weights, root, tmp_path, protocols=("center-crop",)))
    assert len(centre.values) == NUM_IMAGES + 1
    for protocol in ("dense", "multi-crop"):
        message = refusal(request(weights, root, tmp_path, protocols=(protocol,)), DataError)
        assert message.startswith(f"The image {long} is {size[0]} x {size[1]} pixels. Whole, with ")
        assert message.endswith("Crop it, or evaluate centre crops.")


@pytest.mark.parametrize("protocol", ["center-crop", "dense", "multi-crop"])
def test_a_network_that_has_exploded_is_refused_and_no_file_is_made_of_it(
    dataset: Path, tmp_path: Path, protocol: str
) -> None:
    network = build_initialized(MODEL, CROP, seed=3)
    with torch.no_grad():
        network.fc7.linear.weight.mul_(1e20)
        network.fc8.linear.weight.mul_(1e30)
    path = tmp_path / "exploded.safetensors"
    save_weights(path, network.state_dict(), Description(MODEL, CROP, MEAN, STD, (32, 48), CLASSES))
    made = request(path, dataset, tmp_path / "out", protocols=(protocol,))
    with pytest.raises(WeightsError, match="posteriors are infinite or not numbers for 23 of 23"):
        evaluate(made)
    assert list((tmp_path / "out").iterdir()) == []


def copy_of(dataset: Path, tmp_path: Path) -> Path:
    root = tmp_path / "copy"
    shutil.copytree(dataset, root, ignore=shutil.ignore_patterns("vggdist-*"))
    return root


@pytest.mark.parametrize("has_manifest", [True, False])
def test_images_that_were_replaced_under_their_names_are_evaluated_again(
    weights: Path,
    dataset: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    has_manifest: bool,
) -> None:
    root = copy_of(dataset, tmp_path)
    if has_manifest:
        open_dataset(root, write=True)
    made = request(weights, root, tmp_path / "out", scales=(32,))
    (before,) = posteriors_of(made)
    reds, blues = (sorted((root / "val" / name).iterdir()) for name in ("red", "blue"))
    for red, blue in zip(reds, blues, strict=False):
        content = red.read_bytes()
        red.write_bytes(blue.read_bytes())
        blue.write_bytes(content)
    with caplog.at_level("INFO"):
        evaluated = evaluate(made)
    assert evaluated is not None
    assert evaluated.num_computed == NUM_IMAGES
    assert "is computed again: it is of other images under the same names" in caplog.text
    after = load_posteriors(evaluated.files[0])
    was, now = (dict(zip(one.names, one.values, strict=True)) for one in (before, after))
    for red, blue in zip(reds, blues, strict=False):
        np.testing.assert_allclose(now[f"red/{red.name}"], was[f"blue/{blue.name}"], atol=1e-5)
        np.testing.assert_allclose(now[f"blue/{blue.name}"], was[f"red/{red.name}"], atol=1e-5)


def test_images_that_were_only_touched_or_checked_are_not_evaluated_again(
    weights: Path, dataset: Path, tmp_path: Path
) -> None:
    root = copy_of(dataset, tmp_path)
    made = request(weights, root, tmp_path / "out", scales=(32,))
    evaluate(made)
    (root / "val" / "red" / "05.png").touch()
    for _ in range(2):
        evaluated = evaluate(made)
        assert evaluated is not None
        assert evaluated.num_computed == 0
        open_dataset(root, write=True)


def test_a_posteriors_file_that_does_not_say_what_was_in_the_images_is_computed_again(
    weights: Path, dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = request(weights, dataset, tmp_path, scales=(32,))
    (posteriors,) = posteriors_of(made)
    (path,) = tmp_path.glob("*.npz")
    of_before = replace(posteriors, source=replace(posteriors.source, contents=UNKNOWN))
    save_posteriors(path, of_before)
    assert any("did not note what was in the images" in note for note in make_report([path]).notes)
    with caplog.at_level("INFO"):
        evaluated = evaluate(made)
    assert evaluated is not None
    assert evaluated.num_computed == NUM_IMAGES
    assert "whether the images are what they were then cannot be told" in caplog.text
    assert not any("did not note" in note for note in make_report([path]).notes)


def test_images_in_linked_folders_are_evaluated_and_what_is_not_is_said(
    weights: Path, dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = copy_of(dataset, tmp_path)
    (root / "val" / "red").rename(tmp_path / "elsewhere")
    (root / "val" / "red").mkdir()
    (root / "val" / "red" / "linked").symlink_to(tmp_path / "elsewhere")
    shutil.copy(tmp_path / "elsewhere" / "02.png", root / "val" / "loose.png")
    with caplog.at_level("INFO"):
        (found,) = posteriors_of(request(weights, root, tmp_path / "out", scales=(32,)))
    assert len(found.labels) == NUM_IMAGES
    assert f"not read in {root / 'val'}: beside the class folders: .png 1" in caplog.text


def numbered(tmp_path: Path, classes: tuple[str, ...]) -> tuple[Path, Path]:
    """A network of twelve classes and as many folders, 0 to 11, of one image each."""
    model = ModelConfig(configuration=(("3-8",), ("3-12",)), num_classes=12, fc_width=24)
    network = build_initialized(model, CROP, seed=3)
    weights, root = tmp_path / "numbers.safetensors", tmp_path / "numbers"
    description = Description(model, CROP, MEAN, STD, (32, 32), classes)
    save_weights(weights, network.state_dict(), description)
    generator = np.random.default_rng(1)
    for number in range(12):
        folder = root / "val" / str(number)
        folder.mkdir(parents=True)
        pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "0.png")
    return weights, root


@pytest.mark.parametrize("classes", [(), tuple(sorted(map(str, range(12))))])
def test_folders_that_are_numbers_mean_what_they_mean_to_predict(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, classes: tuple[str, ...]
) -> None:
    weights, root = numbered(tmp_path, classes)
    made = request(weights, root, tmp_path / "out", scales=(32,), protocols=("center-crop",))
    with caplog.at_level("INFO"):
        (found,) = posteriors_of(made)
    files = [root / "val" / name for name in found.names]
    said = [one.choices[0].name for one in predict(load_weights(weights), files, device="cpu")]
    truth = [name.split("/")[0] for name in found.names]
    assert [found.classes[label] for label in found.labels] == truth
    assert [found.classes[label] for label in found.values.argmax(1)] == said
    error = make_report(evaluate(made).files).fused.top1_error  # type: ignore[union-attr]
    assert error == np.mean([one != other for one, other in zip(said, truth, strict=True)])
    has_line = "has no class names; labels, in the order of the class folders: 0 '0', 1 '1', 2 '2'"
    assert (has_line in caplog.text) == (not classes)


def test_a_class_that_looks_the_same_is_said_to_be_equal_after_normalization(
    tmp_path: Path,
) -> None:
    classes = (*map(str, range(11)), "caf\u00e9")
    weights, root = numbered(tmp_path, classes)
    (root / "val" / "11").rename(root / "val" / "cafe\u0301")
    message = refusal(request(weights, root, tmp_path / "out"), DataError)
    assert r"only the images have 'cafe\u0301', and only the weights file has 'café'" in message
    assert "are equal after Unicode normalization" in message
