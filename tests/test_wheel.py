"""The package alone, without the project's folder: its commands, and `import vggdist`."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.multi_process
@pytest.mark.slow
def test_the_installed_package_trains_the_digits_as_the_page_about_python_does(
    tmp_path: Path,
) -> None:
    installed, work = tmp_path / "installed", tmp_path / "work"
    work.mkdir()
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation"]  # its libraries and all extras are there
    built = [*pip, "wheel", *offline, "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(built, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("vggdist-*.whl")
    target = ["--no-compile", "--target", str(installed)]
    subprocess.run([*pip, "install", "--no-deps", *target, str(wheel)], check=True)

    def run(*words: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(installed)}
        command = [sys.executable, *words]
        ended = subprocess.run(
            command, cwd=work, env=environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    run("-m", "vggdist", "prepare", "digits", "--out", "datasets/digits")
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    printed = run("-c", f"{code}\nprint(vggdist.__file__)")
    assert str(installed) in printed
    assert "torch.Size([2, 10])" in printed
    assert "torch.Size([64, 3, 32, 32]) torch.Size([64])" in printed
    assert json.loads((work / "runs" / "digits" / "result.json").read_text())["top1_error"] < 0.9
