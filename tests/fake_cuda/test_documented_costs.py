"""The table of what a step costs, in the documentation, is that of the code."""

from pathlib import Path

import pytest

from tests.fake_cuda.process import FakeCuda
from tests.fake_cuda.steps import ALONE, Ranks, Report, train

pytestmark = pytest.mark.slow

HEADING = "## Under a pretended CUDA"
EIGHT = Ranks(world_size=8, rank=3)
SETTINGS = {
    "one GPU, micro batch 64": (["batch.global=64"], ALONE),
    "one GPU, micro batch 256": (["batch.global=256", "batch.micro=256"], ALONE),
    "8 GPUs, micro batch 64, all-reduce": (["batch.global=512", "exchange=all_reduce"], EIGHT),
    "8 GPUs, micro batch 64, factors": (["batch.global=512", "exchange=factors"], EIGHT),
}
KINDS = ("total", "weights", "momentum", "gradients", "others")


@pytest.fixture(scope="module")
def documented() -> dict[str, list[float]]:
    """The numbers of each row."""
    pages = (Path(__file__).parents[2] / "docs").glob("*.md")
    (page,) = (text for text in map(Path.read_text, pages) if HEADING in text)
    section = page.partition(HEADING)[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return {row[0]: [float(cell) for cell in row[1:]] for row in rows if row[0] in SETTINGS}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_step_costs_what_its_row_says(
    fake_cuda: FakeCuda, documented: dict[str, list[float]], setting: str
) -> None:
    overrides, ranks = SETTINGS[setting]
    report = fake_cuda.run(train, ["precision=bf16", *overrides], ranks, measure_memory=True)
    measured = costs(report)
    counts, memory = measured[:2], measured[2:]
    row = " | ".join([setting, *map(str, counts), *(f"{gigabytes:.2f}" for gigabytes in memory)])
    assert documented[setting] == pytest.approx(measured, rel=0.05, abs=0.01), f"now | {row} |"


def costs(report: Report) -> list[float]:
    """The numbers of a row: operators, collectives, and memory in GB."""
    collectives = {name for name in report.operators if name.startswith("c10d::")}
    return [
        report.operators.total(),
        sum(report.operators[name] for name in collectives),
        *(report.memory.get(kind, 0) / 1e9 for kind in KINDS),
    ]
