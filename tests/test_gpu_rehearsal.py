"""What stands ready for a GPU runs: here with the CPU in its place, and in small sizes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import processes
from tests.benchmarks.gpu import exchange_rows, table
from tests.ranks import run_in_ranks
from vggdist.distributed.process import Process

NO_COMPILER = "/nowhere/g++"
"""Compiling the tuned loop takes a minute, and a test of its own has it."""


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return processes.run(sys.executable, *command, timeout=1200, **variables)


@pytest.mark.slow
@pytest.mark.multi_process
@pytest.mark.timeout(1200)
def test_every_test_for_a_gpu_runs_with_the_cpu_in_its_place() -> None:
    words = ("tests/gpu", "--rehearse", "-vv", "-p", "no:cacheprovider")
    ended = run("-m", "pytest", *words, CXX=NO_COMPILER)
    assert ended.returncode == 0, ended.stdout[-10_000:]
    assert re.search(r"\d+ passed, 1 skipped", ended.stdout), ended.stdout[-2000:]
    assert "largest relative difference" in ended.stdout, "figures are printed"


@pytest.mark.slow
def test_without_a_gpu_its_tests_say_so_in_a_sentence_and_fail() -> None:
    ended = run("-m", "pytest", "tests/gpu", CUDA_VISIBLE_DEVICES="")
    assert ended.returncode == pytest.ExitCode.USAGE_ERROR
    sentence = (
        "`make test-gpu` needs an NVIDIA GPU: CUDA_VISIBLE_DEVICES, which is empty, hides all."
    )
    assert sentence in ended.stdout


@pytest.mark.slow
@pytest.mark.multi_process
@pytest.mark.timeout(600)
def test_the_benchmark_writes_every_number_and_prints_rows_like_the_pages(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    words = ("--device", "cpu", "--quick", "--out", str(out))
    ended = run("tests/benchmarks/gpu.py", *words, CXX=NO_COMPILER)
    assert ended.returncode == 0, ended.stderr
    page = (processes.ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    lines = ended.stdout.splitlines()
    assert lines[:2] == re.findall(r"^\|.*\|$", page, re.MULTILINE)[:2]
    assert len(lines) > 10
    assert all(line.count(" | ") == 4 for line in lines[2:])
    report = json.loads(out.read_text())
    assert report.keys() == {"date", "machine", "images", "quick", "measured"}
    assert {"device", "driver", "torch", "commit"} <= report["machine"].keys()
    for micro in (2, 4):
        training = report["measured"][f"training, micro batch {micro}"]
        assert training["peak_gigabytes"].keys() == {"bare", "vggdist"}
        assert training["loader_images_per_second"] > 0
        assert report["measured"][f"loader, micro batch {micro}"]["images_per_second"]["0.65"] > 0
    settings = report["measured"]["settings, micro batch 2"]["seconds"]
    assert list(settings) == ["as it is", "compile", "cuda_graph", "both"]
    assert report["measured"]["evaluation"]["num_images"] == 8
    paused = report["measured"]["pauses"]
    assert {"save", "write", "start", "first_start"} <= paused.keys()
    assert all(seconds > 0 for seconds in paused.values())
    assert "| an evaluation's start, first / later | " in ended.stdout


@pytest.mark.slow
def test_the_benchmark_without_a_gpu_says_so() -> None:
    ended = run("tests/benchmarks/gpu.py", CUDA_VISIBLE_DEVICES="")
    assert ended.returncode == 2
    assert "error: there is no NVIDIA GPU that torch can use" in ended.stderr


def test_what_fails_in_the_benchmark_is_a_row_and_exchanges_have_theirs() -> None:
    error = {"error": "Traceback ...\nOutOfMemoryError: of the test\n"}
    assert "| evaluation | failed: OutOfMemoryError: of the test | a GPU |" in table(
        {"evaluation": error}, "a GPU", "2026-12-01"
    )
    one = {
        "world_size": 2,
        "configuration": "D",
        "crop_size": 224,
        "precision": "bf16",
        "micro_batch": 64,
        "step_images_per_second": 1900.4,
        "no_exchange_images_per_second": 2000.0,
    }
    assert exchange_rows({"factors": one}) == [
        (
            "images/s of a training step on 2 GPUs, exchange=factors / without exchange "
            "(D, 224 px, bf16, micro batch 64)",
            "1900 / 2000",
        )
    ]


def told(process: Process, word: str) -> tuple[str, int, str]:
    return word, process.rank, process.device.type


@pytest.mark.slow
@pytest.mark.multi_process
def test_ranks_can_start_from_nothing_as_cuda_needs_it() -> None:
    answers = run_in_ranks(told, 2, "hello", fresh=True)
    assert answers == [("hello", 0, "cpu"), ("hello", 1, "cpu")]
