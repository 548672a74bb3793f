"""What the jobs of evaluations and reports run; `vggdist/slurm/job.py` has that of trainings.

Each leaves `result.json` in its folder when all is done, with what it is the result of.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggdist.artifacts.paths import quote
from vggdist.artifacts.run_files import RESULT_FILE, read_result, write_result
from vggdist.errors import WeightsError
from vggdist.experiments.stages import Evaluation, Report, definition

if TYPE_CHECKING:
    from vggdist.training.signals import StopSignal


@dataclass(frozen=True)
class EvaluationPayload:
    """An evaluation of one network, by all its protocols and at all its scales."""

    stage: Evaluation
    network: str
    """The run folder."""
    root: str
    """The data set."""
    folder: str
    """Where the posteriors files and the result go."""

    def run(self, stop: StopSignal) -> int:
        """Evaluates on this rank; files that are there are not computed again."""
        from vggdist.distributed.rank import run_rank

        return run_rank(lambda: self._evaluate(stop))

    def _evaluate(self, stop: StopSignal) -> int:
        from vggdist.evaluate import Request, evaluate
        from vggdist.evaluation.report import render_evaluated, summarize

        evaluated = evaluate(
            Request(
                network=self.network,
                root=self.root,
                protocols=self.stage.protocols,
                scales=self.stage.scales,
                out=Path(self.folder),
                overrides=self.stage.settings,
            ),
            stop,
        )
        if evaluated is not None:  # the main rank speaks
            summary = summarize(evaluated)
            _finish(self.stage, self.folder, summary, render_evaluated(summary))
        return 0


@dataclass(frozen=True)
class ReportPayload:
    """The paper's tables beside those of some evaluations."""

    stage: Report
    evaluations: tuple[str, ...]
    """Their folders."""
    folder: str
    """Where the pages and the result go."""

    def run(self, stop: StopSignal) -> int:
        """Writes report.html, report.md and the result."""
        from vggdist.distributed.rank import run_rank

        return run_rank(self._report)

    def _report(self) -> int:
        from vggdist.reports.page import write_report
        from vggdist.reports.report import make_report
        from vggdist.reports.tables import render_report

        files = [file for folder in self.evaluations for file in _posteriors(Path(folder))]
        report = make_report(files)
        page = write_report(report, Path(self.folder))
        written = f"Written to {quote(page)} and {quote(page.with_suffix('.md'))}"
        text = f"{render_report(report)}\n\n{written}"
        _finish(self.stage, self.folder, report.to_dict(), text)
        return 0


def _posteriors(folder: Path) -> list[Path]:
    """The files that an evaluation's result names; others in its folder are of other weights."""
    result = read_result(folder)
    if result is None:
        raise WeightsError(
            f"{quote(folder)} has no {RESULT_FILE} that can be read; run the experiment again."
        )
    return [folder / Path(str(row["file"])).name for row in result["files"]]


def _finish(stage: Evaluation | Report, folder: str, result: Mapping[str, Any], text: str) -> None:
    """Shows the result, and leaves it with what it is of."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
    try:
        write_result(Path(folder), {"stage": definition(stage), **result})
    except OSError as error:
        file = Path(folder) / RESULT_FILE
        raise WeightsError(f"{quote(file)} cannot be written: {error}.") from error
