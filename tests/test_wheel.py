"""What who installs the package alone has: the commands, without the project's folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.multi_process
@pytest.mark.slow
def test_the_installed_package_trains_the_digits(tmp_path: Path) -> None:
    installed, work = tmp_path / "installed", tmp_path / "work"
    work.mkdir()
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation"]  # all that it needs is there
    built = [*pip, "wheel", *offline, "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(built, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("vggdist-*.whl")
    target = ["--no-compile", "--target", str(installed)]
    subprocess.run([*pip, "install", "--no-deps", *target, str(wheel)], check=True)

    def vggdist(*words: str) -> None:
        command = [sys.executable, "-m", "vggdist", *words]
        environment = os.environ | {"PYTHONPATH": str(installed)}
        ended = subprocess.run(
            command, cwd=work, env=environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr

    vggdist("prepare", "digits", "--out", "digits")
    network = ["model.configuration=[[3-8],[3-16]]", "model.num_classes=10", "model.fc_width=32"]
    images = ["data.root=digits", "data.crop_size=32", "data.train_scale_min=32"]
    images += ["data.train_scale_max=32", "batch.global=32", "optimizer.learning_rate=1e-3"]
    vggdist("train", *network, *images, "schedule.num_steps=3", "run.folder=run")
    assert json.loads((work / "run" / "result.json").read_text())["steps"] == 3
