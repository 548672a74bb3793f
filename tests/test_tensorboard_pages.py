"""A person who opens TensorBoard on a run sees the data of every page, in a real browser."""

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import Browser, wait_for, what_is_missing
from tests.ranks import train_in_ranks
from vggdist.distributed.port import free_port

pytestmark = pytest.mark.slow

LEARNING = ("train/loss", "validation/loss", "optimizer/learning_rate")
PAGES = {
    "timeseries": LEARNING,
    "scalars": LEARNING,
    "custom_scalars": ("Learning", "Throughput", "Layers", "Loss", "Top-1 error"),
    "images": ("pictures/fed", "pictures/mistakes", "pictures/confusion", "pictures/predictions"),
    "text": ("start/settings", "start/command", "start/versions", "start/network", "config"),
    "histograms": ("weights/conv1_1", "weights/fc8", "gradients/conv1_1"),
    "hparams": ("optimizer.learning_rate", "top-1 error", "images/s"),
}
"""Page -> what must be seen on it."""

NUM_PICTURES = 4


@pytest.fixture(scope="module")
def run_folder(tiny_network: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of six steps with two evaluations; `CI=true` refuses to go without a browser."""
    if (missing := what_is_missing()) is not None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    folder = tmp_path_factory.mktemp("training") / "daisies"
    overrides = [*tiny_network, "schedule.num_steps=6", "log.every_steps=1"]
    assert train_in_ranks(1, [*overrides, f"run.folder={folder}"]) == [0]
    return folder


@pytest.fixture(scope="module")
def tensorboard(run_folder: Path) -> Iterator[str]:
    """The address of a TensorBoard that shows the run."""
    port = free_port()
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={run_folder / 'tensorboard'}"]
    server = subprocess.Popen([*command, f"--port={port}"], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"

    def is_loaded() -> bool:
        with urllib.request.urlopen(f"{url}/data/runs", timeout=10) as answer:
            return run_folder.name in answer.read().decode()

    try:
        assert wait_for(is_loaded, 60), "TensorBoard does not find the run"
        yield url
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.fixture(scope="module")
def browser(tensorboard: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile"), width=1600, height=6000) as browser:
        yield browser


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_the_data_of_the_run(page: str, browser: Browser, tensorboard: str) -> None:
    browser.open("about:blank")  # else the browser would only scroll to another anchor
    # With a filter all groups are open; these are no more than fit into their first page.
    shown = "loss|learning_rate|^weights|^gradients|pictures|start|config"
    browser.open(f"{tensorboard}/?tagFilter={shown}#{page}&tagFilter={shown}")
    wanted = (*PAGES[page], "daisies")

    def missing() -> list[str]:
        text = browser.text().replace(" /", "/").replace("/ ", "/")
        return [name for name in wanted if name not in text]

    is_there = wait_for(lambda: not missing(), 60)
    assert is_there, f"{missing()} are not in: {browser.text()}"
    if page == "images":
        is_drawn = wait_for(lambda: browser.text().count("[image ") >= NUM_PICTURES, 30)
        assert is_drawn, browser.text()
