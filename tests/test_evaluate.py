"""The oracle is a loop over the files: Pillow rescales and crops, torch applies the layers."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from sklearn.metrics import confusion_matrix

from tests.ranks import free_port
from tests.reference import Reference, rescaled
from vggdist.artifacts.contents import UNKNOWN
from vggdist.artifacts.posteriors import Posteriors, load_posteriors, save_posteriors
from vggdist.artifacts.weights import Description, load_weights, save_weights
from vggdist.config import ModelConfig
from vggdist.data.dataset import open_dataset
from vggdist.errors import ConfigError, DataError, VggdistError, WeightsError
from vggdist.evaluate import Evaluated, Request, evaluate
from vggdist.evaluation.report import render_evaluated, summarize
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
    # So that classes differ by more than rounding.
    return tiny_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors", fc8=8)


def tiny_weights(path: Path, **factors: float) -> Path:
    """A network of random weights, those of some layers multiplied."""
    network = build_initialized(MODEL, CROP, seed=3)
    with torch.no_grad():
        for layer, factor in factors.items():
            getattr(network, layer).linear.weight.mul_(factor)
    description = Description(MODEL, CROP, MEAN, STD, (32, 48), CLASSES, "a test")
    save_weights(path, network.state_dict(), description)
    return path


@pytest.fixture
def images(dataset: Path, tmp_path: Path) -> Path:
    """A copy of the data set, to be changed."""
    return shutil.copytree(dataset, tmp_path / "images", ignore=shutil.ignore_patterns("vggdist-*"))


Run = Callable[..., Evaluated]


@pytest.fixture
def run(weights: Path, dataset: Path, tmp_path: Path) -> Run:
    """Evaluates the network on the data set into `out`, but for what is given."""
    overrides = ("precision=fp32", "device=cpu", "data.num_threads=2")
    usual = Request(str(weights), str(dataset), out=tmp_path / "out", overrides=overrides)

    def run_with(**changes: object) -> Evaluated:
        evaluated = evaluate(replace(usual, **changes))  # type: ignore[arg-type]
        assert evaluated is not None
        return evaluated

    return run_with


def stored(evaluated: Evaluated) -> list[Posteriors]:
    return [load_posteriors(path) for path in evaluated.files]


def files(dataset: Path) -> list[Path]:
    return sorted((dataset / "val").rglob("*.png"))


def assert_near(
    posteriors: Posteriors, dataset: Path, expected: Callable[[Path], NDArray[np.float32]]
) -> None:
    """Every image's are those expected of its file."""
    for found, path in zip(posteriors.values, files(dataset), strict=True):
        assert np.abs(found - expected(path)).max() < SMOOTH


@pytest.mark.parametrize("average", ["logits", "posteriors"])
@pytest.mark.parametrize("flip", [True, False])
def test_dense_posteriors_are_those_of_a_loop_over_windows_of_pillow_s_images(
    run: Run, weights: Path, dataset: Path, flip: bool, average: str
) -> None:
    overrides = ("precision=fp32", f"evaluation.spatial_average={average}")
    reference = Reference(weights)

    def expected(path: Path) -> NDArray[np.float32]:
        image = rescaled(path, scale)
        views = [image, ImageOps.mirror(image)] if flip else [image]
        return np.mean([reference.dense(view, average) for view in views], axis=0)

    evaluated = run(scales=(32, 48), flip=flip, overrides=overrides)
    for posteriors, scale in zip(stored(evaluated), (32, 48), strict=True):
        assert posteriors.source.scale == scale
        names = tuple(f"{path.parent.name}/{path.name}" for path in files(dataset))
        assert posteriors.names == names
        assert_near(posteriors, dataset, expected)


@pytest.mark.slow
@pytest.mark.parametrize("flip", [True, False])
def test_multi_crop_posteriors_are_those_of_a_loop_over_pillow_s_crops(
    run: Run, weights: Path, dataset: Path, flip: bool
) -> None:
    (posteriors,) = stored(run(protocols=("multi-crop",), scales=(40,), flip=flip))
    reference = Reference(weights)
    assert_near(posteriors, dataset, lambda path: reference.multi_crop(rescaled(path, 40), flip))


def test_centre_crop_posteriors_are_those_of_pillow_s_window(
    run: Run, weights: Path, dataset: Path
) -> None:
    (posteriors,) = stored(run(protocols=("center-crop",), scales=(40,)))
    assert not posteriors.source.flip
    reference = Reference(weights)
    assert_near(posteriors, dataset, lambda path: reference.center_crop(path, 40))


def test_the_summary_counts_errors_of_each_file_and_of_their_mean(run: Run, dataset: Path) -> None:
    evaluated = run(protocols=("dense", "multi-crop"), scales=(32, 48))
    summary = summarize(evaluated)
    found = stored(evaluated)
    labels = np.array([CLASSES.index(path.parent.name) for path in files(dataset)])
    assert (found[0].labels == labels).all()
    wrong = [(posteriors.values.argmax(1) != labels).mean() for posteriors in found]
    assert [row["top1_error"] for row in summary["files"]] == pytest.approx(wrong)
    mean = np.mean([posteriors.values for posteriors in found], axis=0)
    assert summary["top1_error"] == pytest.approx((mean.argmax(1) != labels).mean())
    assert summary["top5_error"] == 0
    assert summary["num_images"] == NUM_IMAGES
    assert list(summary["protocols"]) == ["dense", "multi-crop"]
    assert summary["num_computed"] == 4 * NUM_IMAGES
    counts = confusion_matrix(labels, mean.argmax(1))
    own = counts.diagonal() / counts.sum(1)
    assert [row["top1_error"] for row in summary["classes"]] == pytest.approx(1 - own)
    assert {row["name"]: row["num_images"] for row in summary["classes"]} == dict(
        zip(CLASSES, counts.sum(1).tolist(), strict=True)
    )
    for pair in summary["confused"]:
        place = CLASSES.index(pair["truth"]), CLASSES.index(pair["prediction"])
        assert counts[place] == pair["num_images"]
    text = render_evaluated(summary)
    assert "top-5" not in text, "of three classes it is always 0"
    assert "largest errors: " in text
    assert "most often taken for another: " in text


def test_files_that_are_there_are_not_computed_again_unless_something_else_is_wanted(
    run: Run,
) -> None:
    (first,) = run(scales=(32,)).files
    before = first.stat().st_mtime_ns
    more = run(scales=(32, 40))
    assert more.num_computed == NUM_IMAGES
    assert more.files[0] == first
    assert first.stat().st_mtime_ns == before
    first.write_bytes(first.read_bytes()[:-100])
    assert run(scales=(32,), flip=False).files[0] not in more.files
    again = run(scales=(32,))
    assert again.num_computed == NUM_IMAGES, "a cut-off file counts as missing"
    load_posteriors(again.files[0])


def test_float16_does_not_stand_in_for_float32_but_float32_for_float16(run: Run) -> None:
    for storage, num_computed, dtype in (
        ("float16", NUM_IMAGES, np.float16),
        ("float32", NUM_IMAGES, np.float32),
        ("float16", 0, np.float32),
    ):
        evaluated = run(scales=(32,), storage=storage)
        assert evaluated.num_computed == num_computed
        assert stored(evaluated)[0].values.dtype == dtype


def command(
    words: list[str], launcher: tuple[str, ...] = ("-m", "vggdist.cli"), code: int = 0
) -> str:
    """What a command that ends with `code` says on stderr."""
    done = subprocess.run(
        [sys.executable, *launcher, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stderr


@pytest.mark.multi_process
@pytest.mark.slow
def test_three_ranks_evaluate_each_image_once_and_find_what_one_rank_finds(
    run: Run, weights: Path, dataset: Path, tmp_path: Path
) -> None:
    protocols = ("center-crop", "dense", "multi-crop")
    words = ["evaluate", str(weights), "--data", str(dataset), "--protocol", "+".join(protocols)]
    words += ["--scales", "40", "--ranks", "3", "--out", str(tmp_path / "all")]
    command([*words, "--json", str(tmp_path / "found.json"), "precision=fp32", "device=cpu"])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["num_images"] == NUM_IMAGES
    evaluated = run(protocols=protocols, scales=(40,))
    for alone, row in zip(stored(evaluated), found["files"], strict=True):
        together = load_posteriors(Path(row["file"]))
        assert together.source == alone.source
        assert together.names == alone.names
        assert np.abs(together.values - alone.values).max() < 1e-5


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
    run: Run, weights: Path, dataset: Path, tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    if "--master_port" in launcher:
        launcher = (*launcher[:-1], str(free_port()))
    words = [str(weights), "--data", str(dataset), "--scales", "32", "--out", str(tmp_path)]
    words += ["device=cpu", "--json", str(tmp_path / "found.json"), "precision=fp32"]
    command(words, (*launcher, "launch/evaluate.py"))
    found = json.loads((tmp_path / "found.json").read_text())
    (alone,) = stored(run(scales=(32,)))
    together = load_posteriors(Path(found["files"][0]["file"]))
    assert np.abs(together.values - alone.values).max() < 1e-5


@pytest.mark.multi_process
@pytest.mark.slow
def test_a_bad_image_ends_all_ranks_with_one_sentence(
    weights: Path, images: Path, tmp_path: Path
) -> None:
    (images / "val" / "red" / "05.png").write_bytes(b"no image")
    words = ["evaluate", str(weights), "--data", str(images), "--ranks", "2", "device=cpu"]
    said = command([*words, "--out", str(tmp_path / "out")], code=DataError.exit_code)
    assert "Traceback" not in said
    assert said.count("red/05.png cannot be used") == 1
    assert "Replace it with a good copy, or delete it" in said
    assert not list((tmp_path / "out").glob("*.npz"))


def refusal(run: Run, kind: type[VggdistError], **changes: object) -> str:
    with pytest.raises(kind) as caught:
        run(**changes)
    return str(caught.value)


def test_what_cannot_be_evaluated_is_refused_in_a_sentence(
    run: Run, dataset: Path, tmp_path: Path
) -> None:
    assert refusal(run, ConfigError, scales=(31, 32, 16)) == (
        "--scales: at a shorter side of 31, 16 pixels images are smaller than the network's input "
        "of 32 x 32; use scales of 32 or more."
    )
    overrides = ("model.configuration=[[3-8],[3-12],[3-16]]", "device=cpu")
    other = refusal(run, WeightsError, overrides=overrides)
    assert "These layers differ:\n  - conv2_2: the network has no such layer, the file " in other
    missing = refusal(run, VggdistError, network=str(tmp_path / "none.safetensors"))
    assert "none.safetensors does not exist; give a run folder" in missing
    (tmp_path / "file").touch()
    full = refusal(run, WeightsError, out=tmp_path / "file" / "out")
    assert full.startswith(f"posteriors files cannot be written to {tmp_path / 'file' / 'out'}: ")
    assert full.endswith("Choose another folder with --out.")
    assert "has no folder train/" in refusal(run, DataError, root=str(dataset / "val"))


def test_a_disk_that_is_too_full_is_noticed_before(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_bytes = 2 * NUM_IMAGES * len(CLASSES) * 4
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=num_bytes - 1))
    full = refusal(run, WeightsError, scales=(32, 40))
    assert f"written to {tmp_path / 'out'}: 0.0 MB are free there, and they take 0.0 MB." in full
    assert not list(tmp_path.rglob("*.npz"))
    run(scales=(32,))


@pytest.mark.parametrize(
    ("classes", "problem"),
    [
        (("blue", "green"), "has 2 classes, and the network tells 3 apart"),
        (
            ("blue", "green", "yellow"),
            "only the images have 'yellow', and only the weights file has 'red'",
        ),
    ],
)
def test_images_of_other_classes_are_refused(
    run: Run, tmp_path: Path, make_image: Callable[..., Path], classes: list[str], problem: str
) -> None:
    for split in ("train", "val"):
        for name in classes:
            make_image(tmp_path / "set" / split / name / "a.png", 40, 40)
    assert problem in refusal(run, DataError, root=str(tmp_path / "set"))


def test_images_that_came_or_went_since_they_were_listed_are_refused(
    run: Run, images: Path
) -> None:
    open_dataset(images, write=True)
    (images / "val" / "red" / "05.png").rename(images / "val" / "red" / "new.png")
    (images / "train" / "red" / "02.png").unlink()  # those of the other split do not matter
    changed = refusal(run, DataError, root=str(images))
    assert f"In {images / 'val' / 'red'}, '05.png' is gone." in changed
    assert f"In {images / 'val' / 'red'}, 'new.png' is new." in changed
    assert "train" not in changed


def test_validation_images_need_no_training_images_beside_them(run: Run, images: Path) -> None:
    shutil.rmtree(images / "train")
    (images / "LICENSE.txt").touch()
    (found,) = stored(run(root=str(images), scales=(32,)))
    assert len(found.labels) == NUM_IMAGES


def test_without_scales_q_is_the_middle_of_the_training_scales(run: Run) -> None:
    (posteriors,) = stored(run())
    assert posteriors.source.scale == (32 + 48) // 2
    assert posteriors.source.train_scale == (32, 48)


def test_a_cut_off_image_is_named_before_anything_is_computed(
    run: Run, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = images / "val" / "red" / "20.png"
    cut.write_bytes(cut.read_bytes()[:-12])
    monkeypatch.setattr("vggdist.evaluate.PosteriorsOfRank", pytest.fail)
    message = refusal(run, DataError, root=str(images))
    assert f"The image {cut} cannot be used: DALI does not decode this PNG (RGB)" in message


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1)])
def test_an_image_of_extreme_shape_is_cropped_or_refused_by_name(
    run: Run, images: Path, size: tuple[int, int]
) -> None:
    long = images / "val" / "red" / "long.png"
    Image.new("RGB", size, "red").save(long)
    (centre,) = stored(run(root=str(images), protocols=("center-crop",)))
    assert len(centre.values) == NUM_IMAGES + 1
    for protocol in ("dense", "multi-crop"):
        message = refusal(run, DataError, root=str(images), protocols=(protocol,))
        assert message.startswith(f"The image {long} is {size[0]} x {size[1]} pixels. Whole, with ")
        assert message.endswith("Crop it, or evaluate centre crops.")


@pytest.mark.parametrize("protocol", ["center-crop", "dense", "multi-crop"])
def test_a_network_that_has_exploded_is_refused_and_no_file_is_made_of_it(
    run: Run, tmp_path: Path, protocol: str
) -> None:
    network = tiny_weights(tmp_path / "exploded.safetensors", fc7=1e20, fc8=1e30)
    message = refusal(run, WeightsError, network=str(network), protocols=(protocol,))
    assert "posteriors are infinite or not numbers for 23 of 23" in message
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("has_manifest", [True, False])
def test_images_that_were_replaced_under_their_names_are_evaluated_again(
    run: Run, images: Path, caplog: pytest.LogCaptureFixture, has_manifest: bool
) -> None:
    if has_manifest:
        open_dataset(images, write=True)
    (before,) = stored(run(root=str(images), scales=(32,)))
    reds, blues = (sorted((images / "val" / name).iterdir()) for name in ("red", "blue"))
    for red, blue in zip(reds, blues, strict=False):
        content = red.read_bytes()
        red.write_bytes(blue.read_bytes())
        blue.write_bytes(content)
    with caplog.at_level("INFO"):
        evaluated = run(root=str(images), scales=(32,))
    assert evaluated.num_computed == NUM_IMAGES
    assert "is computed again: it is of other images under the same names" in caplog.text
    (after,) = stored(evaluated)
    was, now = (dict(zip(found.names, found.values, strict=True)) for found in (before, after))
    for red, blue in zip(reds, blues, strict=False):
        np.testing.assert_allclose(now[f"red/{red.name}"], was[f"blue/{blue.name}"], atol=1e-5)
        np.testing.assert_allclose(now[f"blue/{blue.name}"], was[f"red/{red.name}"], atol=1e-5)


def test_images_that_were_only_touched_or_checked_are_not_evaluated_again(
    run: Run, images: Path
) -> None:
    run(root=str(images), scales=(32,))
    (images / "val" / "red" / "05.png").touch()
    for _ in range(2):
        assert run(root=str(images), scales=(32,)).num_computed == 0
        open_dataset(images, write=True)


def test_a_posteriors_file_that_does_not_say_what_was_in_the_images_is_computed_again(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    (path,) = run(scales=(32,)).files
    posteriors = load_posteriors(path)
    of_before = replace(posteriors, source=replace(posteriors.source, contents=UNKNOWN))
    save_posteriors(path, of_before)
    assert any("did not note what was in the images" in note for note in make_report([path]).notes)
    with caplog.at_level("INFO"):
        assert run(scales=(32,)).num_computed == NUM_IMAGES
    assert "whether the images are what they were then cannot be told" in caplog.text
    assert not any("did not note" in note for note in make_report([path]).notes)


def test_images_in_linked_folders_are_evaluated_and_what_is_not_is_said(
    run: Run, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (images / "val" / "red").rename(tmp_path / "elsewhere")
    (images / "val" / "red").mkdir()
    (images / "val" / "red" / "linked").symlink_to(tmp_path / "elsewhere")
    shutil.copy(tmp_path / "elsewhere" / "02.png", images / "val" / "loose.png")
    with caplog.at_level("INFO"):
        (found,) = stored(run(root=str(images), scales=(32,)))
    assert len(found.labels) == NUM_IMAGES
    assert f"not read in {images / 'val'}: beside the class folders: .png 1" in caplog.text


def numbered(tmp_path: Path, classes: tuple[str, ...]) -> dict[str, str]:
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
    return {"network": str(weights), "root": str(root)}


@pytest.mark.parametrize("classes", [(), tuple(sorted(map(str, range(12))))])
def test_folders_that_are_numbers_mean_what_they_mean_to_predict(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, classes: tuple[str, ...]
) -> None:
    made = numbered(tmp_path, classes)
    with caplog.at_level("INFO"):
        evaluated = run(**made, scales=(32,), protocols=("center-crop",))
    (found,) = stored(evaluated)
    images = [Path(made["root"], "val", name) for name in found.names]
    predictions = predict(load_weights(Path(made["network"])), images, device="cpu")
    said = [prediction.choices[0].name for prediction in predictions]
    truth = [name.split("/")[0] for name in found.names]
    assert [found.classes[label] for label in found.labels] == truth
    assert [found.classes[label] for label in found.values.argmax(1)] == said
    error = make_report(evaluated.files).fused.top1_error
    assert error == np.mean(np.array(said) != np.array(truth))
    has_line = "has no class names; labels, in the order of the class folders: 0 '0', 1 '1', 2 '2'"
    assert (has_line in caplog.text) == (not classes)


def test_a_class_that_looks_the_same_is_said_to_be_equal_after_normalization(
    run: Run, tmp_path: Path
) -> None:
    made = numbered(tmp_path, (*map(str, range(11)), "caf\u00e9"))
    val = Path(made["root"], "val")
    (val / "11").rename(val / "cafe\u0301")
    message = refusal(run, DataError, **made)
    assert r"only the images have 'cafe\u0301', and only the weights file has 'café'" in message
    assert "are equal after Unicode normalization" in message
