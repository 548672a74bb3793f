"""What tests of the whole training share: a tiny data set and a tiny configuration."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggdist import cli

MakeImage = Callable[..., Path]
MakeTree = Callable[..., Path]
Call = Callable[..., tuple[int, str, str]]


def pytest_configure(config: pytest.Config) -> None:
    """Hides GPUs from all tests but those of `tests/gpu`, run by themselves: on a machine with GPUs
    the others are to test what they test elsewhere."""
    for_gpus = Path(__file__).parent / "gpu"
    paths = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    if not all(path.is_relative_to(for_gpus) for path in paths):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


LONGEST = (
    "test_gpu_rehearsal",
    "test_experiment_command",
    "test_local",
    "test_train",
    "test_wheel",
)
"""Modules whose tests take half a minute or more."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests come first, so that no process is left alone with one at the end."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(autouse=True)
def logger_as_it_was() -> Iterator[None]:
    """A command that logs to the terminal does so until its process ends."""
    logger = logging.getLogger("vggdist")
    before = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a command line of vggdist; returns its exit code, stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vggdist", *map(str, words)])
        code = cli.main()
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with 20 and val/ with 7 images of three plain colours, sides 40 to 70 pixels."""
    root = tmp_path_factory.mktemp("tiny")
    generator = np.random.default_rng(0)
    for split, counts in (("train", (7, 7, 6)), ("val", (3, 2, 2))):
        for channel, count in enumerate(counts):
            folder = root / split / ("red", "green", "yellow")[channel]
            folder.mkdir(parents=True)
            for number in range(count):
                height, width = generator.integers(40, 71, 2)
                pixels = generator.integers(0, 120, (height, width, 3), dtype=np.uint8)
                pixels[..., channel % 2] += 120
                pixels[..., 1] += 60 * (channel == 2)
                Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=95)
    return root


@pytest.fixture(scope="session")
def tiny_network(tiny_dataset: Path) -> list[str]:
    """Two blocks, trained on `tiny_dataset` in fp32, 8 images a step."""
    return [
        "model.configuration=[[3-8],[3-16]]",
        "model.num_classes=3",
        "model.fc_width=32",
        "data.crop_size=32",
        "data.train_scale_min=32",
        "data.train_scale_max=40",
        f"data.root={tiny_dataset}",
        "data.num_threads=1",
        "batch.global=8",
        "batch.micro=4",
        "optimizer.learning_rate=2e-4",
        "exchange=all_reduce",  # `auto` measures, and need not decide alike twice
        "precision=fp32",
    ]


@pytest.fixture
def tiny_overrides(tiny_network: list[str], tmp_path: Path) -> list[str]:
    """A training of 6 steps, logged at every step."""
    return [
        *tiny_network,
        "schedule.num_steps=6",
        "log.every_steps=1",
        f"run.folder={tmp_path / 'run'}",
    ]


@pytest.fixture(scope="session")
def make_image() -> MakeImage:
    """Writes an image whose colours change smoothly, so that a pixel's shift shows."""

    def make(
        path: Path, width: int, height: int, mode: str = "RGB", seed: int = 0, **save: object
    ) -> Path:
        random = np.random.default_rng([seed, width, height])
        coarse = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        path.parent.mkdir(parents=True, exist_ok=True)
        image.convert(mode).save(path, **save)
        return path

    return make


@pytest.fixture(scope="session")
def make_tree(make_image: MakeImage) -> MakeTree:
    """Writes class folders with images of several sizes; `counts` is class name -> images."""

    def make(folder: Path, counts: dict[str, int]) -> Path:
        for label, (name, count) in enumerate(counts.items()):
            for i in range(count):
                width, height = 40 + 7 * (i % 9), 36 + 5 * ((i + label) % 11)
                make_image(folder / name / f"{i:03d}.jpg", width, height, seed=100 * label + i)
        return folder

    return make
