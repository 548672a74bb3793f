"""Predictions are those of a loop with Pillow; broken images are named and do not stop the rest."""

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from tests.prepare.odd_images import short_metadata
from vggdist import cli
from vggdist.artifacts.weights import Description, Weights, load_weights, save_weights
from vggdist.config import ModelConfig, Orientation
from vggdist.errors import ConfigError, DataError, WeightsError
from vggdist.model.initialization import build_initialized
from vggdist.model.loading import build_network
from vggdist.predict import expand, predict, render_predictions, split_usable

MODEL = ModelConfig(
    configuration=(("3-8",), ("3-16",)), num_classes=4, fc_width=16, initialization="kaiming"
)
CLASSES = ("ant", "bee", "cat", "dog")
DESCRIPTION = Description(MODEL, 32, (120.0, 110.0, 100.0), (60.0, 59.0, 58.0), (36, 44), CLASSES)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    path = tmp_path_factory.mktemp("weights") / "network.safetensors"
    save_weights(path, build_initialized(MODEL, 32, seed=5).state_dict(), DESCRIPTION)
    return load_weights(path)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: landscape, portrait, grey, in a folder below, and with an EXIF orientation."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(2)
    (folder / "below").mkdir()
    for name, width, height, mode in (
        ("a.png", 90, 60, "RGB"),
        ("b.png", 50, 81, "RGB"),
        ("below/c.png", 64, 64, "L"),
        ("d.jpg", 70, 100, "RGB"),
    ):
        coarse = random.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        exif = Image.Exif()
        exif[0x0112] = 6
        options = {"exif": exif, "quality": 95} if name == "d.jpg" else {}
        image.convert(mode).save(folder / name, **options)
    return folder


def expected_confidences(
    weights: Weights, file: Path, scale: int, upright: bool = True
) -> torch.Tensor:
    """The centre crop by Pillow."""
    size = weights.description.crop_size
    with Image.open(file) as image:
        picture = (ImageOps.exif_transpose(image) if upright else image).convert("RGB")
    side = round(size * min(picture.size) / scale)
    left, top = ((length - side) // 2 for length in picture.size)
    crop = picture.crop((left, top, left + side, top + side))
    pixels = np.asarray(crop.resize((size, size), Image.Resampling.BILINEAR), dtype=np.float32)
    fed = (pixels - np.array(weights.description.mean)) / np.array(weights.description.std)
    with torch.inference_mode():
        batch = torch.from_numpy(fed).permute(2, 0, 1)[None].float()
        return build_network(weights)(batch).softmax(dim=1)[0]


@pytest.mark.parametrize("scale", [None, 32, 50])
@pytest.mark.parametrize("trained", [None, "apply", "ignore"])
def test_predictions_are_those_of_pillow_and_a_plain_forward(
    scale: int | None, trained: Orientation | None, weights: Weights, images: Path, caplog
) -> None:
    caplog.set_level(logging.INFO)
    files = expand([images])
    weights = replace(weights, description=replace(weights.description, orientation=trained))
    predictions = predict(weights, files, top=4, scale=scale, device="cpu")
    turned = "1 of 4 images has an EXIF orientation: the network sees them as they are stored"
    assert (turned in caplog.text) == (trained == "ignore")
    assert [prediction.file for prediction in predictions] == files
    spread = []
    for prediction in predictions:
        choices = prediction.choices
        upright = trained != "ignore"
        expected = expected_confidences(weights, prediction.file, scale or 40, upright)
        for choice in choices:
            assert choice.confidence == pytest.approx(float(expected[choice.label]), abs=0.02)
            assert choice.name == CLASSES[choice.label]
        assert {choice.label for choice in choices} == {0, 1, 2, 3}
        confidences = [choice.confidence for choice in choices]
        assert confidences == sorted(confidences, reverse=True)
        assert sum(confidences) == pytest.approx(1, abs=1e-5)
        spread.append(confidences[0] - confidences[-1])
    assert max(spread) > 0.2, "a network that says the same of all proves nothing"


def test_bf16_is_near_fp32(weights: Weights, images: Path) -> None:
    files = expand([images])
    exact = predict(weights, files, top=4, device="cpu")
    rough = predict(weights, files, top=4, precision="bf16", device="cpu")
    for predictions in zip(exact, rough, strict=True):
        fp32, bf16 = (
            {choice.label: choice.confidence for choice in prediction.choices}
            for prediction in predictions
        )
        assert bf16 == pytest.approx(fp32, abs=0.05)
    assert exact != rough


def test_more_images_than_a_batch_and_the_same_one_twice(weights: Weights, images: Path) -> None:
    files = [images / "a.png", images / "b.png"] * 10
    predictions = predict(weights, files, top=1, device="cpu")
    assert [prediction.file for prediction in predictions] == files
    confidences = [prediction.choices[0].confidence for prediction in predictions]
    assert confidences[:2] == pytest.approx(confidences[-2:], abs=1e-5)


def test_the_scale_is_the_middle_of_the_training_scales_or_in_proportion() -> None:
    def scale(crop_size: int, train_scale: tuple[int, int] | None) -> int:
        return Description(MODEL, crop_size, (0.0,) * 3, train_scale=train_scale).default_scale

    assert scale(224, (256, 512)) == 384
    assert scale(224, None) == 256
    assert scale(320, None) == 366
    assert scale(32, None) == 37


def test_a_scale_below_the_crop_size_is_refused(weights: Weights, images: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        predict(weights, [images / "a.png"], scale=31, device="cpu")
    assert str(refused.value) == (
        "--scale: at a shorter side of 31 pixels images are smaller than the network's input of "
        "32 x 32; use scales of 32 or more."
    )


def test_folders_become_their_images_and_files_stay(images: Path, tmp_path: Path) -> None:
    found = expand([images / "d.jpg", images, images / "nothing.png"])
    names = ["d.jpg", "a.png", "b.png", "below/c.png", "d.jpg", "nothing.png"]
    assert found == [images / name for name in names]
    with pytest.raises(DataError, match=r"has no images, files that end in \.jpg, \.jpeg, .*give "):
        expand([tmp_path])


def test_the_same_table_by_hand(weights: Weights, images: Path) -> None:
    predictions = predict(weights, [images / "a.png"], top=2, device="cpu")
    header, rule, first, second = render_predictions(predictions).splitlines()
    assert header.split() == ["image", "class", "confidence"]
    assert set(rule) == {"-"}
    file, name, share, sign = first.split()
    choice = predictions[0].choices[0]
    assert (file, name, sign) == (str(images / "a.png"), choice.name, "%")
    assert float(share) == pytest.approx(100 * choice.confidence, abs=0.01)
    assert second.split()[0] == predictions[0].choices[1].name


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(
    weights: Weights, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Command:
    """`vggdist predict` with the network."""

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        arguments = ["vggdist", "predict", *map(str, (weights.path, *words))]
        monkeypatch.setattr(sys, "argv", arguments)
        return subprocess.CompletedProcess(arguments, cli.main(), *capfd.readouterr())

    return run


def test_broken_images_are_named_the_others_predicted_and_the_exit_code_is_3(
    command: Command, images: Path, tmp_path: Path
) -> None:
    encoded = (images / "d.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(encoded[: len(encoded) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "words.jpg").write_text("no picture")
    broken = [*sorted(tmp_path.iterdir()), tmp_path / "missing.jpg"]
    sheet, report = tmp_path / "out" / "sheet.png", tmp_path / "report.json"
    good = images / "a.png"
    said = command(*broken, good, "--top", 2, "--out", sheet, "--json", report)
    assert said.returncode == 3
    sentences = [line for line in said.stderr.splitlines() if line.startswith("error: ")]
    assert [line.split()[1] for line in sentences] == [str(file) for file in broken]
    assert all(" cannot be used: " in line and line.endswith(".") for line in sentences)
    assert "empty.png cannot be used: the file is empty." in said.stderr
    assert "missing.jpg cannot be used: it cannot be read: there is no such file." in said.stderr
    assert str(good) in said.stdout
    told = json.loads(report.read_text())
    assert [image["file"] for image in told["images"]] == [str(good)]
    assert [image["file"] for image in told["unusable"]] == [str(file) for file in broken]
    choice = told["images"][0]["predictions"][0]
    assert choice["name"] == CLASSES[choice["label"]]
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"


def test_without_a_usable_image_there_is_no_picture(command: Command, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    said = command(tmp_path / "nothing.jpg", "--out", sheet)
    assert (said.returncode, said.stdout) == (3, "None of the images can be used.\n")
    assert not sheet.exists()


def test_a_picture_that_cannot_be_written_is_said_after_the_table(
    command: Command, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    sheet = tmp_path / "file" / "sheet.png"
    said = command(images / "a.png", "--out", sheet)
    assert said.returncode == 3
    assert "confidence" in said.stdout
    assert f"error: --out {sheet} cannot be written: " in said.stderr
    assert said.stderr.endswith("Name a file such as sheet.png.\n")


def test_well_images_end_with_0(command: Command, images: Path) -> None:
    said = command(images, "--device", "cpu", "--precision", "fp32")
    assert said.returncode == 0
    (line,) = said.stderr.splitlines()
    assert line.endswith(" precision fp32, as set.")


def test_usable_and_unusable_images_are_told_apart(images: Path, tmp_path: Path) -> None:
    (tmp_path / "words.jpg").write_text("no picture")
    usable, problems = split_usable([images / "a.png", tmp_path / "words.jpg"])
    assert usable == [images / "a.png"]
    assert list(problems) == [tmp_path / "words.jpg"]
    assert problems[tmp_path / "words.jpg"].startswith("it is no image")


def test_a_network_that_has_exploded_is_refused(images: Path, tmp_path: Path) -> None:
    network = build_initialized(MODEL, 32, seed=5)
    with torch.no_grad():
        network.fc7.linear.weight.mul_(1e20)
        network.fc8.linear.weight.mul_(1e30)
    save_weights(tmp_path / "exploded.safetensors", network.state_dict(), DESCRIPTION)
    weights = load_weights(tmp_path / "exploded.safetensors")
    with pytest.raises(WeightsError, match=r"posteriors are infinite or not numbers for .*a\.png"):
        predict(weights, expand([images]), device="cpu")


def test_names_whose_bytes_are_no_text_are_shown(
    command: Command, images: Path, tmp_path: Path
) -> None:
    odd, sheet = f"{tmp_path}/caf\udce9.png", tmp_path / "sheet.png"
    shutil.copy(images / "a.png", odd)
    said = command(odd, "--out", sheet)
    assert said.returncode == 0
    assert "caf\\xe9.png" in said.stdout
    assert sheet.exists()


def test_a_picture_is_drawn_of_an_image_that_pillow_does_not_open(
    command: Command, images: Path, tmp_path: Path
) -> None:
    odd, sheet = tmp_path / "odd.jpg", tmp_path / "sheet.png"
    odd.write_bytes(short_metadata((images / "d.jpg").read_bytes()))
    with pytest.raises(UnidentifiedImageError):
        Image.open(odd)
    assert command(odd, "--out", sheet).returncode == 0
    assert sheet.exists()


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1)])
def test_an_image_of_extreme_shape_is_predicted_and_drawn(
    command: Command, tmp_path: Path, size: tuple[int, int]
) -> None:
    long, sheet = tmp_path / "long.png", tmp_path / "sheet.png"
    Image.new("RGB", size, "red").save(long)
    assert command(long, "--out", sheet).returncode == 0
    assert sheet.exists()


def test_a_decoders_line_about_damage_comes_with_the_name_of_the_file(
    command: Command, images: Path, tmp_path: Path
) -> None:
    whole = (images / "d.jpg").read_bytes()
    damaged = tmp_path / "x y.jpg"
    early = whole.index(b"\xff\xda") + 100
    damaged.write_bytes(whole[:early] + b"\xff\xd0" + whole[early:])  # ends the pixels
    said = command(*[images / "d.jpg"] * 20, damaged)
    assert said.returncode == 0
    lines = said.stderr.splitlines()
    (line,) = (line for line in lines if "Corrupt JPEG data" in line)
    assert f"'{damaged}' is damaged, but readable: Corrupt JPEG data: " in line
    assert line.endswith("Its prediction may be wrong.")
    assert lines[-1].startswith("21 of 21 images")
