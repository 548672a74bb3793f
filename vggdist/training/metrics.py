"""Curves: TensorBoard events and `metrics.jsonl`, written by the main rank.

After a resume nothing appears twice: TensorBoard purges what stands after the checkpoint, and later
lines of `metrics.jsonl` are dropped. What belongs to a start stands one step after its checkpoint,
and so is purged by the next start from the same one. If the checkpoint itself is evaluated again,
because its result was not saved, the evaluation is not written again.
"""

import contextlib
import logging
import math
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from vggdist.artifacts.files import JsonLines
from vggdist.artifacts.run_files import LOG_FILE, METRICS_FILE
from vggdist.config import Config
from vggdist.errors import in_words
from vggdist.training import board as of_board
from vggdist.training.board import EVENT_FILES, event_folder
from vggdist.training.curves import tag_of
from vggdist.training.layer_values import Histogram

logger = logging.getLogger(__name__)

_SUFFIX = ".from-"
"""Ends the name of an event file, before the step where its start began."""


class LogFile(logging.FileHandler):
    """`log.txt`; a full disk loses lines, which `MetricLog` reports."""

    def __init__(self, run_folder: Path) -> None:
        super().__init__(run_folder / LOG_FILE, encoding="utf-8")
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Called if a line cannot be written; logging would print a traceback for each."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        """Discards lines that could not be written."""
        with contextlib.suppress(OSError):
            super().close()


class MetricLog:
    """Writes named numbers at a step; also texts, pictures and others, to TensorBoard only."""

    def __init__(self, run_folder: Path, first_step: int, has_top5: bool = True) -> None:
        """Continues the curves of `run_folder` after step `first_step`.

        Args:
            has_top5: with five classes or fewer it says nothing, and TensorBoard is not told.
        """
        self._left_out = set() if has_top5 else {"top5_error"}
        # From 0, if an earlier start ended before its first checkpoint.
        self._start = first_step + 1 if first_step else 0
        self._failed = False
        self._folder = run_folder
        self._lines = JsonLines(run_folder / METRICS_FILE)
        kept = self._lines.keep(lambda point: point["step"] <= first_step and "split" in point)
        self._there = {(point["split"], point["step"]) for point in kept}
        self._usual_hook, threading.excepthook = threading.excepthook, self._without_board
        self._described: set[str] = set()
        self._event_folder = event_folder(run_folder)
        starts = (file.name.rpartition(_SUFFIX) for file in self._event_folder.glob(EVENT_FILES))
        self._is_begun = any(suffix and int(step) < self._start for _, suffix, step in starts)
        self._board: SummaryWriter | None = self._open_board(self._start)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._on_board(SummaryWriter.close)
        threading.excepthook = self._usual_hook

    def write(
        self,
        split: str,
        step: int,
        epoch: float,
        values: Mapping[str, float],
        details: Mapping[str, float] | None = None,
    ) -> None:
        """A point of every curve; `split` is train or validation.

        Args:
            details: points of further curves by tag, which only TensorBoard has.
        """
        if (split, step) in self._there:
            return
        # JSON has no nan or infinity.
        numbers = {name: value if math.isfinite(value) else None for name, value in values.items()}
        record = {"split": split, "step": step, "epoch": epoch, **numbers}
        with self._going_on():
            self._lines.append(record)
            if self._board is None:  # there is room again
                self._board = self._open_board()

        named = {"epoch": epoch, **values}
        shown = named.keys() - self._left_out
        tags = {tag_of(split, name): value for name, value in named.items() if name in shown}
        self._write_scalars(tags | dict(details or {}), step)
        self._on_board(lambda board: board.flush())

    def write_start(self, config: Config, device: str, texts: Mapping[str, str]) -> None:
        """What a start tells: the charts and settings of a new training, and texts by name."""
        if not self._is_begun:
            for summary in (
                of_board.charts(config, device),
                of_board.experiment(config),
                of_board.start(config),
            ):
                self._write_summary(summary, self._start)
        for name, text in texts.items():
            self.write_text(name, text)

    def write_end(self, step: int) -> None:
        """The training is finished with `step` steps."""
        self._write_summary(of_board.end(), step + 1)  # where the next start purges it

    def write_mark(self, tag: str, value: float, step: int) -> None:
        """A point of a curve that is seldom written."""
        if ("validation", step) not in self._there:
            self._write_scalars({tag: value}, step)

    def write_histograms(self, group: str, layers: Mapping[str, Histogram], step: int) -> None:
        """Histograms of `weights` or `gradients` by layer."""
        if layers:
            self._write_summary(of_board.histograms(group, layers), step)

    def write_text(self, name: str, text: str, step: int | None = None) -> None:
        """A text, shown verbatim; without a step it belongs to this start."""
        if ("validation", step) in self._there:  # already written, after the same evaluation
            return
        indented = "\n".join("    " + line for line in text.splitlines())
        shown_at = self._start if step is None else step
        self._on_board(lambda board: board.add_text(name, indented, shown_at))

    def write_picture(self, name: str, picture: Image.Image, step: int) -> None:
        """A picture of the training or evaluation of this step."""
        if ("validation", step) in self._there:  # already written, after the same evaluation
            return
        pixels = np.asarray(picture)
        self._on_board(
            lambda board: board.add_image(f"pictures/{name}", pixels, step, dataformats="HWC")
        )

    def _write_scalars(self, tags: Mapping[str, float], step: int) -> None:
        described = tags.keys() <= self._described
        self._described |= tags.keys()
        self._write_summary(of_board.scalars(tags, not described), step)

    def _write_summary(self, summary: Summary, step: int) -> None:
        def write(board: SummaryWriter) -> None:
            board._get_file_writer().add_summary(summary, step)  # type: ignore[no-untyped-call]

        self._on_board(write)

    def _open_board(self, purge_step: int | None = None) -> SummaryWriter:
        return SummaryWriter(
            str(self._event_folder),
            purge_step=purge_step,
            flush_secs=10,
            filename_suffix=f"{_SUFFIX}{self._start}",
        )

    def _on_board(self, write: Callable[[SummaryWriter], None]) -> None:
        """Writes to TensorBoard, whose thread is dead after a failure."""
        if self._board is None:
            return
        with self._going_on():
            try:
                write(self._board)
            except OSError:
                self._board = None
                raise

    def _without_board(self, failure: threading.ExceptHookArgs) -> None:
        """Ignores a failure of TensorBoard's thread: its next call raises the same error."""
        is_board = type(failure.thread).__module__.startswith("tensorboard.")
        if not (is_board and issubclass(failure.exc_type, OSError)):
            self._usual_hook(failure)

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        """A full disk loses points of the curves, not the training; reported once."""
        try:
            yield
        except OSError as error:
            if not self._failed:
                self._failed = True
                logger.error(
                    "curves and log in %s cannot be written, training continues without them: %s.",
                    self._folder,
                    in_words(error),
                )
