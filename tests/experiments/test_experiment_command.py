"""`vggdist experiment`: real stages in processes of this machine, and its answers without torch."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests import processes
from tests.run_folders import last_checkpoint
from vggdist.artifacts.posteriors import open_posteriors
from vggdist.cli import parse
from vggdist.config_file import load_config, to_yaml

EXPERIMENTS = processes.ROOT / "configs" / "experiments"

LOGIN_NODE = """
import sys
sys.modules["torch"] = sys.modules["nvidia"] = None  # whoever imports them fails
from vggdist.cli import main
sys.exit(main())
"""


def run(*words: str, code: str = "") -> subprocess.CompletedProcess[str]:
    program = ["-c", code] if code else ["-m", "vggdist.cli"]
    return processes.run(sys.executable, *program, "experiment", *words)


def test_a_dry_run_needs_neither_torch_nor_data_nor_slurm(tmp_path: Path) -> None:
    answer, folder = tmp_path / "answer.json", tmp_path / "it"
    file = str(EXPERIMENTS / "paper.yaml")
    words = (f"folder={folder}", "data=/nowhere", "--nodes", "2", "--gpus-per-node", "8")
    done = run("run", file, *words, "--dry-run", "--json", str(answer), code=LOGIN_NODE)
    assert done.returncode == 0, done.stderr
    assert "Nothing was started (--dry-run)." in done.stdout
    assert "Assumed: 100 TFLOP/s sustained by each GPU (--teraflops), 1,281,167" in done.stdout
    shown = json.loads(answer.read_text())
    assert (shown["jobs"], shown["world_size"], shown["device"]) == (28, 16, "gpu")
    assert shown["device_hours"] == pytest.approx(279, abs=1)
    assert not folder.exists()


def test_what_is_in_the_way_is_told_by_a_dry_run_and_stops_a_run(tmp_path: Path) -> None:
    words = (str(EXPERIMENTS / "paper.yaml"), f"folder={tmp_path}/it", "--ranks-per-node", "3")
    done = run("run", *words, "--dry-run")
    assert done.returncode == 0
    assert "in the way: data is not set" in done.stdout
    done = run("run", *words, "--local")
    assert done.returncode == 2
    assert "error: 2 problems in the experiment paper:" in done.stderr
    assert "batch.global 256 cannot be shared equally by 3 ranks" in done.stderr
    assert not (tmp_path / "it").exists()


def test_the_speed_that_is_assumed_can_be_set(tmp_path: Path) -> None:
    hours = {}
    for speed in ("100", "400"):
        answer = tmp_path / f"{speed}.json"
        words = ("--gpus-per-node", "1", "--dry-run", "--teraflops", speed, "--json", str(answer))
        assert run("run", str(EXPERIMENTS / "sweep.yaml"), *words).returncode == 0
        hours[speed] = json.loads(answer.read_text())["device_hours"]
    assert hours["100"] == pytest.approx(4 * hours["400"])


def test_a_status_needs_no_torch_and_no_slurm(tmp_path: Path) -> None:
    answer = tmp_path / "answer.json"
    file = str(EXPERIMENTS / "small.yaml")
    done = run("status", file, f"folder={tmp_path}/it", "--json", str(answer), code=LOGIN_NODE)
    assert done.returncode == 0, done.stderr
    assert "15 stages: 15 waiting" in done.stdout
    assert json.loads(answer.read_text())["stages"]["report"]["state"] == "waiting"


def test_mistakes_end_with_one_message_and_no_traceback(tmp_path: Path) -> None:
    file = tmp_path / "it.yaml"
    file.write_text("folder: it\nstages: {a: {confg: x.yaml}, b: {evaluate: c}}\n")
    done = run("run", str(file), "--local")
    assert done.returncode == 2
    assert f"error: 2 problems in {file}:" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_slurm_the_local_way_is_named(tmp_path: Path, tiny_dataset: Path) -> None:
    file = str(EXPERIMENTS / "small.yaml")
    words = (f"folder={tmp_path}/it", f"data={tiny_dataset}")
    code = "import os; os.environ['PATH'] = '/nowhere'\n" + LOGIN_NODE
    done = run("run", file, *words, code=code)
    assert done.returncode == 6
    assert "Add --local to run the same job in processes here" in done.stderr
    assert not (tmp_path / "it").exists()


def test_overrides_may_stand_behind_flags() -> None:
    words = ["experiment", "run", "it.yaml", "data=/a", "--local", "stages.d_256.set.seed=3"]
    assert parse(words).overrides == ["data=/a", "stages.d_256.set.seed=3"]


def test_help_teaches_with_examples() -> None:
    shown = run("run", "--help").stdout
    assert "examples:\n  vggdist experiment run configs/experiments/paper.yaml" in shown
    assert "stages:" in shown
    assert re.search(r"failed +the last error in its log", run("status", "--help").stdout)


EXPERIMENT = """
stages:
  a: {{config: net.yaml}}
  only_fc:
    config: net.yaml
    start: a
    set:
      data: {{train_scale_min: 48, train_scale_max: 48}}
      optimizer: {{trained_layers: fully-connected}}
  broken: {{config: net.yaml, start: a, set: {{model: {{num_classes: {num_classes}}}}}}}
  test_fc: {{evaluate: only_fc, protocols: [center-crop, dense], scales: [40, 48]}}
  test_broken: {{evaluate: broken, scales: [40]}}
  tables: {{report: [test_fc]}}
"""


@pytest.mark.multi_process
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_stages_pass_their_networks_on_and_a_failed_one_is_run_again(
    tiny_dataset: Path, tiny_overrides: list[str], tmp_path: Path
) -> None:
    (tmp_path / "net.yaml").write_text(to_yaml(load_config(None, tiny_overrides)))
    file, folder, answer = tmp_path / "it.yaml", tmp_path / "it", tmp_path / "answer.json"
    words = (f"folder={folder}", "set.device=cpu", "--json", str(answer))

    file.write_text(EXPERIMENT.format(num_classes=4))
    done = run("run", str(file), *words, "--local")
    assert done.returncode == 2, done.stderr + done.stdout
    assert "stage test_broken is held back: broken is not done." in done.stdout
    assert "model.num_classes is 4, but" in done.stderr
    assert "Traceback" not in done.stderr

    weights = {
        name: last_checkpoint(folder / name) / "weights.safetensors" for name in ("a", "only_fc")
    }
    a, only_fc = map(load_file, weights.values())
    for name, tensor in only_fc.items():
        same = tensor.tobytes() == a[name].tobytes()
        assert same == name.startswith("features."), name
    log = (folder / "only_fc" / "log.txt").read_text()
    assert f"copied from {weights['a']}: conv1_1 <- conv1_1" in log

    assert run("status", str(folder), "--json", str(answer), code=LOGIN_NODE).returncode == 0
    stages = json.loads(answer.read_text())["stages"]
    assert {name: stage["state"] for name, stage in stages.items()} == {
        "a": "done",
        "only_fc": "done",
        "broken": "failed",
        "test_fc": "done",
        "test_broken": "waiting",
        "tables": "done",
    }
    assert stages["broken"]["error"].startswith("model.num_classes is 4, but")
    result = json.loads((folder / "test_fc" / "result.json").read_text())
    assert stages["test_fc"]["top1_error"] == result["top1_error"]
    sources = [open_posteriors(Path(row["file"])).source for row in result["files"]]
    assert {(source.protocol, source.scale) for source in sources} == {
        (protocol, scale) for protocol in ("center-crop", "dense") for scale in (40, 48)
    }
    assert (folder / "tables" / "report.html").is_file()

    file.write_text(EXPERIMENT.format(num_classes=3))
    done = run("run", str(file), *words, "--local")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^stage (\S+),", done.stdout, re.MULTILINE) == ["broken", "test_broken"]
    assert run("run", str(file), *words, "--local").returncode == 0
